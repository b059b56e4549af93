"""Models of images."""

import keras
import numpy as np
from keras import layers, ops

SIZE = (16, 16, 3)


def conv(x, filters, size=3, strides=1, activation="relu", dilation=1):
    """A convolution, its batch norm and its activation."""
    x = layers.Conv2D(
        filters, size, strides, padding="same", dilation_rate=dilation, use_bias=False
    )(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def of_image(function, shape=SIZE, **settings):
    """Returns the model of a function of an image."""

    def make():
        x = keras.Input(shape, **settings)
        return keras.Model(x, function(x))

    return make


def classified(x, classes=5):
    """A classifier's head."""
    return layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))


def resnet(x):
    """He et al. 2015, arXiv:1512.03385."""
    x = conv(x, 8)
    for filters, strides in ((8, 1), (16, 2)):
        y = conv(conv(x, filters, strides=strides), filters, activation=None)
        short = x if strides == 1 else conv(x, filters, 1, strides, None)
        x = layers.ReLU()(layers.Add()([y, short]))
    return classified(x)


def preactivation_resnet(x):
    """He et al. 2016, arXiv:1603.05027."""
    x = layers.Conv2D(8, 3, padding="same")(x)
    for _ in range(2):
        y = x
        for _ in range(2):
            y = layers.ReLU()(layers.BatchNormalization()(y))
            y = layers.Conv2D(8, 3, padding="same")(y)
        x = x + y
    return classified(layers.ReLU()(layers.BatchNormalization()(x)))


def densenet(x):
    """Huang et al. 2016, arXiv:1608.06993."""
    x = conv(x, 8)
    for _ in range(3):
        x = layers.Concatenate()([x, conv(conv(x, 8, 1), 4)])
    return classified(layers.AveragePooling2D(2)(conv(x, 8, 1)))


def inverted(x, filters, expansion=2, activation="relu6", squeeze=False):
    """A block of a MobileNet."""
    y = conv(x, expansion * x.shape[-1], 1, activation=activation)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.Activation(activation)(layers.BatchNormalization()(y))
    if squeeze:
        gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
        gate = layers.Conv2D(4, 1, activation="relu")(gate)
        gate = layers.Conv2D(y.shape[-1], 1, activation="hard_sigmoid")(gate)
        y = layers.Multiply()([y, gate])
    y = conv(y, filters, 1, activation=None)
    return layers.Add()([x, y]) if x.shape[-1] == filters else y


def mobilenet_v2(x):
    """Sandler et al. 2018, arXiv:1801.04381."""
    return classified(inverted(inverted(conv(x, 8, activation="relu6"), 8), 12))


def mobilenet_v3(x):
    """Howard et al. 2019, arXiv:1905.02244."""
    x = conv(x, 8, activation="hard_silu")
    return classified(inverted(x, 8, activation="hard_silu", squeeze=True))


def efficientnet(x):
    """Tan and Le 2019, arXiv:1905.11946."""
    x = conv(x, 8, activation="silu")
    gate = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(4, 1, activation="silu")(gate)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
    return classified(conv(layers.Multiply()([x, gate]), 12, activation="silu"))


def inception(x):
    """Szegedy et al. 2014, arXiv:1409.4842."""
    x = conv(x, 8)
    pooled = layers.MaxPooling2D(3, 1, padding="same")(x)
    branches = [conv(x, 4, 1), conv(conv(x, 4, 1), 4, 3), conv(conv(x, 4, 1), 4, 5)]
    return classified(layers.Concatenate()([*branches, conv(pooled, 4, 1)]))


def xception(x):
    """Chollet 2016, arXiv:1610.02357."""
    x = conv(x, 8)
    y = x
    for _ in range(2):
        y = layers.ReLU()(y)
        y = layers.BatchNormalization()(layers.SeparableConv2D(8, 3, padding="same")(y))
    y = layers.MaxPooling2D(3, 2, padding="same")(y)
    return classified(layers.Add()([y, conv(x, 8, 1, 2, None)]))


def shufflenet(x):
    """Zhang et al. 2017, arXiv:1707.01083."""
    x = conv(x, 8)
    y = layers.Reshape((16, 16, 2, 4))(conv(x, 8, 1))
    y = layers.Reshape((16, 16, 8))(layers.Permute((1, 2, 4, 3))(y))
    y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(y))
    return classified(layers.ReLU()(layers.Add()([x, y])))


def squeezenet(x):
    """Iandola et al. 2016, arXiv:1602.07360."""
    x = layers.Conv2D(4, 1, activation="relu")(conv(x, 8))
    wide = [layers.Conv2D(8, n, padding="same", activation="relu")(x) for n in (1, 3)]
    return classified(layers.Concatenate()(wide))


def convnext(x):
    """Liu et al. 2022, arXiv:2201.03545."""
    x = layers.Conv2D(8, 4, 4)(x)
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    y = layers.LayerNormalization(epsilon=1e-6)(y)
    y = layers.Dense(8)(layers.Dense(16, activation="gelu")(y))
    return classified(layers.LayerNormalization()(layers.Add()([x, y])))


def convmixer(x):
    """Trockman and Kolter 2022, arXiv:2201.09792."""
    x = layers.BatchNormalization()(layers.Conv2D(8, 4, 4, activation="gelu")(x))
    y = layers.DepthwiseConv2D(3, padding="same", activation="gelu")(x)
    x = layers.Add()([layers.BatchNormalization()(y), x])
    x = layers.Conv2D(8, 1, activation="gelu")(x)
    return classified(layers.BatchNormalization()(x))


def unet(x):
    """Ronneberger et al. 2015, arXiv:1505.04597."""
    a = conv(x, 8)
    b = conv(layers.MaxPooling2D()(a), 12)
    y = layers.Conv2DTranspose(8, 2, 2)(conv(layers.MaxPooling2D()(b), 12))
    y = layers.UpSampling2D(2)(conv(layers.Concatenate()([b, y]), 8))
    return layers.Conv2D(2, 1)(conv(layers.Concatenate()([a, y]), 8))


def attention_unet(x):
    """Oktay et al. 2018, arXiv:1804.03999."""
    a = conv(x, 8)
    b = layers.UpSampling2D(2, interpolation="bilinear")(conv(a, 8, strides=2))
    gate = layers.ReLU()(layers.Add()([layers.Conv2D(4, 1)(a), layers.Conv2D(4, 1)(b)]))
    gate = layers.Conv2D(1, 1, activation="sigmoid")(gate)
    return layers.Conv2D(2, 1)(layers.Concatenate()([layers.Multiply()([a, gate]), b]))


def deeplab(x):
    """Chen et al. 2017, arXiv:1706.05587."""
    x = conv(x, 8, strides=2)
    branches = [conv(x, 4, 1), *(conv(x, 4, dilation=rate) for rate in (2, 3))]
    pooled = conv(layers.GlobalAveragePooling2D(keepdims=True)(x), 4, 1)
    branches.append(layers.UpSampling2D(8, interpolation="bilinear")(pooled))
    x = conv(layers.Concatenate()(branches), 8, 1)
    return layers.UpSampling2D(2, interpolation="bilinear")(layers.Conv2D(3, 1)(x))


def feature_pyramid(x):
    """A RetinaNet's pyramid and heads; Lin et al. 2017, arXiv:1708.02002."""
    a = conv(x, 8, strides=2)
    b = conv(a, 12, strides=2)
    top = layers.Conv2D(8, 1)(b)
    side = layers.Add()([layers.Conv2D(8, 1)(a), layers.UpSampling2D(2)(top)])
    boxes, scores = layers.Conv2D(4, 3, padding="same"), layers.Conv2D(3, 3, padding="same")
    return [head(x) for x in (side, top) for head in (boxes, scores)]


def yolo(x):
    """Redmon and Farhadi 2018, arXiv:1804.02767."""
    x = layers.LeakyReLU(0.1)(conv(x, 8, strides=2, activation=None))
    y = layers.LeakyReLU(0.1)(conv(x, 8, activation=None))
    y = layers.Reshape((64, 7))(layers.Conv2D(7, 1)(layers.Add()([x, y])))
    return [ops.sigmoid(y[..., :2]), y[..., 2:4], ops.sigmoid(y[..., 4:])]


def ssd(x):
    """Liu et al. 2015, arXiv:1512.02325."""
    maps = [conv(x, 8, strides=2)]
    maps.append(conv(maps[0], 8, strides=2))
    boxes = [layers.Reshape((-1, 4))(layers.Conv2D(8, 3, padding="same")(m)) for m in maps]
    scores = [layers.Reshape((-1, 3))(layers.Conv2D(6, 3, padding="same")(m)) for m in maps]
    return [layers.Concatenate(axis=1)(boxes), layers.Concatenate(axis=1)(scores)]


def centernet(x):
    """Zhou et al. 2019, arXiv:1904.07850."""
    x = layers.Conv2DTranspose(8, 4, 2, padding="same")(conv(conv(x, 8), 8, strides=2))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    heat = layers.Conv2D(3, 1, activation="sigmoid")(conv(x, 8))
    return [heat, layers.Conv2D(2, 1)(conv(x, 8))]


def super_resolution(x):
    """Shi et al. 2016, arXiv:1609.05158: depth to space as a reshape."""
    x = conv(conv(x, 8, activation="relu"), 8)
    x = layers.Conv2D(12, 3, padding="same")(x)
    x = layers.Permute((1, 3, 2, 4, 5))(layers.Reshape((16, 16, 2, 2, 3))(x))
    return layers.Reshape((32, 32, 3))(x)


def instance_norm(x, name):
    """Instance normalization, as a group norm of one channel a group."""
    return layers.GroupNormalization(groups=-1, name=name)(x)


def cyclegan(x):
    """Zhu et al. 2017, arXiv:1703.10593."""
    x = layers.ReLU()(instance_norm(layers.Conv2D(8, 3, padding="same")(x), "first"))
    y = layers.ReLU()(instance_norm(layers.Conv2D(8, 3, padding="same")(x), "second"))
    x = layers.Add()([x, layers.Conv2D(8, 3, padding="same")(y)])
    return layers.Conv2D(3, 3, padding="same", activation="tanh")(x)


def vision_transformer(x, distilled=False):
    """Dosovitskiy et al. 2020, arXiv:2010.11929; distilled: Touvron et al. 2020 (DeiT)."""
    x = layers.Reshape((16, 12))(layers.Conv2D(12, 4, 4)(x))
    x = x + np.random.default_rng(0).normal(0, 0.5, (1, 16, 12)).astype("float32")
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 6)(y, y)])
    y = layers.Dense(12)(layers.Dense(24, activation="gelu")(layers.LayerNormalization()(x)))
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    if distilled:
        return [layers.Dense(5)(x[:, 0]), layers.Dense(5)(x[:, 1])]
    return layers.Dense(5)(layers.GlobalAveragePooling1D()(x))


def mobilevit(x):
    """Mehta and Rastegari 2021, arXiv:2110.02178: attention of patches, of rank 4."""
    x = conv(x, 8, strides=2, activation="silu")
    y = layers.Reshape((4, 2, 4, 2, 8))(x)
    y = layers.Reshape((4, 16, 8))(layers.Permute((2, 4, 1, 3, 5))(y))
    z = layers.LayerNormalization()(y)
    y = layers.Add()([y, layers.MultiHeadAttention(2, 4)(z, z)])
    y = layers.Permute((3, 1, 4, 2, 5))(layers.Reshape((2, 2, 4, 4, 8))(y))
    return classified(conv(layers.Concatenate()([x, layers.Reshape((8, 8, 8))(y)]), 8))


def swin(x):
    """Liu et al. 2021, arXiv:2103.14030: windows folded into the batch."""
    x = layers.Conv2D(8, 2, 2)(x)
    y = ops.reshape(layers.LayerNormalization()(x), (-1, 2, 4, 2, 4, 8))
    y = ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 16, 8))
    y = layers.MultiHeadAttention(2, 4)(y, y)
    y = ops.transpose(ops.reshape(y, (-1, 2, 2, 4, 4, 8)), (0, 1, 3, 2, 4, 5))
    return classified(layers.Add()([x, ops.reshape(y, (-1, 8, 8, 8))]))


def mlp_mixer(x):
    """Tolstikhin et al. 2021, arXiv:2105.01601."""
    x = layers.Reshape((16, 12))(layers.Conv2D(12, 4, 4)(x))
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    y = layers.Dense(16)(layers.Dense(24, activation="gelu")(y))
    x = layers.Add()([x, layers.Permute((2, 1))(y)])
    return layers.Dense(5)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x)))


def cbam(x):
    """Woo et al. 2018, arXiv:1807.06521."""
    x = conv(x, 8)
    squeeze, spread = layers.Dense(4, activation="relu"), layers.Dense(8)
    pools = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
    gate = ops.sigmoid(layers.Add()([spread(squeeze(p)) for p in pools]))
    x = x * layers.Reshape((1, 1, 8))(gate)
    maps = [f(x, axis=-1, keepdims=True) for f in (ops.mean, ops.max)]
    gate = layers.Conv2D(1, 7, padding="same", activation="sigmoid")(layers.Concatenate()(maps))
    return classified(layers.Multiply()([x, gate]))


def capsule(x):
    """Sabour et al. 2017, arXiv:1710.09829: capsules that a matrix each turns, without routing."""
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 4, 4, activation="relu")(x))
    turned = np.random.default_rng(0).normal(0, 0.5, (16, 3, 8, 4)).astype("float32")
    return ops.sum(ops.einsum("nid,ijdk->nijk", x, turned), axis=1)


def autoencoder(x):
    """A convolutional autoencoder."""
    x = conv(conv(x, 8, strides=2), 4, strides=2)
    x = layers.Conv2DTranspose(8, 3, 2, padding="same", activation="relu")(x)
    return layers.Conv2DTranspose(3, 3, 2, padding="same", activation="sigmoid")(x)


def pixels(x):
    """A classifier of bytes, its preprocessing inside."""
    return classified(conv(layers.Rescaling(1 / 127.5, -1)(x), 8))


MODELS = {
    "resnet": of_image(resnet),
    "preactivation_resnet": of_image(preactivation_resnet),
    "densenet": of_image(densenet),
    "mobilenet_v2": of_image(mobilenet_v2),
    "mobilenet_v3": of_image(mobilenet_v3),
    "efficientnet": of_image(efficientnet),
    "inception": of_image(inception),
    "xception": of_image(xception),
    "shufflenet": of_image(shufflenet),
    "squeezenet": of_image(squeezenet),
    "convnext": of_image(convnext),
    "convmixer": of_image(convmixer),
    "unet": of_image(unet),
    "attention_unet": of_image(attention_unet),
    "deeplab": of_image(deeplab),
    "feature_pyramid": of_image(feature_pyramid),
    "yolo": of_image(yolo),
    "ssd": of_image(ssd),
    "centernet": of_image(centernet),
    "super_resolution": of_image(super_resolution),
    "cyclegan": of_image(cyclegan),
    "vision_transformer": of_image(vision_transformer),
    "deit": of_image(lambda x: vision_transformer(x, distilled=True)),
    "mobilevit": of_image(mobilevit),
    "swin": of_image(swin),
    "mlp_mixer": of_image(mlp_mixer),
    "cbam": of_image(cbam),
    "capsule": of_image(capsule),
    "autoencoder": of_image(autoencoder),
    "pixels": of_image(pixels, dtype="uint8"),
}

"""Every layer of `keras.layers`: built, quantized, calibrated, trained, converted, compared."""

import keras
import layer_coverage
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq

ROWS = 8
VECTOR, SEQUENCE, IMAGE, VOLUME = (6,), (4, 4), (8, 8, 3), (4, 4, 4, 2)

# Of augmentation layers and lookups, whose gradients stop.
pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")


class Own(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5))

    def call(self, x):
        return ops.matmul(x, self.kernel)


class Around(layers.Wrapper):
    def call(self, x):
        return self.layer(x)


def on(shape, make, **arguments):
    """A layer, made when it is tested, behind a dense layer on inputs of `shape`."""
    return lambda x: make(**arguments)(x), shape


def merge(make, shape=VECTOR):
    return lambda x: make()([x, layers.Dense(x.shape[-1])(x)]), shape


def image(make, **arguments):
    """A layer that reads images with values from 0 to 1."""
    return lambda x: make(**arguments)(x), "image"


def tokens(call):
    """A layer that reads integers."""
    return call, "tokens"


def strings(make, **arguments):
    return lambda x: layers.Embedding(9, 3)(make(**arguments)(x)), "strings"


def saved_model(x):
    module = tf.Module()
    module.serve = tf.function(tf.sin, [tf.TensorSpec((None, 6))])
    path = str(saved_model.folder / "module")
    tf.saved_model.save(module, path)
    return layers.TFSMLayer(path)(x)


def boxes(x):
    found = layers.MaxNumBoundingBoxes(3, bounding_box_format="xyxy")(
        {
            "images": layers.Reshape((2, 2, 4))(x),
            "bounding_boxes": {"boxes": layers.Reshape((4, 4))(x), "labels": x[:, :4]},
        }
    )
    return layers.Flatten()(found["bounding_boxes"]["boxes"])


def table_and_back(x):
    table = layers.ReversibleEmbedding(5, 4)
    return table(table(x), reverse=True)


RANGE = {"value_range": (0, 1)}

CASES = {
    layers.Activation: on(VECTOR, layers.Activation, activation="tanh"),
    layers.ActivityRegularization: on(VECTOR, layers.ActivityRegularization, l2=0.01),
    layers.AdaptiveAveragePooling1D: on(SEQUENCE, layers.AdaptiveAveragePooling1D, output_size=3),
    layers.AdaptiveAveragePooling2D: on(IMAGE, layers.AdaptiveAveragePooling2D, output_size=3),
    layers.AdaptiveAveragePooling3D: on(VOLUME, layers.AdaptiveAveragePooling3D, output_size=3),
    layers.AdaptiveMaxPooling1D: on(SEQUENCE, layers.AdaptiveMaxPooling1D, output_size=3),
    layers.AdaptiveMaxPooling2D: on(IMAGE, layers.AdaptiveMaxPooling2D, output_size=3),
    layers.AdaptiveMaxPooling3D: on(VOLUME, layers.AdaptiveMaxPooling3D, output_size=2),
    layers.Add: merge(layers.Add),
    layers.AdditiveAttention: merge(layers.AdditiveAttention, SEQUENCE),
    layers.AlphaDropout: on(VECTOR, layers.AlphaDropout, rate=0.2),
    layers.Attention: merge(layers.Attention, SEQUENCE),
    layers.AugMix: image(layers.AugMix, **RANGE),
    layers.AutoContrast: image(layers.AutoContrast, **RANGE),
    layers.Average: merge(layers.Average),
    layers.AveragePooling1D: on(SEQUENCE, layers.AveragePooling1D, pool_size=2),
    layers.AveragePooling2D: on(IMAGE, layers.AveragePooling2D, pool_size=2),
    layers.AveragePooling3D: on(
        VOLUME, layers.AveragePooling3D, pool_size=(2, 3, 2), padding="same"
    ),
    layers.BatchNormalization: on(IMAGE, layers.BatchNormalization),
    layers.Bidirectional: on(
        (2, 3), lambda: layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True))
    ),
    layers.CategoryEncoding: tokens(
        lambda x: layers.CategoryEncoding(5, output_mode="multi_hot")(x)
    ),
    layers.CenterCrop: on(IMAGE, layers.CenterCrop, height=4, width=4),
    layers.Concatenate: merge(layers.Concatenate),
    layers.ContrastLimitedAdaptiveHistogramEqualization: image(
        layers.ContrastLimitedAdaptiveHistogramEqualization, **RANGE
    ),
    layers.Conv1D: on(SEQUENCE, layers.Conv1D, filters=3, kernel_size=3),
    layers.Conv1DTranspose: on(SEQUENCE, layers.Conv1DTranspose, filters=3, kernel_size=3),
    layers.Conv2D: on(IMAGE, layers.Conv2D, filters=3, kernel_size=3),
    layers.Conv2DTranspose: on(IMAGE, layers.Conv2DTranspose, filters=3, kernel_size=3),
    layers.Conv3D: on(VOLUME, layers.Conv3D, filters=3, kernel_size=2),
    layers.Conv3DTranspose: on(VOLUME, layers.Conv3DTranspose, filters=3, kernel_size=2),
    layers.ConvLSTM1D: on((2, 6, 2), layers.ConvLSTM1D, filters=2, kernel_size=3),
    layers.ConvLSTM2D: on((2, 6, 6, 2), layers.ConvLSTM2D, filters=2, kernel_size=3),
    layers.ConvLSTM3D: on((2, 4, 4, 4, 2), layers.ConvLSTM3D, filters=2, kernel_size=3),
    layers.Cropping1D: on(SEQUENCE, layers.Cropping1D),
    layers.Cropping2D: on(IMAGE, layers.Cropping2D, cropping=1),
    layers.Cropping3D: on(VOLUME, layers.Cropping3D, cropping=1),
    layers.CutMix: image(layers.CutMix),
    layers.Dense: on(VECTOR, layers.Dense, units=4),
    layers.DepthwiseConv1D: on(SEQUENCE, layers.DepthwiseConv1D, kernel_size=3),
    layers.DepthwiseConv2D: on(IMAGE, layers.DepthwiseConv2D, kernel_size=3),
    layers.Discretization: on(VECTOR, layers.Discretization, bin_boundaries=[-1.0, 0.0, 1.0]),
    layers.Dot: merge(lambda: layers.Dot(1)),
    layers.Dropout: on(VECTOR, layers.Dropout, rate=0.2),
    layers.ELU: on(VECTOR, layers.ELU, alpha=0.5),
    layers.EinsumDense: on(
        SEQUENCE, layers.EinsumDense, equation="abc,cd->abd", output_shape=(4, 3)
    ),
    layers.Embedding: tokens(lambda x: layers.Embedding(5, 4)(x)),
    layers.Equalization: image(layers.Equalization, **RANGE),
    layers.Flatten: on(SEQUENCE, layers.Flatten),
    layers.GRU: on((2, 3), layers.GRU, units=2),
    layers.GRUCell: (lambda x: layers.GRUCell(6)(x, [x])[0], VECTOR),
    layers.GaussianDropout: on(VECTOR, layers.GaussianDropout, rate=0.2),
    layers.GaussianNoise: on(VECTOR, layers.GaussianNoise, stddev=0.2),
    layers.GlobalAveragePooling1D: on(SEQUENCE, layers.GlobalAveragePooling1D),
    layers.GlobalAveragePooling2D: on(IMAGE, layers.GlobalAveragePooling2D),
    layers.GlobalAveragePooling3D: on(VOLUME, layers.GlobalAveragePooling3D),
    layers.GlobalMaxPooling1D: on(SEQUENCE, layers.GlobalMaxPooling1D),
    layers.GlobalMaxPooling2D: on(IMAGE, layers.GlobalMaxPooling2D),
    layers.GlobalMaxPooling3D: on(VOLUME, layers.GlobalMaxPooling3D),
    layers.GroupNormalization: on(IMAGE, layers.GroupNormalization, groups=3),
    layers.GroupQueryAttention: (lambda x: layers.GroupQueryAttention(2, 4, 2)(x, x), SEQUENCE),
    layers.HashedCrossing: tokens(lambda x: layers.HashedCrossing(5)((x[:, :1], x[:, 1:2]))),
    layers.Hashing: tokens(lambda x: layers.Embedding(5, 3)(layers.Hashing(5)(x))),
    layers.Identity: on(VECTOR, layers.Identity),
    layers.InputLayer: (lambda x: x, VECTOR),
    layers.IntegerLookup: tokens(
        lambda x: layers.Embedding(5, 3)(layers.IntegerLookup(vocabulary=[1, 2, 3])(x))
    ),
    layers.LSTM: on((2, 3), layers.LSTM, units=2),
    layers.LSTMCell: (lambda x: layers.LSTMCell(6)(x, [x, x])[0], VECTOR),
    layers.Lambda: on(VECTOR, lambda: layers.Lambda(lambda x: x * 2)),
    layers.Layer: on(VECTOR, Own),
    layers.LayerNormalization: on(SEQUENCE, layers.LayerNormalization),
    layers.LeakyReLU: on(VECTOR, layers.LeakyReLU),
    layers.Masking: on(SEQUENCE, layers.Masking),
    layers.MaxNumBoundingBoxes: (boxes, (16,)),
    layers.MaxPooling1D: on(SEQUENCE, layers.MaxPooling1D, pool_size=2),
    layers.MaxPooling2D: on(IMAGE, layers.MaxPooling2D, pool_size=2),
    layers.MaxPooling3D: on(VOLUME, layers.MaxPooling3D, pool_size=2),
    layers.Maximum: merge(layers.Maximum),
    layers.MelSpectrogram: on(
        (128,),
        layers.MelSpectrogram,
        num_mel_bins=8,
        fft_length=64,
        sequence_stride=32,
        sampling_rate=1000,
    ),
    layers.Minimum: merge(layers.Minimum),
    layers.MixUp: image(layers.MixUp),
    layers.MultiHeadAttention: (lambda x: layers.MultiHeadAttention(2, 4)(x, x), SEQUENCE),
    layers.Multiply: merge(layers.Multiply),
    layers.Normalization: on(VECTOR, layers.Normalization, mean=1.0, variance=4.0),
    layers.PReLU: on(VECTOR, layers.PReLU, alpha_initializer="random_normal"),
    layers.Permute: on(SEQUENCE, layers.Permute, dims=(2, 1)),
    layers.Pipeline: image(
        lambda: layers.Pipeline([layers.Rescaling(2.0), layers.RandomFlip()]),
    ),
    layers.RMSNormalization: on(SEQUENCE, layers.RMSNormalization),
    layers.RNN: on((2, 3), lambda: layers.RNN(layers.SimpleRNNCell(2))),
    layers.RandAugment: image(layers.RandAugment, **RANGE),
    layers.RandomBrightness: image(layers.RandomBrightness, factor=0.2, **RANGE),
    layers.RandomColorDegeneration: image(layers.RandomColorDegeneration, factor=0.2, **RANGE),
    layers.RandomColorJitter: image(layers.RandomColorJitter, **RANGE),
    layers.RandomContrast: image(layers.RandomContrast, factor=0.2, **RANGE),
    layers.RandomCrop: image(layers.RandomCrop, height=8, width=8),
    layers.RandomElasticTransform: image(layers.RandomElasticTransform, **RANGE),
    layers.RandomErasing: image(layers.RandomErasing, **RANGE),
    layers.RandomFlip: image(layers.RandomFlip),
    layers.RandomGaussianBlur: image(layers.RandomGaussianBlur, **RANGE),
    layers.RandomGrayscale: image(layers.RandomGrayscale),
    layers.RandomHue: image(layers.RandomHue, factor=0.2, **RANGE),
    layers.RandomInvert: image(layers.RandomInvert, **RANGE),
    layers.RandomPerspective: image(layers.RandomPerspective),
    layers.RandomPosterization: image(layers.RandomPosterization, factor=4, **RANGE),
    layers.RandomRotation: image(layers.RandomRotation, factor=0.2),
    layers.RandomSaturation: image(layers.RandomSaturation, factor=0.2, **RANGE),
    layers.RandomSharpness: image(layers.RandomSharpness, factor=0.2, **RANGE),
    layers.RandomShear: image(layers.RandomShear),
    layers.RandomTranslation: image(layers.RandomTranslation, height_factor=0.2, width_factor=0.2),
    layers.RandomZoom: image(layers.RandomZoom, height_factor=0.2),
    layers.ReLU: on(VECTOR, layers.ReLU),
    layers.RepeatVector: on(VECTOR, layers.RepeatVector, n=2),
    layers.Rescaling: on(VECTOR, layers.Rescaling, scale=2.0, offset=1.0),
    layers.Reshape: on(VECTOR, layers.Reshape, target_shape=(2, 3)),
    layers.Resizing: on(IMAGE, layers.Resizing, height=4, width=4),
    layers.ReversibleEmbedding: tokens(table_and_back),
    layers.STFTSpectrogram: on(
        (128, 1), layers.STFTSpectrogram, frame_length=64, frame_step=32, fft_length=64
    ),
    layers.SeparableConv1D: on(SEQUENCE, layers.SeparableConv1D, filters=3, kernel_size=3),
    layers.SeparableConv2D: on(IMAGE, layers.SeparableConv2D, filters=3, kernel_size=3),
    layers.SimpleRNN: on((2, 3), layers.SimpleRNN, units=2),
    layers.SimpleRNNCell: (lambda x: layers.SimpleRNNCell(6)(x, [x])[0], VECTOR),
    layers.Softmax: on(VECTOR, layers.Softmax),
    layers.Solarization: image(
        layers.Solarization, threshold_factor=0.5, addition_factor=0.3, **RANGE
    ),
    layers.SpatialDropout1D: on(SEQUENCE, layers.SpatialDropout1D, rate=0.2),
    layers.SpatialDropout2D: on(IMAGE, layers.SpatialDropout2D, rate=0.2),
    layers.SpatialDropout3D: on(VOLUME, layers.SpatialDropout3D, rate=0.2),
    layers.SpectralNormalization: on(VECTOR, lambda: layers.SpectralNormalization(layers.Dense(4))),
    layers.StackedRNNCells: (
        lambda x: layers.StackedRNNCells([layers.SimpleRNNCell(6), layers.GRUCell(6)])(x, [x, x])[
            0
        ],
        VECTOR,
    ),
    layers.StringLookup: strings(layers.StringLookup, vocabulary=["a", "b"]),
    layers.Subtract: merge(layers.Subtract),
    layers.TFSMLayer: (saved_model, VECTOR),
    layers.TextVectorization: strings(
        layers.TextVectorization, vocabulary=["a", "b"], output_sequence_length=4
    ),
    layers.TimeDistributed: on(SEQUENCE, lambda: layers.TimeDistributed(layers.Dense(3))),
    layers.UnitNormalization: on(VECTOR, layers.UnitNormalization),
    layers.UpSampling1D: on(SEQUENCE, layers.UpSampling1D),
    layers.UpSampling2D: on(IMAGE, layers.UpSampling2D),
    layers.UpSampling3D: on(VOLUME, layers.UpSampling3D),
    layers.Wrapper: on(VECTOR, lambda: Around(layers.Dense(4))),
    layers.ZeroPadding1D: on(SEQUENCE, layers.ZeroPadding1D),
    layers.ZeroPadding2D: on(IMAGE, layers.ZeroPadding2D),
    layers.ZeroPadding3D: on(VOLUME, layers.ZeroPadding3D),
}

# Layers whose frameworks are not installed with tfquant.
MISSING = {
    layers.FlaxLayer: "flax",
    layers.JaxLayer: "jax",
    layers.TorchModuleWrapper: "torch",
}

# They enlarge what quantization left of small differences.
SENSITIVE = {
    layers.LayerNormalization,
    layers.MelSpectrogram,
    layers.RMSNormalization,
    layers.STFTSpectrogram,
    layers.UnitNormalization,
}

CLAIMS = {kind: claim for claim, kinds in layer_coverage.COVERAGE.items() for kind in kinds}
LAYERS = {x for x in vars(layers).values() if isinstance(x, type) and issubclass(x, layers.Layer)}


def test_every_layer_has_one_place_in_the_table():
    placed = [kind for kinds in layer_coverage.COVERAGE.values() for kind in kinds]
    assert len(placed) == len(set(placed))
    assert set(placed) == LAYERS
    assert set(CASES) | set(MISSING) == LAYERS


def model_and_data(case, rng):
    make, form = case
    floats = lambda shape: rng.normal(size=(ROWS, *shape)).astype(np.float32)  # noqa: E731
    if form == "image":
        x, data = keras.Input(IMAGE), rng.uniform(size=(ROWS, *IMAGE)).astype(np.float32)
        y = make(x)
    elif form == "tokens":
        x, data = keras.Input((3,), dtype="int32"), rng.integers(0, 5, (ROWS, 3)).astype(np.int32)
        y = make(x)
    elif form == "strings":
        x, data = keras.Input((1,), dtype="string"), np.array([["a"], ["b"]] * (ROWS // 2))
        y = make(x)
    else:
        x, data = keras.Input(form), floats(form)
        y = make(layers.Dense(form[-1], name="before")(x))
    return keras.Model(x, layers.Dense(2, name="after")(y)), data


def outcome(report):
    """What the report says became of the model's layers."""
    if report.front_layers:
        return layer_coverage.FRONT
    reasons = [operator.reason for operator in report.float_operators]
    if any("only its weights" in reason for reason in reasons):
        return layer_coverage.WEIGHTS
    return layer_coverage.FLOAT if reasons else layer_coverage.INTEGER


@pytest.mark.parametrize("kind", sorted(CASES, key=lambda t: t.__name__), ids=lambda t: t.__name__)
def test_what_the_table_says_of_a_layer_is_so(kind, rng, tmp_path):
    keras.utils.set_random_seed(0)
    saved_model.folder = tmp_path
    model, data = model_and_data(CASES[kind], rng)
    feed = tf.constant(data)
    quantized = tfq.quantize_model(model)
    tfq.calibrate(quantized, data, observer="min_max", progress=False)
    expected, received = (np.asarray(m(feed, training=False)) for m in (model, quantized))
    tolerance = 0.3 if kind in SENSITIVE else 0.06
    assert np.abs(received - expected).max() <= tolerance * np.abs(expected).max()

    report = tfq.to_tflite(quantized, tmp_path / "model.tflite", progress=False)
    assert not report.lost_layers
    claim = CLAIMS[kind]
    assert outcome(report) == (layer_coverage.INTEGER if claim is layer_coverage.NOTHING else claim)
    if claim is layer_coverage.NOTHING:
        known = {"QUANTIZE", "FULLY_CONNECTED", "-"}
        assert {layer.operator for layer in report.layers} <= known
    # One step of a kernel with a table may become some at the end; all others agree.
    inexact = any(layer.arithmetic != "exact" for layer in report.layers)
    assert report.end_to_end.largest <= (4 if inexact or claim is layer_coverage.FLOAT else 1)

    quantized.compile("sgd", "mse", run_eagerly=True)  # A graph takes longer to trace.
    before = [v.numpy() for v in quantized.trainable_variables]
    quantized.fit(feed, expected, batch_size=ROWS, verbose=0)
    after = [v.numpy() for v in quantized.trainable_variables]
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))
    assert all(np.isfinite(v).all() for v in after)


@pytest.mark.parametrize("kind", MISSING, ids=lambda t: t.__name__)
def test_a_layer_of_another_framework_needs_it(kind):
    pytest.importorskip(MISSING[kind], reason=f"{MISSING[kind]} is not installed")

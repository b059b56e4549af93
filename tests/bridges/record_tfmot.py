"""Records small networks of Keras 2, two of them trained by tfmot, with what they compute.

Run it where tensorflow-model-optimization is installed, which needs TensorFlow and `tf_keras` of
one version, in an environment of its own (0.8.1 with 2.21 recorded what is here):

    python tests/bridges/record_tfmot.py tests/bridges
"""

import json
import os
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

layers = tf_keras.layers


def functional():
    x = inputs = layers.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.BatchNormalization(name="norm_of_depthwise")(y)
    y = layers.ReLU(6.0, name="relu6")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.Conv2D(8, 1, activation="relu", name="pointwise")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    return tf_keras.Model(inputs, layers.Dense(10, name="dense")(x), name="network")


def sequential():
    return tf_keras.Sequential(
        [
            layers.Conv2D(8, 3, activation="relu", input_shape=(16, 16, 3), name="conv"),
            layers.DepthwiseConv2D(3, strides=2, use_bias=False, name="depthwise"),
            layers.BatchNormalization(name="norm"),
            layers.Activation("relu", name="relu"),
            layers.Dropout(0.1, name="dropout"),
            layers.AveragePooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="dense"),
        ],
        name="network",
    )


def plain():
    x = inputs = layers.Input((12, 6), name="rows")
    inner = tf_keras.Sequential(
        [
            layers.Conv1D(8, 3, padding="same", input_shape=(12, 6), name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
        ],
        name="inner",
    )
    x = inner(x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True, name="lstm"), name="both")(x)
    x = layers.GRU(5, name="gru")(x)
    return tf_keras.Model(inputs, layers.Dense(3, name="dense")(x), name="plain")


def values(model):
    """Values of the variables by `layer|variable`."""
    found = {}
    for layer in model.layers:
        for variable in layer.weights:
            name = variable.name.rpartition("/")[2].partition(":")[0]
            found[f"{layer.name}|{name}"] = variable.numpy()
    return found


def record_plain(folder):
    rng, model = np.random.default_rng(0), plain()
    model.set_weights([rng.uniform(0.1, 0.6, w.shape) for w in model.get_weights()])
    x = rng.normal(size=(4, 12, 6)).astype("float32")
    model.save(f"{folder}/keras_2.h5", include_optimizer=False)
    np.savez_compressed(f"{folder}/keras_2.npz", x=x, outputs=model.predict(x, verbose=0))


def record(network, path):
    tf_keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 16, 16, 3)).astype("float16").astype("float32")
    labels = (x.mean((1, 2)) @ rng.normal(size=(3, 10))).argmax(-1)
    model = tfmot.quantization.keras.quantize_model(network())
    logits = network is functional
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(tf_keras.optimizers.Adam(3e-3), loss)
    model.fit(x, labels, epochs=8, verbose=0, batch_size=16)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs, x = [], x[:8]
    for row in x:
        interpreter.set_tensor(source["index"], row[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"])[0])
    constants = {}
    operators = interpreter._get_ops_details()  # No public name says what is computed.
    computed = {source["index"], *(i for x in operators for i in x["outputs"])}
    for detail in interpreter.get_tensor_details():
        is_matrix = detail["dtype"] == np.int8 and len(detail["shape"]) in (2, 4)
        if is_matrix and detail["index"] not in computed:
            constants[f"constant|{len(constants)}"] = interpreter.get_tensor(detail["index"])
    np.savez_compressed(
        path,
        config=json.dumps(json.loads(model.to_json())),
        x=x.astype("float16"),
        fake_quantized=model.predict(x, verbose=0),
        outputs=np.stack(outputs),
        **{f"weight|{name}": value for name, value in values(model).items()},
        **constants,
    )


if __name__ == "__main__":
    record_plain(sys.argv[1])
    record(functional, f"{sys.argv[1]}/tfmot_functional.npz")
    record(sequential, f"{sys.argv[1]}/tfmot_sequential.npz")

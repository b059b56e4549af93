"""Choosing which layers are quantized: by name, by type, or by marking them.

python examples/choose_layers.py
"""

import os
import tempfile

import keras
import numpy as np

import tfquant as tfq

keras.utils.set_random_seed(0)


def network(mark=lambda layer: layer):
    """A small classifier; `mark` is applied to the layers of its body."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = mark(keras.layers.Conv2D(16, 3, activation="relu", name="stem"))(inputs)
    x = mark(keras.layers.Conv2D(32, 3, activation="relu", name="body"))(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(10, activation="softmax", name="head")(x)
    return keras.Model(inputs, outputs, name="small")


images = np.random.default_rng(0).uniform(0, 1, (64, 16, 16, 3)).astype("float32")
model = network()
choices = {
    "all layers": tfq.quantize_model(model),
    "all but 'head'": tfq.quantize_model(model, skip=["head"]),
    "all but Dense": tfq.quantize_model(model, skip=[keras.layers.Dense]),
    "marked layers": tfq.quantize_apply(network(tfq.quantize_annotate_layer)),
    "marked model": tfq.quantize_apply(tfq.quantize_annotate_model(model, skip=["head"])),
}

with tempfile.TemporaryDirectory() as folder:
    for label, quantized in choices.items():
        tfq.calibrate(quantized, images, progress=False)
        path = os.path.join(folder, "small.tflite")
        report = tfq.to_tflite(quantized, path, progress=False)
        summary = tfq.inspect(path)
        left = ", ".join(op.operator for op in summary.float_operators) or "none"
        print(f"{label:15} {report.quantized_bytes:6,} bytes, float operators: {left}")

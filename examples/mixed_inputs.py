"""Two inputs, calibrated from a dict of arrays.

python examples/mixed_inputs.py
"""

import os
import tempfile

import keras
import numpy as np

import tfquant as tfq

keras.utils.set_random_seed(0)

image = keras.Input((16, 16, 1), name="image")
sensors = keras.Input((5,), name="sensors")
x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="conv")(image)
x = keras.layers.Flatten(name="flatten")(x)
y = keras.layers.Dense(16, activation="relu", name="dense")(sensors)
x = keras.layers.Concatenate(name="join")([x, y])
model = keras.Model([image, sensors], keras.layers.Dense(3, activation="softmax", name="head")(x))

rng = np.random.default_rng(0)
data = {
    "image": rng.uniform(0, 1, (128, 16, 16, 1)).astype("float32"),
    "sensors": rng.normal(0, 3, (128, 5)).astype("float32"),
}

quantized = tfq.quantize_model(model)
tfq.calibrate(quantized, data, progress=False)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "mixed.tflite")
    print(tfq.to_tflite(quantized, path, progress=False))
    print(tfq.inspect(path))
    parity = tfq.compare(quantized, path, data, progress=False)

print(f"{parity.differing} of {parity.values} values differ on {parity.rows} rows")

"""MobileNet from keras.applications to an 8-bit file, in three lines.

python examples/ptq_mobilenet.py [WEIGHTS.h5]

Without a file of weights the network keeps random ones: sizes and parity are then those of the
trained network, its predictions mean nothing.
"""

import sys

import keras
import numpy as np

import tfquant as tfq

SIZE = 96

keras.utils.set_random_seed(0)
weights = sys.argv[1] if len(sys.argv) > 1 else None
model = keras.applications.MobileNet((SIZE, SIZE, 3), alpha=0.25, weights=None)
if weights:
    model.load_weights(weights)

# Stands for a hundred photographs, preprocessed to -1..1: smooth, not white noise.
rng = np.random.default_rng(0)
coarse = rng.uniform(-1, 1, (100, 6, 6, 3)).astype("float32")
images = keras.ops.convert_to_numpy(keras.ops.image.resize(coarse, (SIZE, SIZE)))

quantized = tfq.quantize_model(model, "w8a8")
tfq.calibrate(quantized, images)
report = tfq.to_tflite(quantized, "mobilenet.tflite")

print(report)
print(f"weights: {weights or 'random, for want of a file'}")

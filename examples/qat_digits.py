"""Quantization-aware training: two-bit weights, trained back to the float model's accuracy.

python examples/qat_digits.py

Look at the run with `tensorboard --logdir logs`.
"""

import keras

import tfquant as tfq
from tfquant import demo

keras.utils.set_random_seed(0)
(images, labels), (test_images, test_labels) = demo.digits()
model = demo.network()
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images, labels, epochs=8, verbose=0)

# After training: seconds, no labels.
quantized = tfq.quantize_model(model, "w2a8", weight_quantizer="learned_step")
tfq.calibrate(quantized, images[:200], progress=False)
epochs, batch_size = 12, 32
rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * len(images) // batch_size)
quantized.compile(
    keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
)
_, before = quantized.evaluate(test_images, test_labels, verbose=0)

# With training: the same object, Keras's own fit.
quantized.fit(
    images,
    labels,
    batch_size,
    epochs,
    verbose=0,
    callbacks=[tfq.FreezeBatchNorm(9), tfq.TerminateOnNaN(), tfq.QuantizationTensorBoard("logs")],
)
_, after = quantized.evaluate(test_images, test_labels, verbose=0)
report = tfq.to_tflite(quantized, "digits_w2a8.tflite", progress=False)

print(report)
print(f"float {model.evaluate(test_images, test_labels, verbose=0)[1]:.4f}")
print(f"w2a8 calibrated {before:.4f}, trained {after:.4f}")

"""A layer of your own: tell tfquant which weights and outputs to quantize.

python examples/custom_layer.py
"""

import os
import tempfile

import keras
import numpy as np

import tfquant as tfq

keras.utils.set_random_seed(0)


@keras.saving.register_keras_serializable(package="example")
class ChannelScale(keras.layers.Layer):
    """Multiplies each channel by a trained factor."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=input_shape[-1:], initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


@keras.saving.register_keras_serializable(package="example")
class ChannelScaleConfig(tfq.QuantizeConfig):
    """8-bit factors, 8-bit output."""

    def get_weights_and_quantizers(self, layer):
        spec = tfq.QuantSpec(8, symmetric=True, narrow_range=True)
        return [(layer.factor, tfq.quantizers.AbsMax(spec))]

    def get_output_quantizers(self, layer):
        return [tfq.quantizers.Static(tfq.QuantSpec(8))]


registry = tfq.QuantizeRegistry()  # Knows Keras's layers; add your own.
registry.register(ChannelScale, lambda layer, scheme: ChannelScaleConfig())

inputs = keras.Input((16, 16, 3), name="image")
x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
x = ChannelScale(name="scale")(x)
x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
model = keras.Model(inputs, keras.layers.Dense(4, name="head")(x))
images = np.random.default_rng(0).uniform(0, 1, (64, 16, 16, 3)).astype("float32")

quantized = tfq.quantize_model(model, registry=registry)
tfq.calibrate(quantized, images, progress=False)
print(tfq.summarize(quantized))

with tempfile.TemporaryDirectory() as folder:
    report = tfq.to_tflite(quantized, os.path.join(folder, "custom.tflite"), progress=False)
    quantized.save(os.path.join(folder, "custom.keras"))
    loaded = keras.saving.load_model(os.path.join(folder, "custom.keras"))

print()
print(report)
same = np.array_equal(quantized.predict(images, verbose=0), loaded.predict(images, verbose=0))
print(f"saved, loaded, and the outputs are the same: {same}")

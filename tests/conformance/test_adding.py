"""What is added by one call, from outside, comes out of the converter: nothing else lists it."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq
from tfquant import devices
from tfquant.devices import DEVICES, OWN, Operator
from tfquant.devices.litert import LITERT
from tfquant.kernels.tables import interpolate
from tfquant.litert.flatbuffer import File
from tfquant.quantizers.families import WEIGHT_QUANTIZERS, family
from tfquant.quantizers.weight import WeightQuantizer, positive
from tfquant.registry.keras_layers import operator_config


def rows(model, count=32):
    return np.random.default_rng(0).normal(size=(count, *model.input_shape[1:])).astype("float32")


def converted(model, path, scheme="w8a8", **settings):
    """Returns the report of the file, and the quantized model."""
    data = rows(model)
    q = tfq.calibrate(tfq.quantize_model(model, scheme, **settings), data, progress=False)
    report = tfq.to_tflite(q, path, samples=data, progress=False)
    assert not report.float_operators
    assert report.op_by_op.differing == 0 == report.end_to_end.differing
    return report, q


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Magnitude(layers.Layer):
    def call(self, x):
        return ops.abs(x)


def test_an_elementwise_layer(tmp_path):
    registry = tfq.QuantizeRegistry()
    registry.register(Magnitude, lambda layer, scheme: operator_config("ABS", scheme))
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), Magnitude(), layers.Dense(2)])
    for scheme in ("w8a8", "w8a16"):
        report, _ = converted(model, tmp_path / "m.tflite", scheme, registry=registry)
        assert "ABS" in {layer.operator for layer in report.layers}


def test_a_scheme(tmp_path):
    scheme = tfq.Scheme("w5a8", 5, 8)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten()])
    report, q = converted(model, tmp_path / "m.tflite", scheme)
    assert report.layers[1].weight_bits == 5
    packed = tfq.to_packed(q)
    np.testing.assert_array_equal(packed(rows(model)), q(rows(model)))


def test_a_family_of_quantizers(tmp_path, monkeypatch):
    @keras.saving.register_keras_serializable(package="tfquant_tests")
    class PowersOfTwo(WeightQuantizer):
        """`scale = 2**ceil(log2(max(|w|) / qmax))`."""

        def real_steps(self, x=None):
            largest = positive(self.largest(x) / self.spec.qmax, self.spec)
            return 2.0 ** ops.ceil(ops.log2(largest))

    monkeypatch.setitem(WEIGHT_QUANTIZERS, "powers_of_two", None)
    del WEIGHT_QUANTIZERS["powers_of_two"]
    family(WEIGHT_QUANTIZERS, "powers_of_two")(PowersOfTwo)
    with pytest.raises(ValueError, match=r"registered once\. Received: 'powers_of_two'"):
        family(WEIGHT_QUANTIZERS, "powers_of_two")
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten()])
    path = tmp_path / "m.tflite"
    _, q = converted(model, path, "w4a8", weight_quantizer="powers_of_two")
    file = File(path.read_bytes())
    (conv,) = [op for op in file.ops if op.name == "CONV_2D"]
    exponents = np.log2(file.scale(conv.inputs[1]).astype(np.float64))
    np.testing.assert_array_equal(exponents, np.rint(exponents))
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded(rows(model)), q(rows(model)))


@pytest.mark.parametrize("known", [False, True])
def test_an_operator_of_a_device_at_a_width(known, tmp_path, monkeypatch):
    # LiteRT interpolates logarithms of 16 bits, too; `litert` has no row for them.
    wide = Operator(OWN, {16: interpolate("LOG")}, num_bits=(16,), inexact={16: "table"})
    operators = {**LITERT.operators, **({"LOG": wide} if known else {})}
    own = dataclasses.replace(LITERT, name="own", operators=operators)
    monkeypatch.setitem(DEVICES, own.name, own)
    assert devices.get("own") is own
    x = keras.Input((6,))
    model = keras.Model(x, ops.log(ops.abs(layers.Dense(4)(x)) + 1.0))
    data = rows(model)
    q = tfq.calibrate(tfq.quantize_model(model, "w8a16", device="own"), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=data, progress=False)
    assert ("LOG" in {op.operator for op in report.float_operators}) != known
    assert report.end_to_end.largest <= 1 if known else True

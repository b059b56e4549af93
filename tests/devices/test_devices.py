"""A model says which device it simulates, and everything asks that device."""

import keras
import numpy as np
import pytest
from fuzz import OF_FILES
from keras import layers

import tfquant as tfq
from tfquant import devices
from tfquant.devices import DEVICES, Product
from tfquant.devices.litert import LITERT
from tfquant.devices.litert_arm import LITERT_ARM
from tfquant.numerics import QuantParams, QuantSpec
from tfquant.quantizers import Grid
from tfquant.wrappers import Quantize, QuantizeWrapper


def convolutional():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(12, 3, activation="relu")(x)
    y = layers.Conv2D(8, 3, strides=2)(y)
    y = layers.Dense(5)(layers.Flatten()(y))
    return keras.Model(x, layers.Softmax()(y))


def rows(model, count=32):
    return np.random.default_rng(0).normal(size=(count, *model.input_shape[1:])).astype("float32")


def quantized(scheme="w8a8", device=None, make=convolutional):
    model = make()
    q = tfq.quantize_model(model, scheme, device=device)
    return tfq.calibrate(q, rows(model), progress=False)


def wrappers(model):
    kinds = Quantize, QuantizeWrapper
    return [layer for layer in model.layers if isinstance(layer, kinds)]


@pytest.mark.parametrize("device", DEVICES)
def test_every_layer_knows_the_device_after_saving_and_loading(device, tmp_path):
    q = quantized(device=device)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    for model in (q, loaded):
        assert {layer.device.name for layer in wrappers(model)} == {device}
    x = rows(q)
    np.testing.assert_array_equal(q(x), loaded(x))


def test_an_annotated_model_takes_a_device():
    q = tfq.quantize_apply(tfq.quantize_annotate_model(convolutional()), device="litert_arm")
    assert {layer.device.name for layer in wrappers(q)} == {"litert_arm"}


def test_the_default_is_the_processor_at_hand():
    assert {layer.device.name for layer in wrappers(quantized())} == {devices.here()}


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`device` must be one of 'litert'.* Received: 'toaster'"):
        tfq.quantize_model(convolutional(), device="toaster")


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
@pytest.mark.parametrize("device", [d.name for d in OF_FILES.values() if d.runs_here()])
def test_a_file_computes_what_the_device_is_said_to(device, scheme, tmp_path):
    if device == "tflm":
        pytest.importorskip("tflite_micro", reason="needs the extra tfquant[tflm]: tflite-micro")
    report = tfq.to_tflite(quantized(scheme, device), tmp_path / "q.tflite", progress=False)
    assert report.device == device
    assert report.op_by_op.differing == 0 == report.end_to_end.differing
    assert not report.broken_claims


def test_devices_compute_different_integers():
    x, outputs = rows(convolutional()), {}
    for device in DEVICES:
        outputs[device] = np.asarray(quantized("w4a8", device)(x))
    first, *others = outputs.values()
    assert any((first != other).any() for other in others)


def test_what_cannot_run_here_is_written_and_not_compared(tmp_path):
    elsewhere = next(device.name for device in DEVICES.values() if not device.runs_here())
    report = tfq.to_tflite(quantized("w4a8", elsewhere), tmp_path / "q.tflite", progress=False)
    assert report.end_to_end is None and report.op_by_op is None
    assert f"not compared with {elsewhere}" in str(report)
    assert (tmp_path / "q.tflite").exists()


def test_litert_does_not_stand_for_onnx_runtime(tmp_path):
    report = tfq.to_tflite(quantized(device="onnxruntime"), tmp_path / "q.tflite", progress=False)
    assert report.end_to_end is None and "not compared with onnxruntime" in str(report)
    litert = tfq.to_tflite(quantized(), tmp_path / "l.tflite", progress=False)
    assert "onnxruntime" not in litert.elsewhere


def test_a_file_can_be_run_elsewhere(tmp_path):
    from tfquant.litert.interpreter import run

    calls = []

    def phone(content, arrays):
        calls.append(len(arrays[0]))
        return [np.zeros_like(y) for y in run(content, arrays)]

    q = quantized("w4a8", "litert_arm")
    report = tfq.to_tflite(
        q, tmp_path / "q.tflite", run=phone, strict=False, samples=rows(q), progress=False
    )
    assert calls and report.op_by_op.differing > 0
    assert report.broken_claims
    assert "SAID TO BE EXACT, AND DIFFER" in str(report)


def test_the_report_says_what_other_devices_round_otherwise(tmp_path):
    report = tfq.to_tflite(
        quantized("w4a8", "litert"), tmp_path / "q.tflite", verify=False, progress=False
    )
    assert report.elsewhere["litert_arm"] == ["INT4 CONV_2D", "INT8 SOFTMAX"]
    assert "round otherwise on device='litert_arm': INT4 CONV_2D, INT8 SOFTMAX" in str(report)
    assert "litert" not in report.elsewhere


@pytest.mark.parametrize(
    ("bits", "device", "stored"), [(3, "litert_arm", 4), (6, "litert_reference", 8)]
)
def test_the_report_names_the_width_in_which_the_file_stores_weights(
    bits, device, stored, tmp_path
):
    scheme = tfq.Scheme("own", bits, 8)
    report = tfq.to_tflite(
        quantized(scheme, "litert"), tmp_path / "q.tflite", verify=False, progress=False
    )
    found = {name for name in report.elsewhere[device] if name.endswith("CONV_2D")}
    assert found == {f"INT{stored} CONV_2D"}


@pytest.mark.parametrize(
    ("channels", "depth", "columns", "expected"),
    [
        (4, 8, 1, "two_roundings"),
        (3, 8, 1, "one_rounding"),
        (4, 7, 1, "one_rounding"),
        (4, 8, 2, "one_rounding"),
        (4, 8, None, "one_rounding"),
    ],
)
def test_arm_rounds_a_product_with_one_vector_as_x86_does(channels, depth, columns, expected):
    product = Product("CONV_2D", 4, 8, depth, channels, columns)
    assert LITERT_ARM.rounding(product) == expected
    assert LITERT.rounding(product) == "two_roundings"


def test_a_device_that_lacks_an_operator_leaves_the_layer_float():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.ELU()])
    for device, name in (("litert", "quant_"), ("litert_reference", "")):
        q = tfq.quantize_model(model, device=device)
        assert q.layers[-1].name.startswith(name or "elu")


@pytest.mark.parametrize("scheme", ["w8", "w4_g32", "w8a8_dynamic", "f16"])
def test_integers_alone_in_weights_are_refused_for_microcontrollers(scheme):
    with pytest.raises(ValueError, match=rf"device='tflm' .* Received: scheme '{scheme}'"):
        tfq.quantize_model(convolutional(), scheme, device="tflm")


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_refusals_are_of_operators_that_the_device_lacks(device):
    assert not set(device.refusals) & set(device.operators)
    for name, words in device.refusals.items():
        assert device.why_not(name, 8) == words


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
def test_an_emulated_phone_computes_what_litert_arm_does(scheme, phone, tmp_path):
    q = quantized(scheme, "litert_arm")
    report = tfq.to_tflite(q, tmp_path / "q.tflite", run=phone.run, progress=False)
    assert report.op_by_op.differing == 0 == report.end_to_end.differing


@pytest.mark.parametrize(("length", "integer"), [(256, True), (257, False)])
def test_a_long_softmax_of_16_bits_stays_float_by_name(length, integer, caplog):
    x = keras.Input((length,))
    model = keras.Model(x, layers.Softmax(name="scores")(layers.Dense(length)(x)))
    q = tfq.quantize_model(model, "w8a16")
    assert isinstance(q.layers[-1], QuantizeWrapper) == integer
    assert ("'scores' stays float: " in caplog.text) == (not integer)


def test_a_softmax_of_16_bits_keeps_what_the_longest_vector_holds():
    scale, q = 8 * 4 / 32768, np.random.default_rng(0).normal(size=(20, 256)) * 8192
    grid = Grid(QuantParams(np.float32(scale), 0.0), QuantSpec(16, symmetric=True))
    grid = grid._replace(steps=keras.ops.convert_to_tensor(np.rint(q), "float32"))
    found = np.asarray(LITERT.compute("SOFTMAX", (grid,), grid)) / 32768
    expected = np.asarray(keras.ops.softmax(np.rint(q) * scale))
    noise = ((found - expected) ** 2).sum() / (expected**2).sum()
    assert noise < 1e-3  # 30 dB: at 11,000 values 9 dB are left.


@pytest.mark.parametrize("function", ["elu", "hard_silu"])
def test_what_has_no_kernel_of_16_bits_stays_float(function, tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Activation(function)])
    q = tfq.calibrate(tfq.quantize_model(model, "w8a16"), rows(model), progress=False)
    report = tfq.to_tflite(q, tmp_path / "q.tflite", progress=False)
    assert report.float_operators and report.op_by_op.differing == 0


@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_a_graph_computes_the_integers_that_calls_do(function):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Activation(function)])
    q = tfq.calibrate(tfq.quantize_model(model, "w8a16"), rows(model), progress=False)
    np.testing.assert_array_equal(q.predict(rows(model), verbose=0), q(rows(model)))

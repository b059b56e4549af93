"""Models for microcontrollers against TensorFlow Lite Micro's own interpreter."""

import keras
import pytest
from keras import layers
from small import chain, trained

import tfquant as tfq

pytest.importorskip("tflite_micro", reason="needs the extra tfquant[tflm]: tflite-micro")

NETWORKS = (
    "mlperf_tiny/ad_autoencoder",
    "mlperf_tiny/ic_resnet8",
    "mlperf_tiny/kws_dscnn",
    "mlperf_tiny/vww_mobilenet",
    "kws_rnn/kws_gru_s",
    "kws_rnn/kws_lstm_s",
)


def converted(model, rows, scheme, path):
    q = tfq.calibrate(tfq.quantize_model(model, scheme, device="tflm"), rows, progress=False)
    return tfq.to_tflite(q, path, progress=False)


def assert_same(report):
    assert report.device == "tflm" and not report.not_compared
    assert report.op_by_op.values > 0 == report.op_by_op.differing
    assert report.end_to_end.differing == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_what_microcontrollers_do(name, scheme, tmp_path):
    assert_same(converted(*trained(name), scheme, tmp_path / "q.tflite"))


def convolutional(*last):
    """Every operator that multiplies by weights, and a clamp between two grids."""
    parts = layers.Conv2D(8, 3, activation="relu"), layers.DepthwiseConv2D(2)
    parts += layers.MaxPooling2D(2), layers.ReLU(6.0), layers.Conv2DTranspose(4, 2)
    return chain((8, 8, 3), *parts, layers.Flatten(), layers.Dense(5), *last)


def rows_of(model, rng, scale=3.0):
    return (rng.normal(size=(16, *model.input_shape[1:])) * scale).astype("float32")


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
def test_a_small_network_computes_what_microcontrollers_do(scheme, rng, tmp_path):
    model = convolutional(layers.Softmax())
    assert_same(converted(model, rows_of(model, rng), scheme, tmp_path / "q.tflite"))


@pytest.mark.parametrize("cell", [layers.LSTM, layers.GRU])
def test_a_recurrent_layer_computes_what_microcontrollers_do(cell, rng, tmp_path):
    model = chain((3, 4), cell(4), layers.Dense(2))
    assert_same(converted(model, rows_of(model, rng), "w8a8", tmp_path / "q.tflite"))


def test_weights_have_the_least_bits_that_microcontrollers_take(rng, tmp_path):
    model = convolutional()
    scheme = tfq.Scheme("two", 2, 8)
    report = converted(model, rows_of(model, rng), scheme, tmp_path / "q.tflite")
    bits = {layer.operator: layer.weight_bits for layer in report.layers if layer.weight_bits}
    four = dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), 4)
    assert bits == {**four, "FULLY_CONNECTED": 8, "TRANSPOSE_CONV": 8}
    assert_same(report)


def test_what_microcontrollers_lack_is_named_and_nothing_written(rng, tmp_path):
    model = chain((6,), layers.Dense(4), layers.Activation("gelu", name="bump"), layers.Dense(2))
    words = r"TensorFlow Lite Micro does not run GELU of layer 'quantize_bump'.*Didn't find op"
    with pytest.raises(RuntimeError, match=words):
        converted(model, rows_of(model, rng), "w8a8", tmp_path / "q.tflite")
    assert not list(tmp_path.iterdir())


def test_an_operator_of_floats_stays_float_and_runs(rng, tmp_path):
    model = chain((6,), layers.Dense(4), layers.Activation("exponential"), layers.Dense(2))
    report = converted(model, rows_of(model, rng, 1.0), "w8a8", tmp_path / "q.tflite")
    assert [operator.operator for operator in report.float_operators] == ["EXP"]
    assert_same(report)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Resizing(4, 4),
        lambda: layers.UpSampling2D(2, interpolation="bilinear"),
        lambda: layers.GlobalMaxPooling2D(keepdims=True),
        lambda: layers.LeakyReLU(),
        lambda: layers.UnitNormalization(),
    ],
    ids=["resizing", "upsampling", "maximum", "leaky", "unit"],
)
@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_what_has_no_kernel_of_a_width_stays_float(layer, scheme, rng, tmp_path):
    model = chain((6, 6, 2), layers.Conv2D(3, 1), layer(), layers.Conv2D(2, 1))
    report = converted(model, rows_of(model, rng), scheme, tmp_path / "q.tflite")
    assert report.op_by_op.differing == 0
    # A float layer adds in another order than Keras: a value behind it falls on the other side.
    assert report.end_to_end.largest <= (1 if report.float_operators else 0)


def test_weights_of_layers_that_stay_float_are_no_integers(rng, tmp_path):
    cell = keras.layers.SimpleRNNCell(4)
    x = keras.Input((4,))
    y = layers.Dense(4)(x)
    model = keras.Model(x, layers.Dense(2)(cell(y, [y])[0]))
    assert_same(converted(model, rows_of(model, rng), "w8a8", tmp_path / "q.tflite"))


def test_without_the_interpreter_the_report_says_that_nothing_was_compared(
    rng, tmp_path, monkeypatch
):
    monkeypatch.setattr("tfquant.litert.micro.is_there", lambda: False)
    model = convolutional()
    report = converted(model, rows_of(model, rng), "w8a8", tmp_path / "q.tflite")
    assert report.end_to_end is None and "not compared with tflm" in str(report)

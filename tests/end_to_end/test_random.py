"""Models that nobody thought of: written, compared, and what the report says of them is so."""

import re

import keras
import numpy as np
import pytest
from architectures.measure import RIVALS, flat, rival_sqnr, sqnr, stock
from random_models import draw_model

import tfquant as tfq
from tfquant.wrappers import Quantize, QuantizeWrapper

pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")


def seeds(default, count):
    """The first ones every time, many by hand: `pytest -m long tests/end_to_end/test_random.py`."""
    return [pytest.param(n, marks=() if n < default else pytest.mark.long) for n in range(count)]


# The TFLite converter's file, which leaves small weights float under other schemes, may be this
# much closer in dB, where an output of few values is rounded by chance.
BEHIND = 6.0


def quantized(model, data, scheme, **settings):
    """Returns a model quantized, and calibrated where its scheme asks for it."""
    if not np.isfinite(flat(model(data, training=False))).all():
        pytest.skip("The model's own outputs are not finite.")
    q = tfq.quantize_model(model, scheme, **settings)
    if not any(isinstance(x, (QuantizeWrapper, Quantize)) for x in q.layers):
        pytest.skip(f"The model has nothing that {scheme} takes.")
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, data, progress=False)
    return q


@pytest.mark.parametrize("seed", seeds(30, 2000))
def test_a_random_model_becomes_what_its_report_says(seed, tmp_path):
    model, data, scheme, batch_size = draw_model(seed)
    q, static = quantized(model, data, scheme), tfq.SCHEMES[scheme].static
    outputs = model(data, training=False)
    path = tmp_path / "model.tflite"
    report = tfq.to_tflite(q, path, samples=data, batch_size=batch_size, progress=False)
    assert report.not_compared == "" and report.broken_claims == []
    exact = all(layer.arithmetic == "exact" for layer in report.layers)
    if static and exact and not report.float_operators:
        assert report.end_to_end.differing == 0
    content = stock(model, data, RIVALS[scheme]) if scheme == "w8a8" else None
    rival = None if content is None else rival_sqnr(content, model, data)
    if rival is not None:
        assert sqnr(flat(outputs), flat(q(data, training=False))) > min(rival, 40.0) - BEHIND


@pytest.mark.parametrize("seed", seeds(4, 500))
def test_a_random_model_is_the_same_saved_and_packed_and_trains(seed, tmp_path):
    model, data, scheme, _ = draw_model(seed)
    q = quantized(model, data, scheme)
    expected = flat(q(data))
    q.save(tmp_path / "q.keras")
    np.testing.assert_array_equal(
        flat(keras.models.load_model(tmp_path / "q.keras")(data)), expected
    )
    packed = flat(tfq.to_packed(q)(data))
    rounding = 1e-6 if tfq.SCHEMES[scheme].static else 1e-4  # Real sums have no order.
    assert np.abs(packed - expected).max() <= rounding * np.abs(expected).max()
    if not q.trainable_variables:
        return
    targets = [np.asarray(y) for y in keras.tree.flatten(model(data, training=False))]
    q.compile(keras.optimizers.SGD(1e-6), ["mse"] * len(targets))
    history = q.fit(data, targets, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("seed", seeds(4, 500))
def test_a_random_model_is_the_same_in_onnx_runtime_or_refused_by_name(seed, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra tfquant[onnx]: onnx, onnxruntime")
    model, data, scheme, _ = draw_model(seed)
    q = quantized(model, data, scheme, device="onnxruntime")
    try:
        report = tfq.to_onnx(q, tmp_path / "m.onnx", samples=data, progress=False)
    except ValueError as error:
        assert re.search(
            r"(is|are) expected.*Received: .*'\w|Layer '.*nothing was written", str(error)
        )
        pytest.skip(f"Not written as ONNX: {error}")
    claimed = [x.parity for x in report.layers if x.parity and x.arithmetic == "exact"]
    assert sum(x.differing for x in claimed) <= max(1, 1e-4 * sum(x.values for x in claimed))
    ends = report.end_to_end
    if ends.in_steps and all(x.arithmetic == "exact" for x in report.layers):
        assert ends.differing <= max(1, 1e-3 * ends.values)

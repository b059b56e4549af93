"""Models that nobody thought of: written, compared, and what the report says of them is so."""

import numpy as np
import pytest
from architectures.measure import RIVALS, flat, rival_sqnr, sqnr, stock
from random_models import draw_model

import tfquant as tfq
from tfquant.wrappers import Quantize, QuantizeWrapper

# The first ones every time, many by hand: `pytest -m long tests/end_to_end/test_random.py`.
SEEDS = [pytest.param(n, marks=() if n < 30 else pytest.mark.long) for n in range(2000)]

# The TFLite converter's file, which leaves small weights float under other schemes, may be this
# much closer in dB, where an output of few values is rounded by chance.
BEHIND = 6.0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_becomes_what_its_report_says(seed, tmp_path):
    model, data, scheme, batch_size = draw_model(seed)
    outputs = model(data, training=False)
    if not np.isfinite(flat(outputs)).all():
        pytest.skip("The model's own outputs are not finite.")
    q = tfq.quantize_model(model, scheme)
    if not any(isinstance(x, (QuantizeWrapper, Quantize)) for x in q.layers):
        pytest.skip(f"The model has nothing that {scheme} takes.")
    static = tfq.SCHEMES[scheme].static
    if static:
        tfq.calibrate(q, data, progress=False)
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

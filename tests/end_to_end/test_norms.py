"""Norms in integers, in float, and as the outputs ask for: what the file computes."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.wrappers.norms import in_float

NORMS = {
    "layer": lambda: layers.LayerNormalization(),
    "layer over two axes": lambda: layers.LayerNormalization((-2, -1), epsilon=1e-6),
    "layer without weights": lambda: layers.LayerNormalization(center=False, scale=False),
    "root mean square": lambda: layers.RMSNormalization(),
    "groups": lambda: layers.GroupNormalization(2),
    "one group": lambda: layers.GroupNormalization(1, center=False),
    "instances": lambda: layers.GroupNormalization(-1, scale=False),
}


def drawn(model, rng):
    for variable in model.weights:
        if variable.name in ("gamma", "scale"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "bias"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    return model


def around(norm, rng, shape=(5, 6, 8)):
    """A norm between two kernels."""
    x = keras.Input(shape)
    return drawn(keras.Model(x, layers.Dense(5)(norm(layers.Dense(shape[-1])(x)))), rng)


def transformer(rng, before=True, bias=True):
    """Two halves, with norms in front of what they are summed with, or behind the sums."""
    x = keras.Input((6, 8))
    norm = lambda y: layers.LayerNormalization(epsilon=1e-9)(y)  # noqa: E731
    y = layers.Dense(8, use_bias=bias)(x)
    y = y + rng.normal(0, 0.1 if bias else 0, (1, 6, 8)).astype(np.float32)
    for units in (8, 16):
        z = norm(y) if before else y
        z = layers.Dense(units, "relu", use_bias=bias)(z)
        z = layers.Dense(8, use_bias=bias)(z)
        y = layers.Add()([y, z])
        y = y if before else norm(y)
    y = norm(y) if before else y
    return drawn(keras.Model(x, layers.Dense(4)(y)), rng)


def of_unequal_lengths(rng, shape, rows=96):
    """Vectors from 0.003 to 1 long: the square of the shortest is 1/100,000 of the longest's."""
    data = rng.normal(size=(rows, *shape)).astype(np.float32)
    return data * 10 ** rng.uniform(-2.5, 0, (rows, *(1,) * len(shape))).astype(np.float32)


def sqnr(expected, received):
    expected, received = np.asarray(expected), np.asarray(received)
    return 10 * np.log10(np.sum(expected**2) / np.sum((expected - received) ** 2))


def converted(model, data, scheme, norms, tmp_path):
    q = tfq.quantize_model(model, scheme, norms=norms)
    tfq.calibrate(q, data, progress=False)
    return q, tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)


def is_exact(report):
    """Whether op by op and end to end nothing differs."""
    return report.op_by_op.differing == report.end_to_end.differing == 0


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        ("layer", "w8a8"),
        ("groups", "w8a16"),
        *(
            pytest.param(kind, scheme, marks=pytest.mark.long)
            for kind in NORMS
            for scheme in ("w8a8", "w8a16", "w4a8")
        ),
    ],
)
def test_a_norm_in_integers_has_no_float_operator_and_loses_little(kind, scheme, rng, tmp_path):
    model = around(NORMS[kind](), rng)
    data = rng.normal(size=(64, 5, 6, 8)).astype(np.float32)
    q, report = converted(model, data, scheme, "integer", tmp_path)
    assert not report.float_operators and is_exact(report)
    assert q.norms.loss < 1.0
    in_floats = tfq.quantize_model(model, scheme, norms="float")
    tfq.calibrate(in_floats, data, progress=False)
    expected = model(data)
    assert sqnr(expected, q(data)) > sqnr(expected, in_floats(data)) - 1.0


@pytest.mark.parametrize(("before", "scheme"), [(True, "w8a8"), (False, "w8a16"), (False, "w8a8")])
def test_a_residual_stream_stays_of_16_bits(before, scheme, rng, tmp_path):
    model = transformer(rng, before)
    data = rng.normal(size=(64, 6, 8)).astype(np.float32)
    _, report = converted(model, data, scheme, "auto", tmp_path)
    assert not report.float_operators and is_exact(report)
    sums = [layer for layer in report.layers if layer.operator == "ADD"]
    if not before and scheme == "w8a8":
        first, *sums = sums  # Attention reads the first sum as well.
        assert first.activation_bits == 8
    assert sums and all(layer.activation_bits == 16 for layer in sums)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_vectors_shorter_than_any_that_calibration_saw_keep_their_length(scheme, rng):
    x = keras.Input((6, 8))
    model = keras.Model(x, layers.LayerNormalization(epsilon=1e-9)(layers.Dense(8)(x)))
    data = rng.normal(size=(64, 6, 8)).astype(np.float32)
    q = tfq.quantize_model(model, scheme, norms="integer")
    tfq.calibrate(q, data, progress=False)
    short = data / 3.0
    # The root would end at that of the shortest vector that it saw: a third of the length, 4 dB.
    expected, received = model(short), q(short)
    assert sqnr(expected, received) > (25 if scheme == "w8a8" else 33)


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
def test_auto_leaves_norms_float_that_integers_ruin(before, rng, tmp_path):
    scheme = "w8a16"  # In 8 bits the shortest vectors are lost in front of the norms.
    model, data = transformer(rng, before, bias=False), of_unequal_lengths(rng, (6, 8))
    q, report = converted(model, data, scheme, "auto", tmp_path)
    assert q.norms.floating and report.op_by_op.differing == 0
    assert report.end_to_end.share_differing < 0.05  # A float norm may fall on a tie's other side.
    assert q.norms.sqnr["integer"] < q.norms.sqnr["float"] - 1.0
    assert q.norms.loss < 1.0
    left = q.norms.floating
    assert {o.reason for o in report.float_operators} == {
        f"norm '{name}' serves the outputs in float" for name in left
    }
    assert all(name in str(report) for name in left)
    always = tfq.quantize_model(model, scheme, norms="integer")
    tfq.calibrate(always, data, progress=False)
    assert not always.norms.floating and always.norms.loss >= 1.0
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    assert in_float(loaded) == list(left)
    np.testing.assert_array_equal(loaded(data), q(data))
    tfq.calibrate(q, rng.normal(size=(64, 6, 8)).astype(np.float32), progress=False)
    assert not q.norms.floating  # The choice is made anew.


@pytest.mark.parametrize(
    ("norms", "unequal"), [("integer", True), ("integer", False), ("auto", True)]
)
def test_training_through_norms_has_finite_gradients_and_parity(norms, unequal, rng, tmp_path):
    model = transformer(rng)
    data = of_unequal_lengths(rng, (6, 8)) if unequal else rng.normal(size=(64, 6, 8))
    data = data.astype(np.float32)
    data[:8] = 0.5  # Vectors without variance.
    q = tfq.quantize_model(model, norms=norms)
    tfq.calibrate(q, data, progress=False)
    before = [v.numpy() for v in q.trainable_variables]
    q.compile("sgd", "mse")
    q.fit(data, rng.normal(size=(len(data), 6, 4)), verbose=0)
    after = [v.numpy() for v in q.trainable_variables]
    assert all(np.isfinite(v).all() for v in after)
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(moved)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert report.op_by_op.differing == 0
    assert report.float_operators or report.end_to_end.differing == 0


def test_a_rule_says_what_becomes_of_one_norm(rng, tmp_path):
    model = transformer(rng)
    first, second, _ = [x for x in model.layers if isinstance(x, layers.LayerNormalization)]
    recipe = tfq.Recipe("w8a8").where(first.name, norms="float")
    data = rng.normal(size=(64, 6, 8)).astype(np.float32)
    q, report = converted(model, data, recipe, None, tmp_path)
    assert report.float_operators and report.op_by_op.differing == 0
    assert all(f"/{first.name}" in o.name for o in report.float_operators if o.operator != "ADD")
    assert second.name in q.norms.integer


def test_free_lengths_are_normalized_in_integers(rng, tmp_path):
    x = keras.Input((None, 8))
    y = layers.Dense(4)(layers.LayerNormalization()(layers.Dense(8)(x)))
    model, data = keras.Model(x, y), rng.normal(size=(64, 6, 8)).astype(np.float32)
    _, report = converted(model, data, "w8a8", "integer", tmp_path)
    assert not report.float_operators and is_exact(report)


@pytest.mark.parametrize("axis", [1, (1, 3)])
def test_norms_over_other_axes_stay_float_and_are_right(axis, rng, tmp_path):
    model = around(layers.LayerNormalization(axis), rng)
    data = rng.normal(size=(64, 5, 6, 8)).astype(np.float32)
    q, report = converted(model, data, "w8a8", "integer", tmp_path)
    assert report.float_operators and q.norms is None
    assert sqnr(model(data), q(data)) > 30


def test_an_unknown_form_is_an_error(rng):
    with pytest.raises(ValueError, match="`norms` must be one of auto, integer, float"):
        tfq.quantize_model(transformer(rng), norms="int8")

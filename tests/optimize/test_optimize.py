"""`optimize`: what it chooses serves the outputs, and nothing else changes."""

import importlib

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.optimize import ALGORITHMS, BRECQ, GPTQ, AdaRound
from tfquant.wrappers import QuantizeWrapper

# Of every name, with few steps where steps are taken.
QUICK = {
    "gptq": GPTQ(),
    "adaround": AdaRound(steps=40),
    "brecq": BRECQ(steps=40, drop=0.5),
}
NAMES = sorted(ALGORITHMS)


def network(seed=0):
    """Convolutions of every kind that has integers to choose, a residual sum, dense layers."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = short = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.ReLU()(layers.Add()([x, short]))
    x = layers.Conv2D(8, 3, strides=2, groups=2, activation="relu", name="grouped")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(4, name="last")(x))
    norm, rng = model.get_layer("norm"), np.random.default_rng(seed)
    norm.set_weights([rng.normal(1, 0.3, 8), *rng.uniform(0.5, 2, (3, 8))])
    return model


def images(rng, count=64):
    """Smooth images: their pixels are correlated, as those of photographs."""
    coarse = rng.normal(size=(count, 4, 4, 3)).astype("float32")
    fine = np.kron(coarse, np.ones((1, 2, 2, 1), np.float32))
    return fine + 0.2 * rng.normal(size=fine.shape).astype("float32")


def calibrated(model, data, scheme="w4a8", **settings):
    return tfq.calibrate(tfq.quantize_model(model, scheme, **settings), data, progress=False)


def noise(model, q, x):
    return float(np.mean((model(x) - q(x)) ** 2))


def wrappers(q):
    return {x.layer.name: x for x in q.layers if isinstance(x, QuantizeWrapper)}


def integers(q):
    found = {}
    for name, wrapper in wrappers(q).items():
        for variable, quantizer in wrapper.weight_quantizers:
            steps = keras.ops.convert_to_numpy(quantizer.params(variable.value).scale)
            found[name] = np.rint(variable.numpy() / steps)
    return found


# Others serve what these models do not need, and have tests of their own.
@pytest.mark.parametrize("name", sorted(QUICK))
def test_outputs_come_closer_on_rows_that_were_not_seen(name, rng):
    model, seen, others = network(), images(rng, 128), images(rng, 64)
    q = calibrated(model, seen)
    before = noise(model, q, others)
    tfq.optimize(q, seen, QUICK[name], progress=False)
    assert noise(model, q, others) < 0.8 * before


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_chooses_the_same_integers(name, rng):
    model, x = network(), images(rng)
    first, second = (
        tfq.optimize(calibrated(model, x), x, QUICK.get(name, name), seed=3, progress=False)
        for _ in range(2)
    )
    for name, q in integers(first).items():
        np.testing.assert_array_equal(integers(second)[name], q)
    np.testing.assert_array_equal(first(x), second(x))


def test_the_float_model_is_read_and_not_changed(rng):
    model, x = network(), images(rng)
    before = [w.copy() for w in model.get_weights()]
    tfq.optimize(calibrated(model, x), x, "gptq", progress=False)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weights_of_wide_grids_stay_near_the_float_ones(rng):
    """On exact inputs nothing is to be moved: the first layer rounds what it has."""
    model, x = network(), images(rng)
    q = tfq.optimize(calibrated(model, x, "w8a16"), x, "gptq", progress=False)
    conv, steps = wrappers(q)["conv"].layer.kernel.numpy(), 1 / 127
    expected = model.get_layer("conv").kernel.numpy()
    assert np.abs(conv - expected).max() < 2 * steps * np.abs(expected).max()


@pytest.mark.parametrize("scheme", ["w4", "w4_g32", "w8a8_dynamic", "w4a8_g32", "w2a8"])
def test_every_scheme_of_integers_is_taken(scheme, rng):
    x = rng.normal(size=(96, 4)).astype("float32") @ rng.normal(size=(4, 64)).astype("float32")
    inputs = keras.Input((64,))
    hidden = layers.Dense(32, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(5, name="last")(hidden))
    q = calibrated(model, x, scheme)
    before = noise(model, q, x)
    tfq.optimize(q, x, "gptq", progress=False)
    assert noise(model, q, x) < before


def test_layers_without_a_bias_are_optimized_about_zero(rng):
    x = 3 + rng.normal(size=(96, 4)).astype("float32") @ rng.normal(size=(4, 16)).astype("float32")
    inputs = keras.Input((16,))
    model = keras.Model(inputs, layers.Dense(6, use_bias=False, name="dense")(inputs))
    q = calibrated(model, x, "w4")
    before = noise(model, q, x)
    tfq.optimize(q, x, "gptq", progress=False)
    assert noise(model, q, x) < 0.5 * before


def test_sequences_are_convolved_as_images_are(rng):
    x = inputs = keras.Input((16, 3))
    for number, padding in enumerate(("causal", "same", "valid")):
        x = layers.Conv1D(6, 3, padding=padding, activation="relu", name=f"conv{number}")(x)
    x = layers.DepthwiseConv1D(3, name="depthwise")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    rows = np.cumsum(rng.normal(size=(64, 16, 3)), axis=1).astype("float32")
    q = calibrated(model, rows)
    before = noise(model, q, rows)
    tfq.optimize(q, rows, "gptq", progress=False)
    assert noise(model, q, rows) < 0.7 * before


def test_a_recipe_says_which_layers_are_optimized(rng):
    model, x = network(), images(rng)
    recipe = tfq.Recipe("w4a8").where("hidden", "w4a8", algorithm="gptq")
    q = calibrated(model, x, recipe)
    before = integers(q)
    tfq.optimize(q, x, progress=False)
    after = integers(q)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {"hidden"}


def test_the_algorithm_of_a_layer_outlives_saving(rng, tmp_path):
    model, x = network(), images(rng)
    q = calibrated(model, x, tfq.Recipe("w4a8", algorithm="gptq"))
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    tfq.optimize(loaded, x, progress=False)
    tfq.optimize(q, x, progress=False)
    np.testing.assert_array_equal(loaded(x), q(x))


def test_a_layer_of_another_kind_is_left_and_named(rng, caplog):
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2DTranspose(3, 2, name="transpose")(inputs)
    model = keras.Model(inputs, layers.Conv2D(3, 2, name="conv")(x))
    rows = rng.normal(size=(32, 4, 4, 2)).astype("float32")
    tfq.optimize(calibrated(model, rows), rows, "gptq", progress=False)
    assert "'transpose', Conv2DTranspose is no dense layer or convolution" in caplog.text


@pytest.mark.parametrize("algorithm", [GPTQ(), BRECQ(steps=3)])
def test_masks_and_attention_are_passed_by(algorithm, rng):
    inputs = keras.Input((6,), dtype="int32")
    embedded = layers.Embedding(20, 16, mask_zero=True)(inputs)
    x = layers.MultiHeadAttention(2, 8)(embedded, embedded)
    x = layers.Dense(16, activation="relu")(layers.Add()([x, embedded]))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    rows = rng.integers(0, 20, (64, 6))
    rows[:, 4:] *= rng.integers(0, 2, (64, 2))
    q = calibrated(model, rows)
    before = noise(model, q, rows)
    tfq.optimize(q, rows, algorithm, progress=False)
    assert noise(model, q, rows) < before


def test_integers_that_do_not_serve_the_outputs_are_not_taken(rng, monkeypatch, caplog):
    def spoil(self, block):
        for site in block.sites:
            site.give(np.zeros_like(site.weights), site.best_steps(site.weights, np.ones((1, 1))))
            site.wrapper.layer.use_bias and site.wrapper.originals.assign(
                site.wrapper.layer.bias, np.ones(site.wrapper.layer.bias.shape)
            )

    x = images(rng)
    q = calibrated(network(), x)
    before = [v.numpy() for v in q.variables]
    expected = q(x)
    monkeypatch.setattr(GPTQ, "choose", spoil)
    tfq.optimize(q, x, "gptq", progress=False)
    for variable, value in zip(q.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    np.testing.assert_array_equal(q(x), expected)
    assert not q.optimization.taken and q.optimization.after < q.optimization.before
    assert "came no closer to the float model's by gptq" in caplog.text
    calibrated_again = tfq.calibrate(q, x, progress=False)
    np.testing.assert_array_equal(calibrated_again(x), expected)


@pytest.mark.parametrize(("count", "judging"), [(64, 64), (128, 16), (264, 32)])
def test_what_is_chosen_is_judged_on_rows_kept_out(count, judging, rng, monkeypatch):
    module, told = importlib.import_module("tfquant.optimize.optimize"), {}

    def watch(name, kind, position):
        def made(*args):
            told[name] = np.concatenate([batch[0] for batch in args[position]])
            return kind(*args)

        monkeypatch.setattr(module, name, made)

    watch("Outputs", module.Outputs, 2)
    watch("Streams", module.Streams, 1)
    model, data = network(), images(rng, count)
    tfq.optimize(calibrated(model, data), data, "gptq", batch_size=16, progress=False)
    chosen, judged = ({row.tobytes() for row in told[name]} for name in ("Streams", "Outputs"))
    assert len(judged) == judging and len(chosen | judged) == count
    assert (chosen == judged) if judging == count else not chosen & judged


def test_what_came_of_it_is_said(rng):
    model, x = network(), images(rng)
    q = calibrated(model, x)
    tfq.optimize(q, x, "gptq", progress=False)
    found = q.optimization
    noise_after = noise(model, q, x)
    expected = 10 * np.log10(np.mean((model(x) - np.mean(model(x), axis=0)) ** 2) / noise_after)
    assert found.taken and found.after == pytest.approx(expected, abs=0.3)
    assert str(found).startswith("gptq (outputs ") and found.before < found.after


def test_an_interrupted_run_leaves_a_model_that_works(rng, monkeypatch):
    model, x = network(), images(rng)
    q = calibrated(model, x)
    before, choose, left = integers(q), GPTQ.choose, [3]

    def interrupted(self, block):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        choose(self, block)

    monkeypatch.setattr(GPTQ, "choose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tfq.optimize(q, x, "gptq", progress=False)
    after = integers(q)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed <= {"conv", "depthwise", "pointwise"} and "conv" in changed
    assert np.isfinite(q(x)).all()


def test_a_layer_that_overflows_is_left_and_named(rng, caplog):
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="first")(inputs)
    x = layers.Lambda(lambda v: v / 0.0, name="broken", output_shape=(4,))(x)
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    q = tfq.quantize_model(model, "w4")
    before = integers(q)["last"]
    tfq.optimize(q, rng.normal(size=(32, 4)).astype("float32"), "gptq", progress=False)
    np.testing.assert_array_equal(integers(q)["last"], before)
    assert "'last' keeps the nearest integers: its inputs are NaN or infinite" in caplog.text


@pytest.mark.parametrize(
    ("algorithm", "error", "message"),
    [
        ("gtpq", ValueError, r"Received: 'gtpq'\. Did you mean 'gptq'\?"),
        ("nonsense", ValueError, r"must be one of .*'gptq'.* Received: 'nonsense'"),
        (7, TypeError, "a name, an Algorithm, a list of them, or None. Received: 7"),
        (["gptq", 7], TypeError, "Received: 7"),
        ([], ValueError, "at least one algorithm"),
        (None, ValueError, "where the recipe of the model names none"),
    ],
)
def test_an_algorithm_that_is_none_is_refused(algorithm, error, message, rng):
    q = calibrated(network(), images(rng, 16))
    with pytest.raises(error, match=message):
        tfq.optimize(q, images(rng, 16), algorithm, progress=False)


def test_rows_must_be_enough(rng):
    q = calibrated(network(), images(rng, 16))
    with pytest.raises(ValueError, match=r"at least 16 rows; 512 to 1024 serve\. Received: 15"):
        tfq.optimize(q, images(rng, 15), "gptq", progress=False)
    with pytest.raises(ValueError, match="must not be empty"):
        tfq.optimize(q, images(rng, 0), "gptq", progress=False)
    bad = images(rng, 16)
    bad[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf, first in sample 3"):
        tfq.optimize(q, bad, "gptq", progress=False)


def test_the_model_must_be_quantized_and_calibrated(rng):
    model, x = network(), images(rng, 16)
    with pytest.raises(ValueError, match="has no quantized layers"):
        tfq.optimize(model, x, "gptq", progress=False)
    with pytest.raises(ValueError, match=r"call tfq\.calibrate"):
        tfq.optimize(tfq.quantize_model(model, "w4a8"), x, "gptq", progress=False)
    with pytest.raises(TypeError, match="A Keras 3 model is expected"):
        tfq.optimize("model", x, "gptq", progress=False)


def test_a_model_of_nothing_to_optimize_says_why(rng):
    model, x = network(), images(rng, 16)
    q = tfq.quantize_model(model, "f16")
    with pytest.raises(ValueError, match=r"No layer can be optimized"):
        tfq.optimize(q, x, "gptq", progress=False)


@pytest.mark.parametrize("settings", [{"damping": -1}, {"damping": float("nan")}, {"sweeps": -1}])
def test_options_of_gptq_must_make_sense(settings):
    with pytest.raises(ValueError, match="`damping` must lie from 0 to 10"):
        GPTQ(**settings)

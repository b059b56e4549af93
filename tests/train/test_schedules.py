"""Schedules: what changes at which epoch, and what a wrong one says."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq

ROWS, FEATURES, CLASSES = 64, 6, 3


def network():
    parts = [layers.Dense(8, name="first"), layers.BatchNormalization(), layers.ReLU()]
    parts += [layers.Dense(8, activation="relu", name="middle")]
    last = layers.Dense(CLASSES, activation="softmax", name="last")
    return keras.Sequential([keras.Input((FEATURES,)), *parts, last])


def data(rng):
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 1)


def quantized(rng, scheme="w8a8", **kwargs):
    x, y = data(rng)
    q = tfq.quantize_model(network(), scheme, **kwargs)
    tfq.calibrate(q, x, progress=False)
    q.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    return q, x, y


def wrappers(q):
    return [layer for layer in q.layers if isinstance(layer, tfq.QuantizeWrapper)]


class Look(keras.callbacks.Callback):
    """Notes what `see` returns at the end of every epoch, and the logs."""

    def __init__(self, see):
        super().__init__()
        self.see, self.seen = see, []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.see(self.model))


def fit(q, x, y, epochs, *callbacks):
    return q.fit(x, y, 16, epochs, verbose=0, callbacks=list(callbacks), shuffle=False).history


class TestFloatWarmup:
    def test_the_first_epochs_are_those_of_the_float_model(self, rng):
        q, x, y = quantized(rng)
        model = network()
        for layer, wrapper in zip(
            [model.get_layer(n) for n in ("first", "middle", "last")],
            [w for w in wrappers(q) if w.weight_quantizers],
            strict=True,
        ):
            layer.set_weights(wrapper.layer.get_weights())
        model.layers[1].set_weights(wrappers(q)[0].batch_norm.get_weights())
        model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
        expected = fit(model, x, y, 2)
        got = fit(q, x, y, 3, tfq.FloatWarmup(2))
        np.testing.assert_allclose(got["loss"][:2], expected["loss"], rtol=1e-4)
        assert got["quantized"] == [0, 0, 1]

    def test_then_weights_and_ranges_are_fitted_to_what_they_became(self, rng):
        q, x, y = quantized(rng, weight_quantizer="learned_step", activation_quantizer="static")
        before = wrappers(q)[0].output_quantizers[0][0].scale.numpy()
        q.optimizer.learning_rate = 0.1
        fit(q, x * 3, y, 3, tfq.FloatWarmup(2))
        assert wrappers(q)[0].output_quantizers[0][0].scale.numpy() != before
        assert all(quantizer.active for w in wrappers(q) for _, quantizer in w.weight_quantizers)

    def test_a_run_that_ends_within_leaves_the_model_quantized(self, rng, caplog):
        q, x, y = quantized(rng)
        fit(q, x, y, 1, tfq.FloatWarmup(4))
        assert "within the float warm-up" in caplog.text
        assert wrappers(q)[0].output_quantizers[0][0].calibrated

    def test_evaluation_is_float_too(self, rng):
        q, x, y = quantized(rng)
        look = Look(lambda m: m.predict(x, verbose=0))
        fit(q, x, y, 1, tfq.FloatWarmup(1), look)
        rounded = q.predict(x, verbose=0)
        assert len(np.unique(look.seen[0] * 256 % 1)) > 5  # Off the grid of a softmax.
        np.testing.assert_array_equal(rounded * 256, np.rint(rounded * 256))

    def test_without_calibration_it_says_so(self, rng):
        q, (x, y) = tfq.quantize_model(network()), data(rng)
        q.compile("adam", "sparse_categorical_crossentropy")
        with pytest.raises(ValueError, match=r"Call tfq\.calibrate"):
            fit(q, x, y, 1, tfq.FloatWarmup(1))

    @pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
    def test_a_wrong_number_of_epochs_is_an_error(self, epochs):
        with pytest.raises(ValueError, match="integers of 1 or more"):
            tfq.FloatWarmup(epochs)


class TestPrecisionSchedule:
    def widths(self, q):
        return [
            quantizer.spec.num_bits for w in wrappers(q) for _, quantizer in w.weight_quantizers
        ]

    @pytest.mark.parametrize("family", ["abs_max", "learned_step", "learned_threshold"])
    def test_widths_go_down_to_those_of_the_scheme(self, family, rng, tmp_path):
        q, x, y = quantized(rng, "w2a8", weight_quantizer=family)
        look = Look(self.widths)
        history = fit(q, x, y, 4, tfq.PrecisionSchedule({0: 8, 1: 4, 3: 2}), look)
        assert look.seen == [[8, 8, 8], [8, 4, 8], [8, 4, 8], [8, 2, 8]]
        assert history["weight_bits"] == [8, 4, 4, 2]
        assert tfq.to_tflite(q, tmp_path / "m.tflite", progress=False).end_to_end.differing == 0

    def test_a_run_that_ends_early_leaves_the_widths_of_the_scheme(self, rng, caplog):
        q, x, y = quantized(rng, "w4a8")
        fit(q, x, y, 1, tfq.PrecisionSchedule({0: 8, 5: 4}))
        assert self.widths(q) == [4, 4, 4]
        assert "before the precision schedule" in caplog.text

    @pytest.mark.parametrize(
        ("stages", "words"),
        [
            ({0: 4, 2: 8}, "must go down"),
            ({0: 8, 1: 8}, "must go down"),
            ({1: 8, 2: 4}, "from epoch 0 on"),
            ({}, "from epoch 0 on"),
            ({-1: 8}, "integers of 0 or more"),
            ({0: 9}, "widths from 2 to 8"),
            ({0: 1}, "widths from 2 to 8"),
        ],
    )
    def test_a_wrong_schedule_is_an_error(self, stages, words):
        with pytest.raises(ValueError, match=words):
            tfq.PrecisionSchedule(stages)

    def test_it_must_end_at_the_scheme(self, rng):
        q, x, y = quantized(rng, "w4a8")
        with pytest.raises(ValueError, match="end at the 4 bits"):
            fit(q, x, y, 1, tfq.PrecisionSchedule({0: 8}))


def test_ranges_stand_still_when_frozen(rng):
    q, x, y = quantized(rng)
    scales = lambda m: [w.output_quantizers[0][0].scale.numpy() for w in wrappers(m)[:2]]  # noqa: E731
    look = Look(scales)
    history = fit(q, x * 2, y, 4, tfq.FreezeRanges(2), look)
    assert look.seen[0] != look.seen[1]
    assert look.seen[1] == look.seen[2] == look.seen[3]
    assert history["ranges_frozen"] == [0, 0, 1, 1]


def test_batch_norms_stand_still_when_frozen(rng):
    q, x, y = quantized(rng)
    norm = wrappers(q)[0].batch_norm
    look = Look(lambda m: [norm.moving_mean.numpy().tolist(), norm.gamma.numpy().tolist()])
    fit(q, x + 1, y, 3, tfq.FreezeBatchNorm(1), look)
    (mean0, gamma0), (mean1, gamma1), (mean2, _) = look.seen
    assert mean0 == mean1 == mean2
    assert gamma0 != gamma1


def test_a_model_without_quantized_layers_is_refused(rng):
    model, (x, y) = network(), data(rng)
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"FreezeRanges expects a model from tfq.quantize_model"):
        fit(model, x, y, 1, tfq.FreezeRanges(0))


class Toggle(keras.callbacks.Callback):
    """Moves one weight to and fro over a border, as an oscillating one moves."""

    def __init__(self, variable, scale):
        super().__init__()
        self.variable, self.scale = variable, scale

    def on_train_batch_end(self, batch, logs=None):
        w = self.variable.numpy()
        w[0, 0] = self.scale * (2.4 if batch % 2 else 2.6)
        self.variable.assign(w)


class TestOscillation:
    def test_a_weight_that_flips_is_frozen_on_its_integer(self, rng):
        q, x, y = quantized(rng, "w4a8")
        q.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
        wrapper = wrappers(q)[1]
        ((variable, quantizer),) = wrapper.weight_quantizers
        scale = float(quantizer.params(variable.value).scale[0, 0])
        w = variable.numpy()
        w[0, 0] = 2.4 * scale
        variable.assign(w)
        freeze = tfq.FreezeOscillation(threshold=0.2, momentum=0.2)
        history = fit(q, x, y, 4, Toggle(variable, scale), freeze)
        steps = float(variable.numpy()[0, 0]) / scale
        assert round(steps) == pytest.approx(steps, abs=1e-4)
        assert steps in (pytest.approx(2, abs=1e-4), pytest.approx(3, abs=1e-4))
        count = sum(
            v.value.shape.num_elements() for w in wrappers(q) for v, _ in w.weight_quantizers
        )
        assert history["frozen_weights"][-1] == pytest.approx(1 / count)

    def test_dampening_adds_the_distance_to_the_integers(self, rng):
        losses, first = [], None
        for strength in (0.0, 0.5):
            q, x, y = quantized(np.random.default_rng(0), "w4a8")
            q.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
            for target, source in zip(q.weights, first or q.weights, strict=True):
                target.assign(source)
            history = fit(q, x, y, 1, tfq.DampenOscillation(strength))
            losses.append(history["loss"][0])
            first = first or [v.numpy() for v in q.weights]
            assert history["dampening"] == [strength]
        expected = 0.0
        for wrapper in wrappers(q):
            for variable, quantizer in wrapper.weight_quantizers:
                w, scale = variable.numpy(), quantizer.params(variable.value).scale.numpy()
                w = np.clip(w, -7 * scale, 7 * scale)
                expected += ((np.rint(w / scale) * scale - w) ** 2).sum()
        # Statistics of the batch norm and moving ranges differ a little between the runs.
        assert losses[1] - losses[0] == pytest.approx(0.5 * expected, rel=0.15)

    def test_dampening_ends_with_training(self, rng):
        q, x, y = quantized(rng)
        fit(q, x, y, 1, tfq.DampenOscillation(lambda epoch: 0.1 * epoch))
        assert all(w.dampening is None for w in wrappers(q))

    @pytest.mark.parametrize("arguments", [{"threshold": 0}, {"momentum": 1.1}])
    def test_wrong_arguments_are_errors(self, arguments):
        with pytest.raises(ValueError, match="above 0, at most 1"):
            tfq.FreezeOscillation(**arguments)
        with pytest.raises(ValueError, match="must not be negative"):
            tfq.DampenOscillation(-1.0)

"""`finetune`: the best that validation saw, the start among it, from data of every form."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from train.test_schedules import data, network, quantized, wrappers

import tfquant as tfq
from tfquant.train.finetune import PACES
from tfquant.train.teacher import float_copy, quantizers

SCHEME = "w2a8"


@functools.cache
def learned():
    """Weights of a float network that has learned its task, inputs and labels."""
    x, y = data(np.random.default_rng(0))
    model = network()
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    model.fit(x, y, 16, 40, verbose=0)
    return model.get_weights(), x, y


def trained_network():
    values, x, y = learned()
    model = network()
    model.set_weights(values)
    return model, x, y


def calibrated(scheme=SCHEME):
    model, x, y = trained_network()
    q = tfq.quantize_model(model, scheme)
    return tfq.calibrate(q, x, bias_correction=False, progress=False), x, y


def weights(q):
    return [v.numpy() for v in q.variables if "seed" not in v.path]


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


class Rows(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 16

    def __getitem__(self, index):
        return self.x[index * 16 : index * 16 + 16], self.y[index * 16 : index * 16 + 16]


def endless(x, y):
    while True:
        for start in range(0, len(x), 16):
            yield x[start : start + 16], y[start : start + 16]


FORMS = {
    "arrays": (lambda x, y: (x, y), {}),
    "weighted": (lambda x, y: (x, y, np.ones(len(x), np.float32)), {}),
    "dataset": (lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(16), {}),
    "unknown length": (
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(16).filter(lambda *_: True),
        {},
    ),
    "PyDataset": (Rows, {}),
    "generator": (endless, {"steps_per_epoch": 4, "validation_steps": 4}),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_of_every_form_train_the_same_model_better(form):
    make, steps = FORMS[form]
    q, x, y = calibrated()
    given = {"validation": make(x, y), "epochs": 6, "learning_rate": 0.01, "monitor": "loss"}
    assert tfq.finetune(q, make(x, y), **given, verbose=0, **steps) is q
    found = q.finetuning
    assert found.best < found.start
    assert len(found.history["loss"]) == 6
    p = q.predict(x, verbose=0)
    p = (p / p.sum(-1, keepdims=True))[np.arange(len(y)), y]  # Keras's loss divides by the sum.
    assert found.best == pytest.approx(-np.log(np.clip(p, 1e-7, 1)).mean(), rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_rate_that_ruins_every_epoch_ends_at_the_start(seed):
    keras.utils.set_random_seed(seed)
    q, x, y = calibrated("w8a8")
    before = weights(q)
    tfq.finetune(q, (x, (y + 1) % 3), validation=(x, y), epochs=2, learning_rate=0.3, verbose=0)
    assert q.finetuning.epoch == 0 and q.finetuning.best == q.finetuning.start
    assert max(q.finetuning.history["val_accuracy"]) < q.finetuning.start
    assert_same(weights(q), before)


def test_the_epoch_that_validation_likes_best_is_kept():
    q, x, y = calibrated()
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(weights(q)))
    tfq.finetune(
        q, (x, y), validation=(x, y), epochs=5, learning_rate=0.02, callbacks=[look], verbose=0
    )
    scores = list(
        zip(*(q.finetuning.history[k] for k in ("val_accuracy", "val_loss")), strict=True)
    )
    best = max(range(5), key=lambda i: (scores[i][0], -scores[i][1]))
    assert q.finetuning.epoch == best + 1
    assert_same(weights(q), seen[best])


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch, error):
        super().__init__()
        self.epoch, self.error = epoch, error

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            for variable in self.model.trainable_variables:
                variable.assign(variable * 0)
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine")])
def test_a_run_that_is_broken_off_leaves_the_best_so_far(error):
    q, x, y = calibrated()
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(weights(q)))
    callbacks = [look, Interrupt(4, error)]
    given = {"validation": (x, y), "learning_rate": 0.01, "monitor": "loss", "verbose": 0}
    with pytest.raises(type(error)):
        tfq.finetune(q, (x, y), epochs=8, callbacks=callbacks, **given)
    assert any(all(map(np.array_equal, weights(q), epoch)) for epoch in seen)
    assert q.lesson is None
    tfq.finetune(q, (x, y), validation=(x, y), epochs=1, verbose=0)  # It can go on.


def weighted_by_nan(x, y):
    rows = x, y, np.full(len(x), np.nan, np.float32)
    return tf.data.Dataset.from_tensor_slices(rows).batch(16)


@pytest.mark.parametrize("where", ["loss", "values"])
def test_a_loss_that_is_not_finite_stops_with_the_start(where, caplog):
    q, x, y = calibrated()
    before = weights(q)
    given = weighted_by_nan(x, y) if where == "loss" else (x, y)
    rate = None if where == "loss" else 1e30
    tfq.finetune(q, given, validation=(x, y), epochs=3, learning_rate=rate, verbose=0)
    assert "not finite" in caplog.text and "`learning_rate`" in caplog.text
    assert q.finetuning.epoch == 0
    assert_same(weights(q), before)


@pytest.mark.parametrize("scheme", ["w8a8", "w2a8", "w4"])
def test_the_teacher_is_the_float_model(scheme):
    model, x, _ = trained_network()
    q = tfq.quantize_model(model, scheme)
    if scheme != "w4":
        tfq.calibrate(q, x, progress=False)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(float_copy(q).predict(x, verbose=0), expected, atol=1e-5)
    assert all(quantizer.active for quantizer in quantizers(q))


def test_the_answers_of_the_teacher_are_learned():
    q, x, y = calibrated("w4a8")
    flipped, *_ = trained_network()  # Its answers are the labels of other classes.
    flipped.layers[-1].set_weights(
        [np.roll(w, 1, axis=-1) for w in flipped.layers[-1].get_weights()]
    )
    answers = flipped.predict(x, verbose=0).argmax(-1)
    before = (q.predict(x, verbose=0).argmax(-1) == answers).mean()
    tfq.finetune(
        q,
        (x, y),
        validation=(x, answers),
        teacher=flipped,
        epochs=30,
        learning_rate=0.02,
        verbose=0,
    )
    assert (q.predict(x, verbose=0).argmax(-1) == answers).mean() > before + 0.15


def test_fewer_bits_train_longer_and_faster():
    paces = [PACES[bits] for bits in sorted(PACES)]
    for one, other in itertools.pairwise(paces):
        assert one.epochs > other.epochs and one.learning_rate >= other.learning_rate


class Rates(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(float(self.model.optimizer.learning_rate))

    def on_train_end(self, logs=None):
        self.seen.append(float(self.model.optimizer.learning_rate))


def test_the_rate_is_that_of_the_narrowest_grid_and_falls_to_zero():
    rates = {}
    for scheme in ("w8a8", "w4a8", tfq.Scheme("w8a3", 8, 3)):
        q, x, y = calibrated(scheme)
        look = Rates()
        tfq.finetune(q, (x, y), validation=(x, y), epochs=2, callbacks=[look], verbose=0)
        assert look.seen[-1] == pytest.approx(0, abs=1e-9) and look.seen[0] == max(look.seen)
        rates[str(scheme)] = look.seen[0]
    first, second, third = rates.values()
    assert first < second < third


@pytest.mark.parametrize("share", [None, 0.25])
def test_rows_that_are_held_out_are_not_trained_on(share, capsys):
    q, x, y = calibrated()
    steps = []
    look = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: steps.append(look.params))
    tfq.finetune(q, (x, y), validation=share, epochs=1, batch_size=1, callbacks=[look], verbose=2)
    held_out = len(x) // (2 if share is None else 4)
    assert steps[0]["steps"] == len(x) - held_out
    assert f"{held_out} of the rows held out to judge by" in capsys.readouterr().out


def test_a_compiled_model_keeps_its_loss_metrics_and_optimizer():
    q, x, y = calibrated()
    optimizer = keras.optimizers.SGD(0.5)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    q.compile(optimizer, loss, metrics=["categorical_accuracy", "mae"])
    labels = np.eye(3, dtype=np.float32)[y]
    tfq.finetune(q, (x, labels), validation=(x, labels), epochs=2, verbose=0)
    assert q.optimizer is optimizer and q.finetuning.monitor == "categorical_accuracy"
    assert {"mae", "val_mae"} < set(q.finetuning.history)
    q.fit(x, labels, verbose=0)


def test_a_monitor_of_errors_falls():
    q, x, y = calibrated()
    labels = np.eye(3, dtype=np.float32)[y]
    tfq.finetune(q, (x, labels), validation=(x, labels), monitor="val_loss", epochs=4, verbose=0)
    assert q.finetuning.best == min(q.finetuning.history["val_loss"]) < q.finetuning.start


def test_a_model_of_numbers_learns_by_the_loss_that_is_given(rng):
    x = rng.normal(size=(64, 4)).astype(np.float32)
    y = x @ rng.normal(size=(4, 2)).astype(np.float32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(x, y, epochs=30, verbose=0)
    q = tfq.calibrate(tfq.quantize_model(model, "w2a8"), x, progress=False)
    tfq.finetune(q, (x, y), validation=(x, y), loss="mse", epochs=20, learning_rate=0.01, verbose=0)
    assert q.finetuning.monitor == "loss" and q.finetuning.best < q.finetuning.start


def test_logits_are_told_from_probabilities_by_integer_labels(rng):
    x, y = data(rng)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    q = tfq.calibrate(tfq.quantize_model(model, "w4a8"), x, progress=False)
    tfq.finetune(
        q, (x, y), validation=(x, y), epochs=20, teacher=None, learning_rate=0.05, verbose=0
    )
    assert q.finetuning.best > max(q.finetuning.start, 0.7)


def test_epochs_of_other_grids_are_no_candidates():
    q, x, y = calibrated("w4a8")
    before = weights(q)
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(weights(q)))
    tfq.finetune(
        q,
        (x, y),
        validation=(x, y),
        epochs=3,
        monitor="loss",
        callbacks=[tfq.FloatWarmup(2), look],
        verbose=0,
    )
    assert q.finetuning.epoch in (0, 3)
    assert_same(weights(q), seen[2] if q.finetuning.epoch else before)


def test_batch_norms_move_afterwards_as_before():
    q, x, y = calibrated("w8a8")
    tfq.finetune(q, (x, y), validation=(x, y), epochs=1, verbose=0)
    assert not any(wrapper.batch_norm_frozen for wrapper in wrappers(q))


WRONG = {
    "float model": (lambda q, x, y: (network(), (x, y)), "from tfq.quantize_model"),
    "dataset alone": (
        lambda q, x, y: (q, tf.data.Dataset.from_tensor_slices((x, y)).batch(8)),
        "`validation` must be rows",
    ),
    "no labels": (lambda q, x, y: (q, x), "`validation` must be rows"),
    "one part": (lambda q, x, y: (q, (x,)), r"tuple \(x, y\)"),
    "other shape": (lambda q, x, y: (q, (x[:, :2], y)), "inputs of shapes"),
    "other length": (lambda q, x, y: (q, (x, y[:-1])), "same number of rows"),
    "nan": (lambda q, x, y: (q, (x * np.nan, y)), "must be finite"),
    "labels beyond": (lambda q, x, y: (q, (x, y + 7)), "integers from 0 to 2"),
    "labels of floats": (lambda q, x, y: (q, (x, y * 0.5)), "`loss` must be given"),
    "no rows left": (lambda q, x, y: (q, (x[:1], y[:1])), "share of the rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_trained_on_is_said(name, rng):
    q, x, y = quantized(rng)
    q = tfq.calibrate(tfq.quantize_model(network()), x, progress=False)
    make, words = WRONG[name]
    model, given = make(q, x, y)
    with pytest.raises(ValueError, match=words):
        tfq.finetune(model, given, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epochs": 0}, "`epochs` must be"),
        ({"learning_rate": -1.0}, "`learning_rate` must be"),
        ({"validation": 1.5}, "`validation` must be"),
        ({"monitor": "nothing"}, "`monitor` must be one of 'accuracy', 'loss'"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"teacher": keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])}, "`teacher`"),
    ],
)
def test_wrong_arguments_are_errors(arguments, words, rng):
    x, y = data(rng)
    q = tfq.calibrate(tfq.quantize_model(network()), x, progress=False)
    with pytest.raises(ValueError, match=words):
        tfq.finetune(q, (x, y), verbose=0, **arguments)


def test_a_generator_needs_to_be_told_its_length():
    q, x, y = calibrated()
    with pytest.raises(ValueError, match="`steps_per_epoch` is needed"):
        tfq.finetune(q, endless(x, y), validation=(x, y), verbose=0)
    with pytest.raises(ValueError, match="`validation_steps` is needed"):
        tfq.finetune(q, (x, y), validation=endless(x, y), verbose=0)
    repeated = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat()
    with pytest.raises(ValueError, match="`steps_per_epoch` is needed"):
        tfq.finetune(q, repeated, validation=(x, y), verbose=0)


def test_a_model_that_was_not_calibrated_is_an_error(rng):
    x, y = data(rng)
    with pytest.raises(ValueError, match="calibrated model is expected"):
        tfq.finetune(tfq.quantize_model(network()), (x, y), verbose=0)
    with pytest.raises(TypeError, match="Keras 3 model"):
        tfq.finetune("model.keras", (x, y))

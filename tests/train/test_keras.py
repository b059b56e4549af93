"""Training is Keras's: its loops, policies and callbacks work on a quantized model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from train.test_schedules import fit, quantized, wrappers

import tfquant as tfq


def weights(q):
    return [v.numpy() for v in q.variables]


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8", "w8a16"])
def test_training_lowers_the_loss_and_the_file_agrees(scheme, rng, tmp_path):
    q, x, y = quantized(rng, scheme)
    losses = fit(q, x, y, 8)["loss"]
    assert losses[-1] < 0.8 * losses[0]
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    if scheme in ("w8a8", "w4a8"):
        assert report.end_to_end.differing == 0


@pytest.mark.parametrize("family", ["moving_average", "learned_step"])
def test_a_compiled_step_learns_the_same(family, rng):
    runs = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        q, x, y = quantized(np.random.default_rng(0), activation_quantizer=family)
        q.compile(
            keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", jit_compile=jit_compile
        )
        runs.append(fit(q, x, y, 2)["loss"])
    np.testing.assert_allclose(runs[0], runs[1], rtol=2e-3)


def test_mixed_precision_trains(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        q, x, y = quantized(rng)
        losses = fit(q, x, y, 6)["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert losses[-1] < 0.8 * losses[0]


def test_a_tape_of_ones_own(rng):
    q, x, y = quantized(rng, "w4a8")
    optimizer = keras.optimizers.Adam(1e-2)
    loss_of = keras.losses.SparseCategoricalCrossentropy()
    losses = []
    for _ in range(20):
        with tf.GradientTape() as tape:
            loss = loss_of(y, q(x, training=True))
        found = tape.gradient(loss, [v.value for v in q.trainable_variables])
        assert all(gradient is not None for gradient in found)
        optimizer.apply(found, q.trainable_variables)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


def test_accumulated_gradients_and_class_weights(rng):
    q, x, y = quantized(rng)
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
    q.compile(optimizer, "sparse_categorical_crossentropy")
    q.fit(x, y, 16, epochs=2, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, verbose=0)


def test_the_same_seed_gives_the_same_weights():
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        q, x, y = quantized(np.random.default_rng(0), "w4a8")
        q.fit(x, y, 16, 3, verbose=0)
        found.append(weights(q))
    assert_equal(*found)


def test_the_best_model_is_kept_and_training_stops_early(rng, tmp_path):
    q, x, y = quantized(rng)
    path = tmp_path / "best.keras"
    keep = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    q.fit(x, y, 16, 12, verbose=0, validation_data=(x, y), callbacks=[keep, stop])
    loaded = keras.models.load_model(path)
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(q.evaluate(x, y, verbose=0), rel=1e-6)


class Break(keras.callbacks.Callback):
    """Breaks a run off in the middle of an epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.where, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.where:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "schedules",
    [
        list,
        lambda: [tfq.PrecisionSchedule({0: 8, 2: 4})],
        lambda: [tfq.FloatWarmup(1), tfq.FreezeBatchNorm(2)],
    ],
    ids=["none", "precision", "warm-up"],
)
def test_a_run_that_was_broken_off_ends_where_an_unbroken_one_does(schedules, tmp_path):
    def run(*more):
        keras.utils.set_random_seed(0)
        q, x, y = quantized(np.random.default_rng(0), "w4a8")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        fit(q, x, y, 4, *schedules(), backup, *more)
        return weights(q)

    # The network begins with the weights of its seed, so that every run begins alike.
    expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(Break(2, 1))
    assert_equal(run(), expected)


def test_data_that_are_not_numbers_are_refused_by_name(rng):
    q, x, y = quantized(rng)
    x = x.copy()
    x[40, 2] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Values of 'quantize_.*finite"):
        fit(q, x, y, 1)


def poison(q):
    kernel = wrappers(q)[1].layer.kernel
    kernel.assign(kernel.value * np.nan)


def test_weights_that_are_not_numbers_are_not_converted(rng, tmp_path):
    q, _, _ = quantized(rng)
    poison(q)
    with pytest.raises(ValueError, match=r"Weights must be finite.*middle"):
        tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert not (tmp_path / "model.tflite").exists()


def test_a_ruined_layer_behind_a_good_loss_stops_training(rng, capsys):
    q, x, y = quantized(rng)
    poison(q)
    # What rounding makes of a NaN depends on the processor: this loss is good whatever it is.
    finite = keras.ops.isfinite
    q.compile("sgd", lambda y_true, y: keras.ops.where(finite(y), y * 0.0, 0.0))
    history = fit(q, x, y, 3, tfq.TerminateOnNaN())
    assert len(history["loss"]) == 1
    said = capsys.readouterr().out
    assert "epoch 0: weights are not finite; training stops" in said
    assert "in weights or grids of 'quant_first'" in said


def test_training_stops_at_the_first_loss_that_is_not_a_number(rng, capsys):
    q, x, y = quantized(rng)
    q.compile("sgd", lambda y_true, y_pred: y_pred[:, 0] * 0 + np.inf)
    history = fit(q, x, y, 3, tfq.TerminateOnNaN())
    assert len(history["loss"]) == 1
    said = capsys.readouterr().out
    assert "batch 0: the loss is inf" in said
    assert "in no weight or grid" in said

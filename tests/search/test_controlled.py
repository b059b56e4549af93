"""`max_drop`: what validation rows promise holds on others; what they do not show is no promise."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.sensitivity import Scoring

sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")


@pytest.fixture(scope="module")
def digits():
    """Digits, noisy enough to be hard, and a network that was trained on 600 of them."""
    keras.utils.set_random_seed(0)
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    images = images[order].reshape(-1, 8, 8, 1) / 16 + rng.normal(0, 0.35, (len(images), 8, 8, 1))
    images, labels = images.astype("float32"), labels[order]
    x = inputs = keras.Input((8, 8, 1))
    for name, channels in (("one", 8), ("two", 12), ("three", 12)):
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(24, activation="relu", name="hidden")(
        layers.Flatten()(layers.MaxPooling2D()(x))
    )
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", name="last")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images[:600], labels[:600], epochs=12, verbose=0)
    return model, images[:600], images[600:], labels[600:]


def accuracy(model, x, y):
    return np.mean(model.predict(x, verbose=0).argmax(-1) == y)


def controlled(model, seen, x, y, drop, **settings):
    choices = [tfq.Scheme("w2a8", 2, 8), "w4a8", "w8a8"]
    budget = tfq.Budget(max_drop=drop)
    settings = {"validation": (x, y), "effort": "fast", "progress": False, **settings}
    return tfq.search(model, seen, budget, choices, **settings)


@pytest.mark.slow
def test_nine_of_ten_promises_hold_on_rows_that_were_not_seen(digits):
    model, train, x, y = digits
    kept, promised, narrow = 0, 0, 0
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(x))
        chosen, others = order[:600], order[600:]
        found = controlled(model, train[seed * 50 : seed * 50 + 64], x[chosen], y[chosen], 0.03)
        promised += found.promise.kept
        narrow += any(choice != "w8a8" for choice in found.choices.values())
        drop = accuracy(model, x[others], y[others]) - accuracy(found.model, x[others], y[others])
        kept += drop <= 0.03
    assert kept >= 9 and promised >= 9 and narrow >= 9


def test_the_drop_is_that_of_the_model_and_narrower_ones_drop_more(digits):
    model, train, x, y = digits
    found = controlled(model, train[:64], x[:600], y[:600], 0.03)
    drop = accuracy(model, x[:600], y[:600]) - accuracy(found.model, x[:600], y[:600])
    assert found.promise.drop == pytest.approx(drop) and found.promise.kept
    assert found.score == pytest.approx(accuracy(found.model, x[:600], y[:600]))
    loose = controlled(model, train[:64], x[:600], y[:600], 0.3)
    assert loose.bytes < found.bytes


def test_few_rows_promise_nothing_that_they_cannot_show(digits):
    model, train, x, y = digits
    found = controlled(model, train[:64], x[:60], y[:60], 0.002)
    promise = found.promise
    if promise.deviation:
        assert not promise.kept and "not promised for other rows" in str(found)
    p = found.float_score
    # Of so many independent rows, each right or wrong.
    assert promise.resolution == pytest.approx(np.sqrt(p * (1 - p) / 60), rel=0.2)
    assert f"60 rows: ±{100 * promise.resolution:.1f} points" in promise.words


def test_a_drop_that_no_mixture_keeps_names_the_nearest(digits):
    model, train, x, y = digits
    schemes = [tfq.Scheme("w2a8", 2, 8), tfq.Scheme("w2a6", 2, 6)]
    with pytest.raises(ValueError, match=r"some mixture keeps .* a drop of 0; the nearest drops 0"):
        tfq.search(
            model,
            train[:64],
            tfq.Budget(max_drop=0),
            schemes,
            validation=(x[:300], y[:300]),
            effort="fast",
            progress=False,
        )


def test_a_drop_and_bytes_that_do_not_go_together_are_named(digits):
    model, train, x, y = digits
    with pytest.raises(
        ValueError, match=r"the smallest that was found with that drop has [\d,]+ b"
    ):
        tfq.search(
            model,
            train[:64],
            tfq.Budget(max_drop=0.01, bytes=100),
            ["w8a8"],
            validation=(x[:300], y[:300]),
            effort="fast",
            progress=False,
        )


def test_a_metric_of_ones_own_is_kept(digits):
    model, train, x, y = digits

    def likelihood(y, outputs):
        return float(np.mean(np.log(np.maximum(outputs[np.arange(len(y)), y], 1e-6))))

    found = controlled(model, train[:64], x[:400], y[:400], 0.1, metric=likelihood)
    float_score = likelihood(y[:400], model.predict(x[:400], verbose=0))
    score = likelihood(y[:400], found.model.predict(x[:400], verbose=0))
    assert score >= float_score - 0.1


def test_the_deviation_of_a_drop_is_that_of_pairs(rng):
    """By the variance of the difference of two shares of the same rows."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    y = rng.integers(0, 2, 400)
    one, two = np.eye(2)[y], np.eye(2)[y]
    one[:40], two[:20] = one[:40, ::-1], two[:20, ::-1]
    scoring = Scoring(model, (rng.normal(size=(400, 2)), y))
    assert scoring([one]) == 0.9 and scoring([two]) == 0.95
    expected = np.sqrt((20 / 400 - (20 / 400) ** 2) / 400)
    assert scoring.deviation([one], [two]) == pytest.approx(expected, rel=0.2)

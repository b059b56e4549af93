"""Distillation from the float model."""

import keras
import numpy as np
import pytest
from train.test_schedules import network, quantized

import tfquant as tfq
from tfquant.train.distill import SoftenedDivergence


def softened(logits, temperature):
    e = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("from_logits", [False, True])
def test_the_loss_is_the_divergence_of_softened_answers(from_logits, temperature, rng):
    teacher, student = rng.normal(size=(2, 5, 4)).astype(np.float32)
    p, q = softened(teacher, temperature), softened(student, temperature)
    expected = (p * np.log(p / q)).sum(axis=-1).mean() * temperature**2
    if not from_logits:
        teacher, student = softened(teacher, 1.0), softened(student, 1.0)
    loss = SoftenedDivergence(temperature, from_logits)
    assert float(loss.compute_loss(teacher, student)) == pytest.approx(expected, rel=1e-3)


def test_the_student_learns_in_place_and_the_teacher_does_not(rng):
    q, x, y = quantized(rng, "w4a8")
    teacher = network()
    before = [w.copy() for w in teacher.get_weights()]
    weights = [w.copy() for w in q.get_weights()]
    distiller = tfq.distill(q, teacher, weight=1.0)
    distiller.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    far = np.abs(q.predict(x, verbose=0) - teacher.predict(x, verbose=0)).mean()
    history = distiller.fit(
        x, y, epochs=25, verbose=0, callbacks=[tfq.FreezeRanges(20), tfq.FreezeBatchNorm(20)]
    ).history
    assert np.abs(q.predict(x, verbose=0) - teacher.predict(x, verbose=0)).mean() < far / 2
    assert any((a != b).any() for a, b in zip(weights, q.get_weights(), strict=True))
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert teacher.trainable
    assert history["ranges_frozen"][-1] == 1


@pytest.mark.parametrize(
    ("arguments", "words"), [({"temperature": 0}, "positive"), ({"weight": 1.5}, "between 0 and 1")]
)
def test_wrong_arguments_are_errors(arguments, words, rng):
    with pytest.raises(ValueError, match=words):
        tfq.distill(network(), network(), **arguments)

"""What TensorBoard is told, read back from its files and checked by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from train.test_schedules import fit, quantized, wrappers

import tfquant as tfq

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder):
    """Returns the events by kind of summary and tag: `(step, tensor)` pairs."""
    events = accumulator.EventAccumulator(
        str(folder / "quantization"), size_guidance={"tensors": 0}
    )
    events.Reload()
    return {
        tag: [(e.step, e.tensor_proto) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def numbers(events):
    return [float(tf.make_ndarray(proto)) for _, proto in events]


def test_every_epoch_is_written(rng, tmp_path):
    q, x, y = quantized(rng, "w4a8")
    fit(q, x, y, 3, tfq.QuantizationTensorBoard(tmp_path))
    events = read(tmp_path)
    for name in ("first", "middle", "last"):
        for key in ("scale", "sqnr_db", "clipped", "float", "quantized"):
            assert [step for step, _ in events[f"weights/{name}/{key}"]] == [0, 1, 2, 3]
        assert [step for step, _ in events[f"weights/{name}/flipped"]] == [1, 2, 3]
        for key in ("low", "high", "scale", "sqnr_db", "clipped"):
            assert [step for step, _ in events[f"activations/{name}/{key}"]] == [0, 1, 2, 3]
    assert b"middle" in events["model"][0][1].string_val[0]


def test_the_last_figures_are_those_of_the_model(rng, tmp_path):
    q, x, y = quantized(rng, "w4a8", weight_quantizer="learned_step")
    before = {w.layer.name: w.layer.kernel.numpy() for w in wrappers(q) if w.weight_quantizers}
    fit(q, x, y, 1, tfq.QuantizationTensorBoard(tmp_path))
    events = read(tmp_path)
    for wrapper in (w for w in wrappers(q) if w.weight_quantizers):
        name, kernel = wrapper.layer.name, wrapper.layer.kernel.numpy().astype(np.float64)
        (_, quantizer), *_ = wrapper.weight_quantizers
        scale = np.asarray(quantizer.params(wrapper.layer.kernel.value).scale, np.float64)
        rounded = np.clip(np.rint(kernel / scale), -7, 7) * scale
        sqnr = 10 * np.log10((kernel**2).sum() / ((kernel - rounded) ** 2).sum())
        found = {
            key: numbers(events[f"weights/{name}/{key}"])[-1]
            for key in ("scale", "sqnr_db", "clipped")
        }
        assert found["scale"] == pytest.approx(scale.mean(), rel=1e-5)
        assert found["sqnr_db"] == pytest.approx(sqnr, abs=1e-2)
        assert found["clipped"] == pytest.approx((np.abs(kernel / scale) > 7.5).mean(), abs=1e-6)
        assert not np.array_equal(before[name], kernel)


def test_a_higher_learning_rate_flips_more(rng, tmp_path):
    flipped = {}
    for rate in (0.0, 1.0):
        q, x, y = quantized(np.random.default_rng(0), "w4a8", weight_quantizer="abs_max")
        q.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
        fit(q, x, y, 1, tfq.QuantizationTensorBoard(tmp_path / str(rate)))
        events = read(tmp_path / str(rate))
        flipped[rate] = numbers(events["weights/middle/flipped"])[-1]
    assert flipped[0.0] == 0 < flipped[1.0] < 1


def test_schedules_are_seen(rng, tmp_path):
    q, x, y = quantized(rng, "w4a8")
    schedule = tfq.PrecisionSchedule({0: 8, 2: 4})
    fit(q, x, y, 3, tfq.FloatWarmup(1), schedule, tfq.QuantizationTensorBoard(tmp_path))
    assert numbers(read(tmp_path)["weights/middle/bits"])[1:] == [32, 8, 4]


def test_histograms_and_activations_can_be_left_out(rng, tmp_path):
    q, x, y = quantized(rng)
    fit(q, x, y, 1, tfq.QuantizationTensorBoard(tmp_path, histograms=False, rows=0))
    tags = read(tmp_path).keys()
    assert "weights/first/scale" in tags
    assert not any(tag.startswith("activations/") or tag.endswith("/float") for tag in tags)


def test_a_float_model_is_refused(rng, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="no quantized layers"):
        model.fit(
            np.zeros((4, 3)),
            np.zeros((4, 2)),
            verbose=0,
            callbacks=[tfq.QuantizationTensorBoard(tmp_path)],
        )

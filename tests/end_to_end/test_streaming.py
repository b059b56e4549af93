"""Recurrent models that run step by step: what leaves the file as a state enters it as one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfquant as tfq

LAYERS = {"lstm": layers.LSTM, "gru": layers.GRU, "simple": layers.SimpleRNN}
STEPS, SEEN = 40, 60


def streaming(name, length, sequences, head=True, bidirectional=False):
    """Returns a model whose inputs are a piece of a signal and states, and which returns them."""
    layer = LAYERS[name](6, return_state=True, return_sequences=sequences)
    count = (1 + bidirectional) * (2 if name == "lstm" else 1)
    layer = layers.Bidirectional(layer) if bidirectional else layer
    x = keras.Input((length, 4), name="piece")
    states = [keras.Input((6,), name=f"state{number}") for number in range(count)]
    y, *new = layer(x, initial_state=states)
    return keras.Model([x, *states], [layers.Dense(3)(y) if head else y, *new])


def streamed(model, pieces, states):
    """Returns the states in front of each piece, and what the model returns for each."""
    before, found = [], []
    call = tf.function(lambda arrays: model(arrays, training=False), reduce_retracing=True)
    for piece in pieces:
        before.append([np.asarray(x) for x in states])
        y, *states = call([tf.constant(x) for x in (piece[None], *states)])
        found.append([np.asarray(x) for x in (y, *states)])
    return [np.concatenate(x) for x in zip(*before, strict=True)], found


def quantized(model, rng, scheme):
    """Returns the model calibrated on states as they occur, and more pieces of a signal."""
    length = model.inputs[0].shape[1]
    pieces = rng.normal(size=(SEEN + STEPS, length, 4)).astype("float32")
    zeros = [np.zeros((1, x.shape[-1]), "float32") for x in model.inputs[1:]]
    states, _ = streamed(model, pieces[:SEEN], zeros)
    q = tfq.quantize_model(model, scheme)
    return tfq.calibrate(q, [pieces[:SEEN], *states], progress=False), pieces[SEEN:], zeros


def fed_back(path, pieces):
    """Returns the real values that a file computes whose raw states are fed back to it."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    first, *states = interpreter.get_input_details()
    outputs, found = interpreter.get_output_details(), []
    for start, end in zip(states, outputs[1:], strict=True):
        assert (start["dtype"], start["quantization"]) == (end["dtype"], end["quantization"])
    raw = [np.full(x["shape"], x["quantization"][1], x["dtype"]) for x in states]
    scale, zero_point = first["quantization"]
    info = np.iinfo(first["dtype"])
    for piece in pieces:
        integers = np.clip(np.rint(piece / np.float32(scale)) + zero_point, info.min, info.max)
        interpreter.set_tensor(first["index"], integers[None].astype(info.dtype))
        for detail, values in zip(states, raw, strict=True):
            interpreter.set_tensor(detail["index"], values)
        interpreter.invoke()
        received = [interpreter.get_tensor(x["index"]) for x in outputs]
        raw = received[1:]
        found.append(
            [
                (x.astype("float32") - np.float32(d["quantization"][1]))
                * np.float32(d["quantization"][0])
                for x, d in zip(received, outputs, strict=True)
            ]
        )
    return found, [x["quantization"][0] for x in outputs]


CASES = [
    (name, scheme, *model)
    for model in ((1, False, True), (3, True, False))
    for name in LAYERS
    for scheme in ("w8a8", "w8a16")
]


# The last: a sequence of one step is the state itself, which has 16 bits.
@pytest.mark.parametrize(
    ("name", "scheme", "length", "sequences", "head"), [*CASES, ("gru", "w8a8", 1, True, False)]
)
def test_raw_states_are_fed_back(name, scheme, length, sequences, head, rng, tmp_path):
    model = streaming(name, length, sequences, head)
    q, pieces, zeros = quantized(model, rng, scheme)
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    received, steps = fed_back(tmp_path / "m.tflite", pieces)
    for other, least in ((q, None), (model, 15)):
        _, expected = streamed(other, pieces, zeros)
        for number, step in enumerate(steps):
            a, b = (np.stack([found[number] for found in x]) for x in (expected, received))
            if least is None:
                # 16-bit sigmoids may be a step off, which states carry on.
                assert np.abs(a - b).max() <= (1 if scheme == "w8a8" else 4) * step * 1.01
            else:
                # Weights of 8 bits leave 18 dB and more of small states that are carried on.
                assert 10 * np.log10(np.square(a).sum() / np.square(a - b).sum()) > least


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_states_of_both_directions_are_fed_back(name, rng, tmp_path):
    model = streaming(name, 3, True, bidirectional=True)
    q, pieces, zeros = quantized(model, rng, "w8a8")
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    received, steps = fed_back(tmp_path / "m.tflite", pieces[:10])
    _, expected = streamed(q, pieces[:10], zeros)
    for number, step in enumerate(steps):
        a, b = (np.stack([found[number] for found in x]) for x in (expected, received))
        assert np.abs(a - b).max() <= step * 1.01


def test_trained_states_keep_one_grid(rng, tmp_path):
    model = streaming("gru", 1, False)
    q, pieces, zeros = quantized(model, rng, "w8a8")
    q.compile(keras.optimizers.SGD(1e-3), loss=["mse", None])
    q.fit(
        [pieces, np.repeat(zeros[0], len(pieces), 0)], rng.normal(size=(len(pieces), 3)), verbose=0
    )
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    fed_back(tmp_path / "m.tflite", pieces[:2])  # Asserts that grids are one.


def test_initial_states_that_nobody_returns_have_their_own_grid(rng, tmp_path):
    x, start = keras.Input((3, 4)), keras.Input((6,))
    model = keras.Model([x, start], layers.GRU(6)(x, initial_state=start))
    rows = [rng.normal(size=(40, *shape)).astype("float32") for shape in ((3, 4), (6,))]
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    output = Interpreter(str(tmp_path / "m.tflite")).get_output_details()[0]
    assert output["dtype"] == np.int8 and not report.float_operators

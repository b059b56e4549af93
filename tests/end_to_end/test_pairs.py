"""Two functions upon each other, which a converter may make one of."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq

FACTORS = np.linspace(0.5, 1.5, 8).astype("float32")

FIRST = {
    "abs": ops.abs,
    "added_constant": lambda x: x + FACTORS,
    "added_number": lambda x: x + 3.0,
    "clamp": ops.relu,
    "constant_less": lambda x: 1.0 - x,
    "difference": lambda x: x - ops.roll(x, 1, 2),
    "less_mean": lambda x: x - ops.mean(x, 2, keepdims=True),
    "maximum": lambda x: ops.maximum(x, 0.2),
    "negative": lambda x: -x,
    "permuted": lambda x: ops.transpose(x, (0, 2, 1)),
    "product": lambda x: x * ops.roll(x, 1, 2),
    "reshaped": lambda x: ops.reshape(x, (-1, 2, 16)),
    "sigmoid": ops.sigmoid,
    "sixth": lambda x: x / 6.0,
    "square": ops.square,
    "sum": lambda x: x + ops.roll(x, 1, 2),
    "times_constant": lambda x: x * FACTORS,
}

ACTIVATIONS = (
    *("celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu"),
    *("log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softmax"),
    *("softplus", "softsign", "sparse_plus", "squareplus", "tanh", "tanh_shrink"),
)
SECOND = {name: lambda name=name: layers.Activation(name) for name in ACTIVATIONS} | {
    "batch_norm": layers.BatchNormalization,
    "clip": lambda: lambda x: ops.clip(x, -0.5, 0.6),
    "convolution": lambda: layers.Conv1D(3, 2),
    "dense": lambda: layers.Dense(3, "relu"),
    "deviation": lambda: lambda x: ops.std(x, 2),
    "difference": lambda: lambda x: x - ops.flip(x, 2),
    "group_norm": lambda: layers.GroupNormalization(2),
    "layer_norm": layers.LayerNormalization,
    "length": lambda: lambda x: ops.norm(x, axis=2),
    "log_sum": lambda: lambda x: ops.logsumexp(x, 2),
    "maximum": lambda: lambda x: ops.max(x, 2),
    "mean": lambda: lambda x: ops.mean(x, 2),
    "pooled": layers.GlobalAveragePooling1D,
    "prelu": lambda: layers.PReLU(alpha_initializer="uniform"),
    "relu_half": lambda: layers.ReLU(0.5),
    "relu_threshold": lambda: layers.ReLU(1.5, 0.1, 0.2),
    "rms_norm": layers.RMSNormalization,
    "scaled": lambda: lambda x: x * np.linspace(0.2, 2, x.shape[-1]).astype("float32"),
    "shifted": lambda: lambda x: x + np.linspace(0.2, 2, x.shape[-1]).astype("float32"),
    "square": lambda: ops.square,
    "unit": layers.UnitNormalization,
}

# Those that a converter made one operator of, and a product of a tensor with its own transpose.
FUSED = {
    *(("difference", name) for name in ("hard_tanh", "layer_norm", "squareplus", "unit")),
    *((name, "hard_tanh") for name in ("product", "square", "sum")),
    *(("clamp", name) for name in ("prelu", "relu_half", "relu_threshold")),
    ("less_mean", "pooled"),
}

# Of which LiteRT has no integer kernel, or which serve better in float.
FLOAT = {("difference", "layer_norm"), ("difference", "squareplus")}

PAIRS = [
    pytest.param(a, b, marks=() if (a, b) in FUSED else pytest.mark.long, id=f"{a}-{b}")
    for a in FIRST
    for b in SECOND
]


@pytest.mark.parametrize("behind_kernel", [False, True], ids=["input", "kernel"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_pair_of_functions_stays_two(first, second, behind_kernel, rng, tmp_path):
    inputs = keras.Input((4, 8))
    x = layers.Dense(8)(inputs) if behind_kernel else inputs
    model = keras.Model(inputs, SECOND[second]()(FIRST[first](x)))
    data = rng.normal(size=(48, 4, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert not (report.broken_claims or report.lost_layers or report.not_compared)
    assert all(layer.parity is None or not layer.parity.differing for layer in report.layers)
    if (first, second) in FUSED - FLOAT:
        assert not report.float_operators
    expected, received = model.predict(data, verbose=0), q.predict(data, verbose=0)
    noise = np.mean((expected - received) ** 2)
    assert noise <= np.mean(expected**2) * 10**-2
    if report.end_to_end.in_steps:
        assert report.end_to_end.differing == 0
    else:  # A function in float behind integers is rounded nowhere.
        assert report.end_to_end.largest < 1e-5 * np.abs(expected).max()

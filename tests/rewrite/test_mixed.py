"""Models of which every layer has a scheme of its own: what they compute, and what that costs."""

import collections

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfquant as tfq
from tfquant.tflite import assign

WORDS = ("w8a8", "w4a8", "w2a8", "w8a16", "w8", "w4", "f16", "float")

# Those whose layers compute integers.
STATIC = ("w8a8", "w4a8", "w2a8", "w8a16")

# Kernels of a network after batch norms and clamps were taken in: name -> what it reads, and what
# it does to widths. A kernel writes its own; what moves integers keeps theirs; what joins them
# brings them to one.
KERNEL, MOVES, JOINS = "kernel", "moves", "joins"


def after(name, y, norm=True, clamp=layers.ReLU):
    """A batch norm and a clamp that have the scheme of the kernel in front."""
    y = layers.BatchNormalization(name=f"{name}_norm")(y) if norm else y
    return clamp(name=f"{name}_clamp")(y) if clamp else y


def relu6(name):
    return layers.ReLU(6.0, name=name)


def residual():
    x = keras.Input((10, 10, 3), name="x")
    y = after("c1", layers.Conv2D(8, 3, padding="same", name="c1")(x))
    z = after("c2", layers.Conv2D(8, 3, padding="same", name="c2")(y), clamp=None)
    y = after("add", layers.Add(name="add")([y, z]), norm=False)
    y = layers.GlobalAveragePooling2D(name="mean")(layers.MaxPooling2D(2, name="pool")(y))
    return keras.Model(x, layers.Dense(4, name="head")(y))


def depthwise():
    x = keras.Input((10, 10, 3), name="x")
    y = after("c1", layers.Conv2D(8, 3, name="c1")(x), clamp=relu6)
    y = layers.DepthwiseConv2D(3, padding="same", name="d1")(y)
    y = layers.Conv2D(6, 1, name="c2")(after("d1", y, clamp=relu6))
    y = layers.Flatten(name="flat")(layers.MaxPooling2D(2, name="pool")(y))
    return keras.Model(x, layers.Dense(4, name="head")(y))


def dense():
    x = keras.Input((12,), name="x")
    y = after("f1", layers.Dense(16, name="f1")(x), norm=False)
    y = after("f2", layers.Dense(16, name="f2")(y), norm=False)
    return keras.Model(x, [layers.Dense(3, name="f3")(y), layers.Dense(2, name="f4")(y)])


def concatenation():
    x = keras.Input((8, 8, 3), name="x")
    y = after("c1", layers.Conv2D(6, 3, padding="same", name="c1")(x), norm=False)
    parts = [layers.Conv2D(4, 3, padding="same", name="c2")(y)]
    parts += [layers.Conv2D(5, 1, name="c3")(x), y]
    y = layers.Concatenate(name="join")(parts)
    return keras.Model(x, layers.Conv2D(4, 1, name="c4")(y))


NETWORKS = {
    residual: {
        "c1": (KERNEL, "x"),
        "c2": (KERNEL, "c1"),
        "add": (KERNEL, "c1", "c2"),
        "pool": (MOVES, "add"),
        "mean": (KERNEL, "pool"),
        "head": (KERNEL, "mean"),
    },
    depthwise: {
        "c1": (KERNEL, "x"),
        "d1": (KERNEL, "c1"),
        "c2": (KERNEL, "d1"),
        "pool": (MOVES, "c2"),
        "flat": (MOVES, "pool"),
        "head": (KERNEL, "flat"),
    },
    dense: {
        "f1": (KERNEL, "x"),
        "f2": (KERNEL, "f1"),
        "f3": (KERNEL, "f2"),
        "f4": (KERNEL, "f2"),
    },
    concatenation: {
        "c1": (KERNEL, "x"),
        "c2": (KERNEL, "c1"),
        "c3": (KERNEL, "x"),
        "join": (JOINS, "c2", "c3", "c1"),
        "c4": (KERNEL, "join"),
    },
}


def needed(calls, words):
    """Counts pairs of a tensor and a width that somebody reads and the tensor has not."""
    widths, found = {"x": None}, set()
    static = {n: tfq.SCHEMES[w].activation_bits if w != "float" else None for n, w in words.items()}
    at_input = [static[n] for n, (_, *inputs) in calls.items() if "x" in inputs and static[n]]
    if at_input:
        widths["x"] = max(at_input)  # The file takes integers.
    for name, (kind, *inputs) in calls.items():
        own = static[name]
        if own is None:
            widths[name] = None
            continue
        present = {widths[x] for x in inputs} - {None}
        wanted = own if kind == KERNEL or len(present) != 1 else present.pop()
        found |= {(x, wanted) for x in inputs if widths[x] != wanted}
        widths[name] = wanted
    return len(found)


def behind_float_moves(calls, words):
    """Layers whose input a float layer only moves: the file brings it from grid to grid, unseen."""
    moved = {n for n, (kind, *_) in calls.items() if kind != KERNEL and words[n] not in STATIC}
    return {name for name, (_, *inputs) in calls.items() if moved & set(inputs)}


def subject(build, seed):
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    model = build()
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    data = rng.normal(size=(8, *model.input_shape[1:])).astype(np.float32)
    words = {name: str(rng.choice(WORDS)) for name in NETWORKS[build]}
    if not any(word.startswith("w") for word in words.values()):
        words["head" if "head" in words else "c1"] = "w8a8"
    recipe = tfq.Recipe("w8a8")
    for name, word in words.items():
        recipe = recipe.where(f"{name}(_norm|_clamp)?", word)
    return model, data, words, recipe


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("build", NETWORKS, ids=lambda f: f.__name__)
def test_any_mix_of_schemes_converts_with_no_more_requantization_than_it_needs(
    build, seed, tmp_path
):
    model, data, words, recipe = subject(build, seed)
    quantized = tfq.quantize_model(model, recipe)
    if recipe.static:
        tfq.calibrate(quantized, data, progress=False)
    path = str(tmp_path / "mixed.tflite")
    report = tfq.to_tflite(quantized, path, samples=data, progress=False)
    # Integer kernels of any width are computed to the last integer, whatever is beside them.
    integer = {name for name, word in words.items() if word in STATIC}
    for layer in report.layers:
        if layer.name in integer and layer.parity is not None and layer.parity.in_steps:
            assert layer.parity.differing == 0, (layer.name, words)
    compared = {layer.name for layer in report.layers if layer.parity is not None}
    assert integer - compared <= behind_float_moves(NETWORKS[build], words), words
    names = [op["op_name"] for op in Interpreter(path)._get_ops_details()]
    assert names.count("QUANTIZE") == needed(NETWORKS[build], words), words
    if "float" not in words.values():
        assert not [name for name in names if name in ("MUL", "SUB", "DIV")]  # Norms are folded.


class OwnFourBits(tfq.QuantizeConfig):
    """A config of the user's own: four bits for each channel."""

    def get_weights_and_quantizers(self, layer):
        spec = tfq.QuantSpec(4, True, True, True, tfq.PerAxis(-1))
        return [(layer.kernel, tfq.quantizers.AbsMax(spec))]

    def get_output_quantizers(self, layer):
        return [tfq.quantizers.Static(tfq.QuantSpec(8))]


keras.saving.register_keras_serializable(package="tfquant_tests")(OwnFourBits)


def conv_norm_relu(mark=lambda layer: layer, activation=None):
    x = keras.Input((8, 8, 3))
    y = mark(layers.Conv2D(4, 3, activation=activation, name="conv"))(x)
    if activation is None:
        y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Conv2D(2, 1, name="last")(y)
    return keras.Model(x, y)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("how", ["by hand", "by recipe"])
def test_a_config_of_ones_own_folds_batch_norm_and_takes_the_clamp(how, activation, rng, tmp_path):
    """A Conv2D of 4 bits has the operators that one of the scheme's has."""
    mark = lambda layer: tfq.quantize_annotate_layer(layer, OwnFourBits())  # noqa: E731
    if how == "by hand":
        model, recipe = conv_norm_relu(mark, activation), "w8a8"
    else:
        recipe = tfq.Recipe("w8a8").where("conv", OwnFourBits())
        model = conv_norm_relu(activation=activation)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    data = rng.normal(size=(8, 8, 8, 3)).astype(np.float32)
    quantized = tfq.calibrate(tfq.quantize_model(model, recipe), data, progress=False)
    path = str(tmp_path / "own.tflite")
    report = tfq.to_tflite(quantized, path, samples=data, progress=False)
    counts = collections.Counter(op["op_name"] for op in Interpreter(path)._get_ops_details())
    counts.pop("DELEGATE", None)
    assert counts == {"CONV_2D": 2}
    (conv,) = [layer for layer in report.layers if layer.name == "conv"]
    assert conv.weight_bits == 4
    # 4-bit weights of 27 inputs each.
    expected = np.asarray(model(data))
    np.testing.assert_allclose(quantized(data), expected, atol=0.25 * np.abs(expected).max())


def test_an_operator_between_two_widths_is_found_out(tmp_path, monkeypatch):
    """As a kernel that reads 8 bits and writes 16 its output is noise, and no unit is compared."""
    model, data, _, _ = subject(residual, 2)
    recipe = tfq.Recipe("w8a8").where("add.*", "float").where("pool", "w8a16")
    q = tfq.calibrate(tfq.quantize_model(model, recipe), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "right.tflite", samples=data, progress=False)
    assert report.end_to_end.largest <= 1
    monkeypatch.setattr(assign, "_why_not_together", lambda *_: None)
    with pytest.raises(RuntimeError, match="They part at layer 'quantize_add_clamp'"):
        tfq.to_tflite(q, tmp_path / "wrong.tflite", samples=data, progress=False)
    assert not (tmp_path / "wrong.tflite").exists()

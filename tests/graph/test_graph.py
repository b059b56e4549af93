import keras
import numpy as np
import pytest
from keras import layers, ops
from small import chain, randomize

import tfquant as tfq
from tfquant.graph.graph import trace

# Keras 3.15 converts what it reads from a file without numpy 2's `copy` keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEP = 0.03  # Of the largest value: 8-bit weights, no activation rounded.


def encoder(features=5, name=None):
    x = keras.Input((features,))
    return keras.Model(x, layers.Dense(features, activation="relu", name="d")(x), name=name)


def one_call_of_each():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, activation="relu"), layers.Dense(2)]
    )


def sequential_in_sequential():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu")])
    return keras.Sequential([keras.Input((6,)), layers.Dense(4), inner, layers.Dense(2)])


def sequential_in_functional():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="relu")])
    return chain(keras.Input((6,)), inner, layers.Dense(2))


def two_deep_called_twice():
    inmost = encoder()
    x = keras.Input((5,))
    inner = keras.Model(x, layers.Add()([inmost(x), x]))
    x = keras.Input((6,))
    y = layers.Dense(5)(x)
    return keras.Model(x, layers.Dense(2)(inner(inner(y))))


def same_model_at_two_depths():
    inmost = encoder()
    x = keras.Input((5,))
    inner = keras.Model(x, inmost(x) + x)
    x = keras.Input((5,))
    return keras.Model(x, [inner(x), inmost(x)])


def two_models_with_layers_of_one_name():
    x = keras.Input((5,))
    return keras.Model(x, layers.Concatenate()([encoder(name="a")(x), encoder(name="b")(x)]))


def layer_in_and_outside_a_nested_model():
    shared = layers.Dense(5)
    x = keras.Input((5,))
    inner = keras.Model(x, shared(x))
    x = keras.Input((5,))
    return keras.Model(x, [shared(x), layers.ReLU()(inner(x))])


def nested_dicts_of_inputs_and_outputs():
    a, b = keras.Input((4,), name="zed"), keras.Input((5,), name="abc")
    sides = {"o2": layers.Dense(4)(layers.Concatenate()([a, b])), "o1": layers.Dense(5)(a)}
    inner = keras.Model({"zed": a, "abc": b}, sides)
    p, r = keras.Input((4,)), keras.Input((5,))
    once = inner({"zed": p, "abc": r})
    twice = inner({"zed": once["o2"], "abc": once["o1"]})
    return keras.Model([p, r], [twice["o2"], twice["o1"]])


def nested_lists():
    a, b = keras.Input((4,)), keras.Input((5,))
    inner = keras.Model([a, b], [layers.Dense(4, activation="relu")(a), layers.Dense(5)(b)])
    p, r = keras.Input((4,)), keras.Input((5,))
    return keras.Model([p, r], inner(inner([p, r])))


def nested_identity():
    x = keras.Input((5,))
    return chain(keras.Input((5,)), keras.Model(x, x), layers.Dense(2))


def shared_layer():
    a, b = keras.Input((4,)), keras.Input((4,))
    dense = layers.Dense(3, activation="relu")
    return keras.Model([a, b], [dense(a), layers.Dense(2)(dense(b))])


def shared_layer_without_config():
    a, b = keras.Input((4,)), keras.Input((4,))
    norm = layers.LayerNormalization()
    return keras.Model([a, b], layers.Dense(2)(layers.Add()([norm(a), norm(b)])))


def output_used_inside():
    x = keras.Input((6,))
    y = layers.Dense(4)(x)
    return keras.Model(x, [y, layers.ReLU()(y), y])


def input_is_an_output():
    x = keras.Input((6,))
    return keras.Model(x, [x, layers.Dense(2)(x)])


def scalar_on_the_right():
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(2)(layers.Dense(4)(x) + 1.0))


def scalar_on_the_left():
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(2)(1.0 - layers.Dense(4)(x)))


def slices():
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(2)(layers.Dense(6)(x)[:, 1:4]))


def operations_of_two_tensors():
    x = keras.Input((6,))
    y = layers.Dense(4)(x) + layers.Dense(4)(x)
    return keras.Model(x, layers.Dense(2)(ops.concatenate([ops.relu(y), y], axis=-1)))


def operation_in_a_nested_model():
    x = keras.Input((5,))
    inner = keras.Model(x, x * 2.0)
    return chain(keras.Input((5,)), inner, layers.Dense(5), inner)


MODELS = (
    one_call_of_each,
    sequential_in_sequential,
    sequential_in_functional,
    two_deep_called_twice,
    same_model_at_two_depths,
    two_models_with_layers_of_one_name,
    layer_in_and_outside_a_nested_model,
    nested_dicts_of_inputs_and_outputs,
    nested_lists,
    nested_identity,
    shared_layer,
    shared_layer_without_config,
    output_used_inside,
    input_is_an_output,
    scalar_on_the_right,
    scalar_on_the_left,
    slices,
    operations_of_two_tensors,
    operation_in_a_nested_model,
)


def predictions(model, xs):
    return [np.asarray(y) for y in keras.tree.flatten(model(xs[0] if len(xs) == 1 else xs))]


def samples(model, rng):
    return [rng.normal(size=(8, *x.shape[1:])).astype(np.float32) for x in model.inputs]


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
class TestEveryShapeOfModel:
    def test_a_quantized_model_computes_what_the_float_model_does(self, build, rng):
        model = randomize(build(), rng)
        xs = samples(model, rng)
        quantized = tfq.quantize_model(model)
        for y, float_y in zip(predictions(quantized, xs), predictions(model, xs), strict=True):
            np.testing.assert_allclose(y, float_y, atol=STEP * np.abs(float_y).max())

    def test_a_calibrated_model_is_the_same_once_saved_and_loaded(self, build, rng, tmp_path):
        model = randomize(build(), rng)
        xs = samples(model, rng)
        quantized = tfq.quantize_model(model)
        tfq.calibrate(quantized, xs if len(xs) > 1 else xs[0], progress=False)
        quantized.save(tmp_path / "q.keras")
        loaded = keras.models.load_model(tmp_path / "q.keras")
        before, after = predictions(quantized, xs), predictions(loaded, xs)
        for y, float_y in zip(before, predictions(model, xs), strict=True):
            # Each of up to six roundings in a row may cost half a step of 1/128.
            np.testing.assert_allclose(y, float_y, atol=2 * STEP * np.abs(float_y).max())
        for y, loaded_y in zip(before, after, strict=True):
            np.testing.assert_array_equal(y, loaded_y)

    def test_weights_are_neither_lost_nor_doubled(self, build, rng):
        model = randomize(build(), rng)
        quantized = tfq.quantize_model(model)
        names = [v.path for v in model.weights if v.path.endswith("kernel")]
        found = [v for v in quantized.weights if v.path.endswith("kernel")]
        # Products with numbers become kernels of ones, which hold no weights.
        held = [v for v in found if v.trainable]
        assert len(held) == len(names)

    def test_the_models_own_nodes_are_left_alone(self, build):
        model = build()
        before = [(x, len(x._inbound_nodes)) for x in model.layers]
        tfq.quantize_model(model)
        assert [(x, len(x._inbound_nodes)) for x in model.layers] == before


def test_a_node_lists_the_tensors_among_its_arguments():
    graph = trace(shared_layer())
    assert [len(node.inputs) for node in graph.nodes] == [1, 1, 1]


def test_a_call_knows_who_reads_its_output():
    model = output_used_inside()
    graph = trace(model)
    dense, relu = graph.nodes
    assert graph.consumers(dense.outputs) == [relu]
    assert graph.producer(relu.inputs[0]) is dense
    assert graph.producer(dense.inputs[0]) is None
    assert graph.is_output(dense.outputs) and not graph.is_output(dense.inputs[0])

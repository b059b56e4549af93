"""What every pass must do: leave what a model computes as it is."""

import keras
import numpy as np
import pytest
from keras import layers
from small import chain

import tfquant as tfq
from tfquant.graph.walk import all_layers
from tfquant.passes import PASSES
from tfquant.registry import KERAS_LAYERS
from tfquant.rewrite.choose import choose


def fused():
    norm = layers.BatchNormalization
    return chain((6, 6, 3), layers.Conv2D(4, 3), norm(), layers.ReLU(6.0), layers.Conv2D(3, 1))


def norms_alone():
    norm, flat = layers.BatchNormalization, layers.Flatten()
    return chain(
        (6, 3), norm(), layers.ReLU(), norm(), flat, norm(), layers.Dense(4), layers.ReLU()
    )


def shared_norm():
    x, norm = keras.Input((6,)), layers.BatchNormalization()
    y = norm(layers.Dense(6)(x))
    return keras.Model(x, [norm(layers.ReLU()(y)), layers.Dense(2)(y)])


def norm_in_front():
    return chain((6,), layers.Dense(5, "relu"), layers.BatchNormalization(), layers.Dense(3))


def factors():
    rescale = layers.Rescaling
    return chain(
        (5, 5, 2), rescale(0.5, 1.0), rescale(2.0, -3.0), layers.Conv2D(2, 3), rescale(3.0)
    )


def clamps():
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3)(x)
    sides = [layers.Conv2D(3, 1)(layers.ReLU()(y)) for _ in range(2)]
    return keras.Model(x, [layers.Add()(sides), layers.ReLU(6.0)(y)])


def permutes():
    x = keras.Input((4, 5, 3))
    first = layers.Permute((3, 1, 2))
    y = layers.Add()([first(x), layers.Permute((3, 1, 2))(x)])
    y = layers.Permute((2, 3, 1))(layers.ReLU()(y))
    return keras.Model(x, layers.Conv2D(2, 3)(y))


def residual_stream():
    x = keras.Input((6, 8))
    y = layers.Add()([x, layers.Dense(8)(x)])
    y = layers.Add()([y, layers.Dense(8)(layers.LayerNormalization()(y))])
    return keras.Model(x, layers.Dense(3)(layers.LayerNormalization()(y)))


def hidden_scores():
    x = keras.Input((4, 6))
    scores = layers.Dot((2, 2))([layers.Dense(6)(x), x])
    return keras.Model(x, layers.Softmax()(scores + np.triu(np.full((4, 4), -1e9, "float32"), 1)))


MODELS = (
    fused,
    norms_alone,
    shared_norm,
    norm_in_front,
    factors,
    clamps,
    permutes,
    residual_stream,
    hidden_scores,
)


def read(build, rng):
    """Returns a model of random weights, its graph before any pass, and data."""
    keras.utils.set_random_seed(0)
    model = build()
    for variable in model.weights:
        if len(variable.shape) == 1 and "normalization" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    graph = choose(model, tfq.Recipe("w8a8").rows(model), KERAS_LAYERS, "weights", "litert")
    return model, graph, rng.normal(size=(4, *model.input_shape[1:])).astype(np.float32)


def outputs(model, data):
    return [np.asarray(y) for y in keras.tree.flatten(model(data))]


@pytest.mark.parametrize("number", range(len(PASSES)), ids=lambda i: PASSES[i].__name__)
@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
def test_a_pass_changes_no_output(build, number, rng):
    """In its place, behind all that run before it."""
    model, graph, data = read(build, rng)
    for rewrite in PASSES[:number]:
        rewrite(graph)
    before = outputs(graph.to_model(), data)
    PASSES[number](graph)
    after = outputs(graph.to_model(), data)
    for x, y, expected in zip(before, after, outputs(model, data), strict=True):
        atol = 1e-5 * np.abs(expected).max()  # Products in another order.
        np.testing.assert_allclose(y, x, atol=atol)
        np.testing.assert_allclose(y, expected, atol=atol)


# What each pass is for: a model on which it does something, and what is gone behind it.
WORK = {
    "delay_permutes": (permutes, None),
    "cancel_permutes": (permutes, layers.Permute),
    "merge_affine": (factors, None),
    "merge_clamps": (clamps, None),
    "fold_forward": (norm_in_front, layers.BatchNormalization),
    "hide_scores": (hidden_scores, None),
    "keep_residuals": (residual_stream, None),
    "fuse": (fused, layers.BatchNormalization),
    "make_ones": (norms_alone, layers.BatchNormalization),
}


def facts(graph):
    return [
        (type(n.layer), type(n.config), n.clamp, len(n.inputs), n.batch_norm is None, n.norms)
        for n in graph.nodes
    ]


def test_every_pass_has_a_model_on_which_it_works():
    assert set(WORK) == {rewrite.__name__ for rewrite in PASSES}


@pytest.mark.parametrize("number", range(len(PASSES)), ids=lambda i: PASSES[i].__name__)
def test_a_pass_does_its_work(number, rng):
    build, gone = WORK[PASSES[number].__name__]
    _, graph, _ = read(build, rng)
    for rewrite in PASSES[:number]:
        rewrite(graph)
    before = facts(graph)
    PASSES[number](graph)
    assert facts(graph) != before
    assert gone is None or not [n for n in graph.nodes if type(n.layer) is gone]


@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
def test_passes_leave_the_users_layers_alone(build, rng):
    model, graph, data = read(build, rng)
    before, weights = outputs(model, data), [w.copy() for w in model.get_weights()]
    for rewrite in PASSES:
        rewrite(graph)
    for x, y in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(before, outputs(model, data), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not {n.clone for n in graph.nodes} & set(all_layers(model))

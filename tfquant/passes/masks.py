"""Masks in front of a softmax: numbers so large that they would be all that a grid can tell."""

import keras
import numpy as np
from keras import activations, layers, tree

from tfquant.configs.elementwise import OutputConfig, SameGridConfig, SumConfig
from tfquant.configs.parts import (
    ConstantConfig,
    GivenMaskConfig,
    MaskedScoresConfig,
    MatMulConfig,
    ScoresConfig,
)
from tfquant.graph.graph import Graph, Node
from tfquant.layers.parts import ChannelAffine, Constant, Select
from tfquant.unfold.attention import HIDDEN, LARGE

# Layers and operations that hand on what they read, one number for one.
_HANDING_ON = frozenset(
    {
        "Activation",
        "BroadcastTo",
        "Dropout",
        "ExpandDims",
        "GetItem",
        "Identity",
        "Permute",
        "RepeatHeads",
        "RepeatVector",
        "Reshape",
        "Squeeze",
        "Tile",
        "Transpose",
    }
)


def hide_scores(graph: Graph) -> None:
    """Has masks hide scores by what a softmax cannot see, and no more.

        softmax(s + (1 - mask) * -1e9)         ->  softmax(s + (1 - mask) * -1000)
        softmax(where(mask, s, -1e9))          ->  softmax(s + where(mask, 0, -1000))

    Taken as they are, grids would reach down to -1e9 and leave the scores one integer. `exp(-1000)`
    is 0 in any arithmetic. A row that is hidden whole keeps its scores, all below the grid of the
    sum: there they are equal, as in the float model.

    Args:
        graph: `Graph`, changed in place.
    """
    for node in list(graph.nodes):
        if _is_softmax(node) and node.config is not None and node.scheme.static:
            _Masks(graph, node.scheme).hide(node)


class _Masks:
    """Walks from a softmax to its scores."""

    def __init__(self, graph, scheme):
        self.graph, self.scheme, self.spec = graph, scheme, scheme.activations
        self.reaching = {}

    def hide(self, softmax):
        """Hides what is to be hidden of the scores that `softmax` reads."""
        self._scores(softmax.inputs[0], masked=False)

    def _scores(self, x, masked):
        """Hides what is to be hidden of scores `x`, which nothing but softmaxes see."""
        node = self.graph.producer(x)
        config = None if node is None else node.config
        if config is None or not self._reaches_softmax(node):
            return
        if type(config) is SumConfig and len(node.inputs) == 2:
            self._sum(node, config, masked)
        elif type(node.layer) is Select and type(config) is SameGridConfig:
            self._select(node)
        elif _hands_on(node) and type(node.layer).__name__ not in ("Permute", "Transpose"):
            self._scores(node.inputs[0], masked)
        elif not masked and type(config) is MatMulConfig:
            self._set(node, ScoresConfig(self.spec))

    def _sum(self, node, config, masked):
        """Makes the masks that are added to scores small."""
        found = [self._is_mask(x) for x in node.inputs]
        if any(found):
            self._set(node, MaskedScoresConfig(self.spec, sign=config.sign))
            self._part(node, node.inputs[found.index(True)])
        for side, mask in zip(node.inputs, found, strict=True):
            if not mask:
                self._scores(side, masked or any(found))

    def _set(self, node, config):
        node.marked, node.scheme, node.config = True, self.scheme, config

    def _reaches_softmax(self, node):
        """Whether all that reads what a call computes makes scores of it."""
        if node not in self.reaching:
            self.reaching[node] = False
            outputs = tree.flatten(node.outputs)
            readers = [
                reader
                for x in outputs
                for reader in self.graph.consumers(x)
                if type(reader.layer) is not Constant  # It reads a shape.
            ]
            self.reaching[node] = (
                bool(readers)
                and not any(self.graph.is_output(x) for x in outputs)
                and all(self._makes_scores(reader) for reader in readers)
            )
        return self.reaching[node]

    def _makes_scores(self, node):
        makes = type(node.layer) in (layers.Add, layers.Subtract, Select) or _hands_on(node)
        return _is_softmax(node) or (makes and self._reaches_softmax(node))

    def _is_mask(self, x) -> bool:
        """Makes the numbers that are added to scores small, if they are a mask's."""
        node = self.graph.producer(x)
        if node is None:
            return self._is_given_mask(x)
        if not self._reaches_softmax(node):
            return False
        if type(node.layer) is Constant:
            return _clip(node.layer)
        if type(node.layer) is ChannelAffine:
            return _shrink(node.layer)
        if type(node.layer) is layers.Multiply:
            return any([self._is_mask(y) for y in node.inputs])
        if type(node.layer) is Select:
            return any([self._is_mask(y) for y in node.inputs[1:]])
        return _hands_on(node) and self._is_mask(node.inputs[0])

    def _is_given_mask(self, x):
        """Whether an input of the model is only added to scores; its grid ends at `HIDDEN` then."""
        readers = self.graph.consumers(x)
        if not keras.backend.is_float_dtype(x.dtype) or not all(map(self._makes_scores, readers)):
            return False
        layer = layers.Identity(name=f"{x.name}_hiding")
        new = Node(layer, layer, (x,), {}, layer(x))
        self._put(new, before=readers[0])
        self._set(new, GivenMaskConfig(self.spec))
        for reader in readers:
            reader.read_instead({x: new.outputs})
        self.graph.forget_order()
        return True

    def _part(self, node, mask):
        """Adds what a constant mask adds to scores that it shows by a sum of its own.

        On one grid with -1000 the numbers would be lost.
        """
        values = _constant(self.graph.producer(mask))
        shown = None if values is None else np.where(np.abs(values) < LARGE, values, 0.0)
        if shown is None or not shown.any():
            return
        first = mask is node.inputs[0]
        scores, name = node.inputs[1 if first else 0], node.layer.name
        hiding = self._held(values - shown, scores, f"{name}_mask", ConstantConfig(self.spec), node)
        shown = self._held(shown, scores, f"{name}_shown", ConstantConfig(self.spec), node)
        layer = type(node.layer)(name=f"{name}_sum")
        pair = [shown, scores] if first else [scores, shown]
        new = Node(layer, layer, (pair,), {}, layer(pair))
        self._put(new, before=node)
        self._set(new, SumConfig(self.spec, sign=node.config.sign))
        sign = MaskedScoresConfig(self.spec, sign=1 if first else node.config.sign)
        self._set(node, sign)
        node.args = ([new.outputs, hiding],)
        self.graph.forget_order()

    def _select(self, node):
        """Makes a sum of a choice between scores and a number that hides them."""
        condition, *sides = node.args
        values = [_constant(self.graph.producer(x)) for x in sides]
        hidden = [v is not None and v.dtype.kind == "f" and v.max() <= -LARGE for v in values]
        if hidden not in ([True, False], [False, True]):
            return
        scores = sides[hidden.index(False)]
        mask = self._mask(node, condition, hidden, scores)
        add = layers.Add(name=node.layer.name)
        new = Node(add, add, ([scores, mask],), {}, node.outputs)
        add([scores, mask])
        self._put(new, before=node)
        self._set(new, MaskedScoresConfig(self.spec))
        self.graph.nodes.remove(node)
        self.graph.forget_order()
        self.reaching.clear()
        self._scores(scores, masked=True)

    def _mask(self, node, condition, hidden, like):
        """Returns the tensor of 0 where a choice takes scores, and of `HIDDEN` elsewhere."""
        numbers, name = [HIDDEN if h else 0.0 for h in hidden], node.layer.name
        known = _constant(self.graph.producer(condition))
        if known is not None:
            values = np.where(known, *numbers).astype(np.float32)
            return self._held(values, like, f"{name}_mask", ConstantConfig(self.spec), node)
        shape, config = (1,) * len(node.outputs.shape), OutputConfig(self.spec)
        sides = [
            self._held(np.full(shape, number, np.float32), like, f"{name}_{side}", config, node)
            for number, side in zip(numbers, ("then", "else"), strict=True)
        ]
        layer = Select(name=f"{name}_mask")
        mask = layer(condition, *sides)
        new = Node(layer, layer, (condition, *sides), {}, mask)
        self._put(new, before=node)
        self._set(new, SameGridConfig())
        return mask

    def _held(self, values, like, name, config, node):
        layer = Constant.of(values, False, name)
        new = Node(layer, layer, (like,), {}, layer(like))
        self._put(new, before=node)
        self._set(new, config)
        return new.outputs

    def _put(self, new, before):
        places = (i for i, node in enumerate(self.graph.nodes) if node is before)
        self.graph.nodes.insert(next(places), new)
        self.graph.forget_order()


def _is_softmax(node):
    layer, last = node.layer, (-1, [-1], (-1,))
    if type(layer) is layers.Activation:
        return layer.activation is activations.softmax
    if type(layer) is layers.Softmax:
        return layer.axis in (*last, len(node.inputs[0].shape) - 1)
    return type(layer).__name__ == "Softmax" and layer.axis in last


def _hands_on(node):
    layer = node.layer
    if type(layer) is layers.Activation:
        return layer.activation is activations.linear
    return type(layer).__name__ in _HANDING_ON and len(node.inputs) == 1


def _constant(node):
    """Returns the values of a call of a `Constant`, `None` where it is none, or may train."""
    if node is None or type(node.layer) is not Constant or node.layer.free_axes:
        return None
    return None if node.layer.trainable else keras.ops.convert_to_numpy(node.layer.values)


def _clip(layer):
    """Clips constants that hide scores; says whether they do."""
    (values,) = layer.get_weights()
    if values.dtype.kind != "f" or np.abs(values).max() < LARGE:
        return False
    layer.set_weights([np.clip(values, HIDDEN, -HIDDEN)])
    return True


def _shrink(layer):
    """Scales a factor and a shift that make a mask of zeros and ones; says whether they do."""
    factor, shift, *rest = layer.get_weights()
    largest = max(np.abs(factor).max(), np.abs(shift).max())
    if largest < LARGE:
        return False
    ratio = min(1.0, -HIDDEN / float(largest))
    layer.set_weights([factor * ratio, shift * ratio, *rest])
    return True

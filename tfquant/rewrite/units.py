"""Which calls of a model the device computes as one, and which quantizers they share."""

import dataclasses

from keras import layers, tree

from tfquant.registry.keras_layers import LINEAR, clamp_of
from tfquant.rewrite.graph import Graph, Node

# Kernels that apply a clamp to their output themselves.
CLAMPING = (*LINEAR, layers.Add, layers.Subtract, layers.Multiply)


@dataclasses.dataclass
class Unit:
    """Calls that become one kernel: a layer, a batch norm behind it, a clamp behind both.

    Attributes:
        node: The call of the layer.
        batch_norm: The call of the batch norm, or `None`.
        clamp: `(low, high)`, or `None`.
        outputs: Structure of KerasTensors that the last of the calls returns.
        last: The last of the calls.
    """

    node: Node
    batch_norm: Node | None = None
    clamp: tuple | None = None
    last: Node = None

    @property
    def outputs(self):
        """Structure of KerasTensors behind the last call."""
        return self.last.outputs


def fuse(graph: Graph, is_quantized) -> list[Unit]:
    """Groups the calls of `graph` into units.

    A batch norm joins the linear layer before it when nothing else reads that layer's output, the
    layer has no activation of its own, and both are called once. A ReLU or ReLU6 joins what comes
    before it under the same condition.

    Args:
        graph: `Graph`.
        is_quantized: Function of a node: whether it is to be quantized.

    Returns:
        Units in the order of the calls of their layers.
    """
    calls = {}
    for node in graph.nodes:
        calls[id(node.layer)] = calls.get(id(node.layer), 0) + 1
    units, taken = [], set()
    for node in graph.nodes:
        if id(node) in taken:
            continue
        unit = Unit(node, last=node)
        if is_quantized(node) and type(node.layer) in CLAMPING and calls[id(node.layer)] == 1:
            follower = _only_follower(graph, unit.last)
            if (
                follower is not None
                and type(node.layer) in LINEAR
                and type(follower.layer) is layers.BatchNormalization
                and calls[id(follower.layer)] == 1
                and is_quantized(follower)
                and _normalizes_channels(follower)
            ):
                unit.batch_norm = unit.last = follower
                taken.add(id(follower))
                follower = _only_follower(graph, unit.last)
            if follower is not None and clamp_of(follower.layer) and is_quantized(follower):
                unit.clamp, unit.last = clamp_of(follower.layer), follower
                taken.add(id(follower))
        units.append(unit)
    return units


def _only_follower(graph, node):
    """Returns the one call that reads the one output of `node`, if that is all that becomes of it."""
    outputs = tree.flatten(node.outputs)
    if len(outputs) != 1 or graph.is_output(outputs[0]):
        return None
    consumers = graph.consumers(outputs[0])
    return consumers[0] if len(consumers) == 1 and len(consumers[0].inputs) == 1 else None


def _normalizes_channels(node):
    axis, rank = node.layer.axis, len(node.inputs[0].shape)
    return axis in (-1, rank - 1)

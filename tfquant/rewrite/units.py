"""Which calls of a model the device computes as one, and which quantizers they share."""

import dataclasses

from keras import layers, tree

from tfquant.graph.graph import Graph, Node
from tfquant.registry.keras_layers import LINEAR, clamp_of

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


def fuse(graph: Graph, takes_followers, is_marked) -> list[Unit]:
    """Groups the calls of `graph` into units.

    A batch norm joins the linear layer before it when nothing else reads that layer's output. A
    ReLU or ReLU6 joins what comes before it under the same condition. A layer that is called
    several times is fused with a batch norm only if that follows each of its calls.

    Args:
        graph: `Graph`.
        takes_followers: Function of a node: whether its kernel computes a batch norm or a clamp
            behind it as well.
        is_marked: Function of a node: whether the user wants it quantized.

    Returns:
        Units in the order of the calls of their layers.
    """
    calls = {}
    for node in graph.nodes:
        calls.setdefault(id(node.layer), []).append(node)
    units = {id(n): _unit(graph, n, takes_followers, is_marked) for n in graph.nodes}
    for nodes in calls.values():
        found = [units[id(node)] for node in nodes]
        norms = {id(unit.batch_norm.layer) if unit.batch_norm else None for unit in found}
        if len(norms) > 1 or any(len(calls[key]) != len(nodes) for key in norms - {None}):
            for unit in found:
                unit.batch_norm, unit.clamp, unit.last = None, None, unit.node
    absorbed = set()
    for unit in units.values():
        node = unit.node
        while node is not unit.last:
            node = _only_follower(graph, node)
            absorbed.add(id(node))
    return [units[id(node)] for node in graph.nodes if id(node) not in absorbed]


def _unit(graph, node, takes_followers, is_marked):
    """Returns the unit that starts with `node`."""
    unit = Unit(node, last=node)
    clamping = type(node.layer) in CLAMPING or isinstance(node.layer, layers.BatchNormalization)
    if not takes_followers(node) or not clamping:
        return unit
    follower = _only_follower(graph, node)
    if (
        follower is not None
        and type(node.layer) in LINEAR
        and isinstance(follower.layer, layers.BatchNormalization)
        and is_marked(follower)
        and _normalizes_channels(follower)
    ):
        unit.batch_norm = unit.last = follower
        follower = _only_follower(graph, follower)
    if follower is not None and clamp_of(follower.layer) and is_marked(follower):
        unit.clamp, unit.last = clamp_of(follower.layer), follower
    return unit


def _only_follower(graph, node):
    """Returns the one call that reads the output of `node`, if nothing else does."""
    outputs = tree.flatten(node.outputs)
    if len(outputs) != 1 or graph.is_output(outputs[0]):
        return None
    consumers = graph.consumers(outputs[0])
    return consumers[0] if len(consumers) == 1 and len(consumers[0].inputs) == 1 else None


def _normalizes_channels(node):
    axis, rank = node.layer.axis, len(node.inputs[0].shape)
    return axis in (-1, rank - 1)

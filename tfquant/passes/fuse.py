"""What a kernel computes as well: the batch norm behind it, and the clamp behind both."""

from keras import activations, layers, tree

from tfquant.configs.linear import LinearConfig
from tfquant.graph.graph import Graph, Node
from tfquant.quantizers import WeightQuantizer
from tfquant.registry.keras_layers import LINEAR, clamp_of

# Kernels that apply a clamp to their output themselves.
CLAMPING = (*LINEAR, layers.Add, layers.Subtract, layers.Multiply)


def fuse(graph: Graph) -> None:
    """Makes one call of those that become one kernel.

        conv, batch norm, relu  ->  conv, with `batch_norm` and `clamp`

    A batch norm joins the linear layer before it when nothing else reads that layer's output. A
    ReLU or ReLU6 joins what comes before it under the same condition. A layer that is called
    several times is fused with a batch norm only if that follows each of its calls. Widths do not
    matter, nor who chose them.

    Args:
        graph: `Graph`, changed in place.
    """
    chains = {node: _chain(graph, node) for node in graph.nodes}
    for node in graph.nodes:
        calls = graph.calls(node.layer)
        norms = {chains[call][0] and chains[call][0].layer for call in calls}
        if len(norms) > 1 or any(len(graph.calls(x)) != len(calls) for x in norms - {None}):
            chains[node] = None, None
    absorbed = set()
    for node in graph.nodes:
        absorbed.update(x for x in chains[node] if x is not None)
    for node in graph.nodes:
        norm, clamp = chains[node]
        node.batch_norm = norm
        node.clamp = None if clamp is None else clamp_of(clamp.layer)
        node.outputs = (clamp or norm or node).outputs
    graph.nodes[:] = [node for node in graph.nodes if node not in absorbed]
    graph.forget_order()


def _chain(graph, node) -> tuple[Node | None, Node | None]:
    """Returns the calls of a batch norm and of a clamp that the kernel of `node` takes."""
    norm = clamp = None
    if not _takes_followers(node):
        return norm, clamp
    follower = graph.only_reader(node)
    if _takes_norm(node) and follower is not None and _is_its_norm(follower):
        norm, follower = follower, graph.only_reader(follower)
    if follower is not None and follower.marked and clamp_of(follower.layer):
        clamp = follower
    return norm, clamp


def _takes_followers(node):
    clamping = type(node.layer) in CLAMPING or isinstance(node.layer, layers.BatchNormalization)
    # What takes a layer apart says itself where its parts end.
    return clamping and node.config is not None and not (node.own and node.part)


def _takes_norm(node):
    return (
        type(node.layer) in LINEAR
        and node.layer.activation is activations.linear
        and _quantizes_kernel_alone(node.config, node.layer)
    )


def _is_its_norm(node):
    axis, rank = getattr(node.layer, "axis", None), len(node.inputs[0].shape)
    return (
        isinstance(node.layer, layers.BatchNormalization)
        and node.marked
        and axis in (-1, rank - 1)
        and len(tree.flatten(node.outputs)) == 1
    )


def _quantizes_kernel_alone(config, layer):
    """Whether `config` quantizes the kernel of `layer`, which a batch norm can then be folded into,
    and no other weight."""
    if isinstance(config, LinearConfig):
        return True
    pairs = config.get_weights_and_quantizers(layer)
    if len(pairs) != 1 or pairs[0][0] is not layer.kernel:
        return False
    return isinstance(pairs[0][1], WeightQuantizer) and not pairs[0][1].grouped

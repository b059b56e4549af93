"""Clamps that read one tensor, made one, and clamps of what is clamped already, made none."""

from tfquant.graph.graph import Graph, put_in_place
from tfquant.registry.keras_layers import clamp_of


def merge_clamps(graph: Graph) -> None:
    """Makes one call of all ReLUs of one kind that read the same tensor, or each other.

        relu(x), relu(x)  ->  y = relu(x), y
        relu(relu6(x))    ->  relu6(x)

    Cells of a NASNet start with a ReLU each. The TFLite converter makes one of them whether asked
    or not, and draws it into the kernel in front, whose output is then rounded once and not twice.

    Args:
        graph: `Graph`, changed in place.
    """
    first, merged, kept = {}, {}, []
    for node in graph.nodes:
        node.read_instead(merged)
        clamp = clamp_of(node.layer) if node.marked and not node.own else None
        key = clamp and (node.inputs[0], clamp)
        if clamp and key in first:
            merged[node.outputs] = first[key].outputs
            continue
        if clamp and _lies_within(_clamp_before(graph, node), clamp):
            merged[node.outputs] = node.inputs[0]
            continue
        if clamp:
            first[key] = node
        kept.append(node)
    graph.outputs = put_in_place(graph.outputs, merged)
    graph.nodes[:] = kept
    graph.forget_order()


def _clamp_before(graph, node):
    """Returns the bounds of what a call reads; `None` where nothing clamps it."""
    producer = graph.producer(node.inputs[0])
    return clamp_of(producer.layer) if producer is not None and producer.marked else None


def _lies_within(inner, outer) -> bool:
    """Whether what lies between the bounds `inner` lies between `outer`."""
    if inner is None:
        return False
    (low, high), (least, most) = inner, outer
    return low >= least and (most is None or (high is not None and high <= most))

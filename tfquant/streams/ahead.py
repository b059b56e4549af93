"""What has to be run before the integers of a layer that is called in several places are chosen."""


def ahead_of(graph, layer, seen, changing) -> tuple[list, list]:
    """Returns the calls of a layer and those that they read from, in two lists.

    Args:
        graph: `Graph`.
        layer: Layer whose calls are asked about.
        seen: Calls that have been run.
        changing: Layers that are to get integers and have not, this one among them.

    Returns:
        `(free, bound)`, in order, without what was run: calls that compute the same whatever
        becomes of the layers, and the calls of these with those that read what they compute.
    """
    needed, waiting = set(), list(graph.calls(layer))
    while waiting:
        node = waiting.pop()
        if node not in seen and node not in needed:
            needed.add(node)
            makers = (graph.producer(x) for x in node.inputs)
            waiting += [maker for maker in makers if maker is not None]
    free, bound = [], []
    for node in graph.nodes:
        if node in needed:
            reads = any(graph.producer(x) in bound for x in node.inputs)
            (bound if reads or node.layer in changing else free).append(node)
    return free, bound

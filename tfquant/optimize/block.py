"""`Block`: calls between two places of a model through which a single tensor goes."""

import dataclasses

import numpy as np
from keras import ops, tree

from tfquant.optimize.sites import Site
from tfquant.streams import Streams


@dataclasses.dataclass(eq=False)
class Block:
    """Calls whose layers get their integers together, and what goes in and comes out.

    Attributes:
        nodes: The calls, in order.
        streams: `Streams` that have run all of them.
        sites: `Site` of each layer that gets integers.
        rng: Where chance comes from.
        tick: Called as work goes on, with the share that is done.
    """

    nodes: list
    streams: Streams
    sites: list[Site]
    rng: np.random.Generator
    tick: object = lambda share: None

    def one_by_one(self):
        """Yields the sites, and counts each as done behind it."""
        for site in self.sites:
            yield site
            self.tick(1.0)

    @property
    def inputs(self) -> list:
        """KerasTensors that the calls read and do not compute."""
        made = {x for node in self.nodes for x in tree.flatten(node.outputs)}
        read = dict.fromkeys(x for node in self.nodes for x in node.inputs)
        return [x for x in read if x not in made]

    @property
    def outputs(self) -> list:
        """KerasTensors that the calls compute for others."""
        inside = set(self.nodes)
        graph = self.streams.graph
        return [
            x
            for node in self.nodes
            for x in tree.flatten(node.outputs)
            if graph.is_output(x) or any(r not in inside for r in graph.consumers(x))
        ]


def cut(graph, counts) -> list[list]:
    """Cuts the calls of a graph where a single tensor is all that is read later.

    Args:
        graph: `Graph`.
        counts: Function of a call: whether its layer gets integers. Each block but the last ends
            at the first cut behind a layer that does.

    Returns:
        List of lists of calls.
    """
    last = {}
    for number, node in enumerate(graph.nodes):
        last.update(dict.fromkeys(node.inputs, number))
    last.update(dict.fromkeys(tree.flatten(graph.outputs), len(graph.nodes)))
    live = set(tree.flatten(graph.inputs))
    blocks, block = [], []
    for number, node in enumerate(graph.nodes):
        block.append(node)
        live.update(tree.flatten(node.outputs))
        live = {x for x in live if last.get(x, -1) > number}
        if len(live) <= 1 and any(counts(n) for n in block):
            blocks.append(block)
            block = []
    return [*blocks, block] if block else blocks


def shift_bias(site: Site, shift) -> bool:
    """Adds `shift`, one for each channel, to what a layer puts out; False if it has no bias."""
    wrapper = site.wrapper
    shift = ops.cast(ops.convert_to_tensor(shift), "float32")
    changes = wrapper.quantize_config.rescaled(wrapper, ops.ones_like(shift), shift)
    for variable, value in changes or ():
        variable.assign(value)
    return changes is not None


def gain_of_norm(site: Site) -> np.ndarray:
    """Returns what each channel is multiplied by behind the layer, by its batch norm."""
    zero = np.zeros(_channels(site), np.float32)
    return _behind_norm(site, zero + 1) - _behind_norm(site, zero)


def offset_of(site: Site) -> np.ndarray:
    """Returns what each channel is where the inputs are zero."""
    layer = site.wrapper.layer
    bias = ops.convert_to_numpy(layer.bias) if layer.use_bias else np.zeros(_channels(site))
    return _behind_norm(site, bias.reshape(-1).astype(np.float32))


def _channels(site):
    return site.weights.shape[0] * site.weights.shape[2]


def _behind_norm(site, x):
    """Returns what the batch norm of a layer, if any, makes of a number for each channel."""
    norm = site.wrapper.batch_norm
    if norm is not None:
        shape = (1, *[1] * (len(site.calls[0].outputs.shape) - 2), len(x))
        x = ops.convert_to_numpy(norm(x.reshape(shape), training=False)).reshape(-1)
    return x.astype(np.float64)

"""`Streams`: what every tensor of a model is, in the float model and in the quantized one."""

import copy
import dataclasses

import keras
import numpy as np
from keras import ops, tree

from tfquant.calibrate.real import RealCalls
from tfquant.graph.graph import trace
from tfquant.numerics import QuantParams
from tfquant.quantizers import Grid, RecordingScope, grid_of, on_grid
from tfquant.wrappers import CallHook, QuantizeWrapper

# Half precision holds values whose largest is this to 11 bits: 66 dB, far below any noise here.
HALF_TOP = 2.0**14


@dataclasses.dataclass
class Held:
    """The values of one tensor, batch by batch, in little memory.

    What lies on a grid of up to 8 bits is kept as its integers, exactly; other real values in half
    precision, scaled by a power of two.

    Attributes:
        parts: What was stored of each batch.
    """

    parts: list = dataclasses.field(default_factory=list)

    def append(self, x) -> None:
        """Stores a tensor of the next batch."""
        grid = grid_of(x)
        x = ops.convert_to_numpy(x)
        if grid is not None and grid.spec.num_bits <= 8:
            params = QuantParams(*(np.float32(ops.convert_to_numpy(v)) for v in grid.params))
            integers = np.rint(x / params.scale) + params.zero_point
            grid = Grid(params, grid.spec, group=grid.group)
            self.parts.append((integers.astype(np.int8 if grid.spec.signed else np.uint8), grid))
        elif x.dtype == np.float32 and np.isfinite(x).all():
            top = float(np.abs(x).max(initial=0)) or 1.0
            scale = np.float32(2.0 ** np.floor(np.log2(HALF_TOP / top)))
            self.parts.append(((x * scale).astype(np.float16), scale))
        else:
            self.parts.append((x, None))

    def array(self, batch: int) -> np.ndarray:
        """Returns the values of a batch."""
        x, how = self.parts[batch]
        if how is None:
            return x
        if isinstance(how, Grid):
            return (x.astype(np.float32) - how.params.zero_point) * how.params.scale
        return x.astype(np.float32) / how

    def rows(self, indices) -> np.ndarray:
        """Returns some rows of all batches, in this order; but the last, all are as long."""
        batch_size = len(self.parts[0][0])
        return np.concatenate([self._row(*divmod(int(i), batch_size)) for i in indices])

    def _row(self, batch, place):
        x, how = self.parts[batch]
        return Held([(x[place : place + 1], how)]).array(0)

    def tensor(self, batch: int):
        """Returns the values of a batch as a tensor, which carries its grid."""
        x, how = ops.convert_to_tensor(self.array(batch)), self.parts[batch][1]
        return on_grid(x, how) if isinstance(how, Grid) else x


class Streams:
    """A quantized model and the float model behind it, run side by side, call by call.

    A tensor is held until its last reader has run, longer where somebody `keep`s it.

    Args:
        model: Calibrated model.
        batches: List of batches: lists of arrays in the order of the model's inputs.

    Attributes:
        graph: `Graph` of the quantized model.
        batches: Number of batches.
        rows: Number of rows.
    """

    def __init__(self, model, batches):
        self.graph, self.batches = trace(model), len(batches)
        self.rows = sum(len(arrays[0]) for arrays in batches)
        self._float, self._quantized, self._kept, self._real = {}, {}, set(), {}
        self._readers = dict.fromkeys(tree.flatten(self.graph.outputs), 1)
        self._count(self.graph.nodes)
        for number, slot in enumerate(tree.flatten(self.graph.inputs)):
            for store in (self._float, self._quantized):
                held = store[slot] = Held()
                for arrays in batches:
                    held.append(ops.convert_to_tensor(arrays[number]))

    def _count(self, nodes):
        """Counts the calls that will read each tensor."""
        for node in nodes:
            for x in dict.fromkeys(node.inputs):
                self._readers[x] = self._readers.get(x, 0) + 1

    def held(self, tensor, quantized: bool) -> Held:
        """Returns the values of a KerasTensor of the graph."""
        return (self._quantized if quantized else self._float)[tensor]

    def finite(self, node) -> bool:
        """Whether what a call reads is finite, in both streams."""
        held = [self.held(x, which) for x in node.inputs for which in (True, False)]
        parts = [x for one in held for x, _ in one.parts]
        return all(np.isfinite(x).all() for x in parts if x.dtype.kind == "f")

    def arguments(self, node, batch: int, quantized: bool):
        """Returns positional and keyword arguments of a call."""
        value = lambda x: (  # noqa: E731
            self.held(x, quantized).tensor(batch) if isinstance(x, keras.KerasTensor) else x
        )
        return tree.map_structure(value, (node.args, node.kwargs))

    def remember(self, wrapper) -> None:
        """Notes the weights of a layer, those of the float model, which later calls are to have."""
        self._real[wrapper] = [(v, ops.convert_to_numpy(v)) for v in wrapper.variables]

    def ahead(self, nodes, keep, before=None) -> "Streams":
        """Runs calls in both streams and leaves these as they are: the layers will change.

        Args:
            nodes: Calls, in order; what they read is held here, or computed by them.
            keep: KerasTensors to hold of what they read and compute.
            before: What this returned the last time: the float model is then not run again.

        Returns:
            `Streams` that hold `keep`, and what these hold.
        """
        branch = copy.copy(self)
        branch._float, branch._quantized = dict(self._float), dict(self._quantized)
        branch._kept, branch._readers = {*self._float, *keep}, {}
        branch._count(nodes)
        if before is not None:
            branch._float = before._float
        for node in nodes:
            if before is None:
                branch.run_float(node)
            branch.run_quantized(node)
            branch.read(node)
        return branch

    def run_float(self, node) -> None:
        """Computes a call in the float model; its weights must be what they were, or remembered."""
        put_back = lambda: None  # noqa: E731
        if node.layer in self._real:
            put_back = self._in_float(node.layer)
        elif isinstance(node.layer, QuantizeWrapper):
            put_back = node.layer.originals.snapshot()
            node.layer.originals.restore()
        try:
            with RecordingScope(quantize_weights=False):
                self._run(node, quantized=False)
        finally:
            put_back()

    def _in_float(self, wrapper):
        """Gives a layer the weights that were remembered; returns what takes them back."""
        chosen = [(v, ops.convert_to_numpy(v)) for v, _ in self._real[wrapper]]
        assign(self._real[wrapper])
        return lambda: assign(chosen)

    def run_quantized(self, node) -> None:
        """Computes a call in the quantized model, linear layers in real arithmetic."""
        with CallHook(RealCalls()):
            self._run(node, quantized=True)

    def _run(self, node, quantized):
        store = self._quantized if quantized else self._float
        outputs = tree.flatten(node.outputs)
        for x in outputs:
            store[x] = Held()
        for batch in range(self.batches):
            args, kwargs = self.arguments(node, batch, quantized)
            if isinstance(node.layer, keras.layers.Layer) and node.layer.built:
                found = call(node.layer, args, kwargs)
            else:
                found = node.layer(*args, **kwargs)
            for x, y in zip(outputs, tree.flatten(found), strict=True):
                store[x].append(y)

    def keep(self, tensors) -> None:
        """Holds tensors until `release`, whoever has read them."""
        self._kept = set(tensors)

    def release(self) -> None:
        """Lets go of what was kept."""
        kept, self._kept = self._kept, set()
        for x in kept:
            self._forget(x)

    def read(self, node) -> None:
        """Notes that a call has read its inputs; those without a reader left are forgotten."""
        for x in set(node.inputs):
            self._readers[x] -= 1
            self._forget(x)
        for x in tree.flatten(node.outputs):
            self._forget(x)

    def _forget(self, x):
        if not self._readers.get(x) and x not in self._kept:
            self._float.pop(x, None)
            self._quantized.pop(x, None)


def assign(pairs) -> None:
    """Gives variables their values."""
    for variable, value in pairs:
        variable.assign(value)


def call(layer, args, kwargs):
    """Calls a layer at inference."""
    if isinstance(layer, QuantizeWrapper):
        kwargs = {**kwargs, "training": False}
    return layer(*args, **kwargs)

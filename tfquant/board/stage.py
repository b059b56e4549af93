"""`Stage`: rows that a `Board` computes, again and again, as far as something has changed."""

import keras
import tensorflow as tf
from keras import tree

from tfquant.board.board import FLOAT_BITS, Board
from tfquant.calibrate.judge import mean_sqnr
from tfquant.data.batches import joined
from tfquant.graph.runner import rows_first
from tfquant.numerics import fake_quantize_at_once
from tfquant.numerics.arrays import array_of
from tfquant.quantizers import RealScope
from tfquant.registry.recipe import FLOAT
from tfquant.wrappers import CallHook

# Activations that are held of what was computed before: 600 MB.
HELD_VALUES = 1.5e8


class Stage:
    """Some rows, and what a model computes of them, held so that little is computed again.

    Where there is no room for all values, each look computes everything.

    Args:
        board: `Board`.
        arrays: Rows: one array for each input of the model.
    """

    def __init__(self, board: Board, arrays):
        self.board, self._batches = board, list(board.cut(arrays))
        self.rows = sum(len(batch[0]) for batch in self._batches)
        self._holds = self.rows * board.values_per_row <= HELD_VALUES
        self._held, self._settings = [None] * len(self._batches), {}
        self.expected = self._in_float()

    def _in_float(self):
        """Returns the outputs in float; what comes later is compared with what is held of that."""
        settings, found = self.board.settings(dict.fromkeys(self.board.units, FLOAT)), []
        for number, batch in enumerate(self._batches):
            values = self._compute(batch, None, settings, {}, self._holds)
            found.append(self._ends(values, {}))
            if self._holds:
                self._held[number] = values
        self._settings = settings if self._holds else {}
        return joined(found)

    def outputs(self, chosen: dict, parts=None) -> tuple[list, list]:
        """Returns what the model computes under choices.

        Args:
            chosen: Dict from the names of all layers to choices.
            parts: Dict from the names of some to `"weights"` or `"activations"`: the other of the
                two is then float.

        Returns:
            `(heads, outputs)`, lists of arrays: what is in front of the softmax or sigmoid that
            ends the model, and its outputs.
        """
        found = self._outputs(chosen, parts)
        return found[: self.board.heads], found[self.board.heads :]

    def _outputs(self, chosen, parts):
        settings = self.board.settings(chosen)
        parts = {w: part for name, part in (parts or {}).items() for w in self.board.wrappers(name)}
        found = []
        for batch, held in zip(self._batches, self._held, strict=True):
            values = self._compute(batch, held, settings, parts, False)
            found.append(self._ends(values, held or {}))
        return joined(found)

    def sqnr(self, chosen: dict, parts=None) -> float:
        """Returns the signal to noise ratio in dB, in front of a softmax or sigmoid; see `outputs`.

        It is that of the outputs against the float model's, their mean over several.
        """
        heads, _ = self.outputs(chosen, parts)
        return mean_sqnr(self.expected[: self.board.heads], heads, 0)

    def values_of(self, layers) -> list:
        """Returns what layers compute in the first batch of what is held, arrays."""
        held = self._held[0]
        if held is None:
            settings = self.board.settings(dict.fromkeys(self.board.units, FLOAT))
            held = self._compute(self._batches[0], None, settings, {}, True)
        calls = [call for call in self.board.runner.calls if call.layer in layers]
        return [array_of(held[x]) for call in calls for x in call.flat_outputs if x in held]

    def _compute(self, batch, held, settings, parts, keep):
        """Returns the values of tensors: all of them where they are to be kept, else those needed.

        Args:
            batch: Arrays.
            held: Values that `self._settings` gave, or `None`; what is as it was is not computed.
            settings: What each layer is switched to.
            parts: Dict from a wrapper to what of it is switched.
            keep: Whether all values are wanted.
        """
        runner = self.board.runner
        values = {}
        if held is None:
            values = {
                x: keras.ops.convert_to_tensor(array, x.dtype)
                for x, array in zip(runner.inputs, batch, strict=True)
            }
        changed = {x for x, now in settings.items() if self._settings.get(x) != now} | set(parts)
        find = lambda x: values[x] if held is None or x in values else held[x]  # noqa: E731
        value = lambda x: find(x) if isinstance(x, keras.KerasTensor) else x  # noqa: E731
        switch = _Switch(self.board, settings, parts)
        with switch, CallHook(switch.call):
            for call in runner.calls:
                again = call.layer in changed or any(x in values for x in call.inputs)
                if held is not None and not again:
                    continue
                args, kwargs = tree.map_structure(value, (call.args, call.kwargs))
                outputs = tree.flatten(call.run(*args, **kwargs, **call.training))
                pairs = zip(call.flat_outputs, outputs, strict=True)
                values.update((x, y) for x, y in pairs if isinstance(x, keras.KerasTensor))
                if held is None and not keep:
                    for x in call.last:
                        values.pop(x, None)
        return values

    def _ends(self, values, held):
        ends = self.board.runner.ends
        return [rows_first(array_of(values[x] if x in values else held[x]), x.shape) for x in ends]


class _Switch(RealScope):
    """Inside it, wrappers and grids compute as their settings say."""

    def __init__(self, board, settings, parts):
        super().__init__()
        self._board, self._settings, self._parts = board, settings, parts

    def call(self, wrapper, args, kwargs):
        """Computes a wrapper in front of its clamp; see `CallHook`."""
        choice, part = self._settings.get(wrapper, FLOAT), self._parts.get(wrapper)
        if part != "weights":
            args = tree.map_structure(lambda x: self._read(x, choice), args)
        return self._board.call(wrapper, choice, args, kwargs, weights=part != "activations")

    def _read(self, x, choice):
        """Brings what was computed in more bits to the grid that it has under a choice."""
        key, bits = getattr(x, "tfquant_point", (None, 0))
        grid = None if key is None else self._board.grid(choice, key)
        return x if grid is None or grid[1].num_bits >= bits else _rounded(x, grid)

    def record(self, quantizer, x):
        """Rounds what a layer computes, and notes on it where that was."""
        key = self._board.key_of(quantizer)
        owner = self._board.owner(key)
        grid = None
        if self._parts.get(owner) != "weights":
            grid = self._board.grid(self._settings.get(owner, FLOAT), key)
        # Another tensor: what is noted on one that somebody holds would stay on it.
        y = tf.identity(x) if grid is None else _rounded(x, grid)
        y.tfquant_point = key, FLOAT_BITS if grid is None else grid[1].num_bits
        return y


def _rounded(x, grid):
    return fake_quantize_at_once(tf.cast(x, "float32"), *grid)

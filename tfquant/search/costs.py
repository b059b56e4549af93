"""What a mixture costs: bytes of its file, and bit operations."""

import math
import os
import tempfile

from keras import layers

from tfquant.board import FLOAT_BITS, Board
from tfquant.registry.recipe import FLOAT
from tfquant.tflite import to_tflite
from tfquant.wrappers import QuantizeWrapper

# Bytes of the scale and the zero point of a channel, of a bias in 32 bits and in 64.
SCALE_BYTES, BIAS_BYTES = 12, {True: 4, False: 8}

# Bytes of a QUANTIZE operator with its tensor, as files have them, and the alignment of buffers.
QUANTIZE_BYTES, ALIGNMENT = 160, 16

# Layers whose kernel is multiplied at each position of the input, not of the output.
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


class Costs:
    """What a mixture costs.

    Bytes are those of a file that was written, of one scheme throughout, and what the weights of
    other schemes take more or less: near, but not exact.

    Args:
        board: `Board`.
    """

    def __init__(self, board: Board):
        self.board = board
        self._macs = _macs(board)
        named = [x for x in board.choices if x != FLOAT]
        self._reference = board.everywhere(named[0])
        self._start = file_bytes(board.twin_model(named[0])) - sum(
            self.unit_bytes(name, self._reference[name]) for name in self.weighted
        )
        self._start -= QUANTIZE_BYTES * board.casts(self._reference)

    @property
    def weighted(self) -> list[str]:
        """Names of the layers that have weights."""
        return [unit.name for unit in self.board.units.values() if unit.has_weights]

    def unit_bytes(self, name: str, choice: str) -> int:
        """Returns the bytes of the weights of a layer, and of what else differs with their width.

        Args:
            name: Name of the layer.
            choice: Name of a choice that it has.
        """
        unit = self.board.units[name]
        bits, activations = unit.bits[unit.options[choice]]
        total = 0
        for wrapper in self.board.wrappers(name):
            for variable, quantizer in wrapper.weight_quantizers:
                count = math.prod(variable.shape)
                if bits == FLOAT_BITS:
                    total += 4 * count
                    continue
                channels = math.prod(getattr(quantizer, "scale_shape", ()) or (1,))
                # Of 2 and 3 bits, too, a device stores 4.
                stored = 16 if bits == 16 else 8 if bits > 4 else 4
                total += -(-(count * stored // 8) // ALIGNMENT) * ALIGNMENT
                total += channels * (SCALE_BYTES + BIAS_BYTES[activations <= 8])
        return total

    def unit_bops(self, name: str, choice: str) -> float:
        """Returns the bit operations of a layer."""
        unit = self.board.units[name]
        bits, activations = unit.bits[unit.options[choice]]
        return float(self._macs[name] * bits * activations)

    def bytes(self, chosen: dict) -> int:
        """Returns about the bytes of the file of choices of all layers."""
        weights = sum(self.unit_bytes(name, chosen[name]) for name in self.weighted)
        return int(self._start + weights + QUANTIZE_BYTES * self.board.casts(chosen))

    @property
    def start_bytes(self) -> int:
        """Bytes of a file beside its weights, where no width changes between layers."""
        return int(self._start)

    def bops(self, chosen: dict) -> float:
        """Returns the bit operations of choices of all layers."""
        return sum(self.unit_bops(name, chosen[name]) for name in self.weighted)


def file_bytes(model) -> int:
    """Returns the size of the `.tflite` file of a quantized model, which is written and removed."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        to_tflite(model, path, verify=False, progress=False)
        return os.path.getsize(path)


def _macs(board) -> dict:
    """Returns the number of products of each layer with weights, for a row."""
    found = dict.fromkeys(board.units, 0)
    for call in board.runner.calls:
        if not isinstance(call.layer, QuantizeWrapper):
            continue
        name = board.unit_name(call.layer)
        if name is None:
            continue
        moved = call.inputs if isinstance(call.layer.layer, TRANSPOSED) else call.flat_outputs
        positions = math.prod(n or 1 for n in moved[0].shape[1:-1])
        for variable, _ in call.layer.weight_quantizers:
            found[name] += positions * math.prod(variable.shape)
    return found

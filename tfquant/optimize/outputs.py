"""Whether chosen integers serve the outputs of a model: if not, it is as it was."""

import dataclasses
import logging

from keras import ops

from tfquant.calibrate.judge import Judge
from tfquant.calibrate.real import RealCalls
from tfquant.calibrate.rows import split
from tfquant.data.batches import joined
from tfquant.graph.runner import Runner
from tfquant.graph.walk import all_layers
from tfquant.wrappers import Quantize
from tfquant.wrappers.norms import in_float, leave_in_float

_logger = logging.getLogger("tfquant")


@dataclasses.dataclass(frozen=True)
class Optimization:
    """What `optimize` made of a model.

    Attributes:
        algorithms: Names of the algorithms.
        before: Signal to noise ratio of the model's outputs in dB, with the integers that it had.
        after: Likewise, with those that were chosen.
        taken: Whether these are in the model.
    """

    algorithms: tuple[str, ...]
    before: float
    after: float
    taken: bool

    def __str__(self) -> str:
        taken = "" if self.taken else ", not taken"
        names = ", ".join(self.algorithms)
        return f"{names} (outputs {self.before:.1f} to {self.after:.1f} dB{taken})"


# What `calibrate` leaves on a model.
FOUND = ("calibration_samples", "correction", "norms")


class Outputs:
    """The outputs of a model before and behind a choice of integers.

    Args:
        model: Calibrated model.
        wrappers: Its `QuantizeWrapper`s.
        batches: List of batches: lists of arrays in the order of the model's inputs.
    """

    def __init__(self, model, wrappers, batches):
        self.model = model
        points = [layer for layer in all_layers(model) if isinstance(layer, Quantize)]
        variables = [v for layer in (*wrappers, *points) for v in layer.variables]
        self._values = [(v, ops.convert_to_numpy(v)) for v in variables]
        self._found = {name: getattr(model, name, None) for name in FOUND}, in_float(model)
        samples = joined(batches)
        size = model.inputs[0].shape[0]
        rows = split(samples, size, Runner(model).values_per_row, keep_out=False)
        put_back = [wrapper.originals.snapshot() for wrapper in wrappers]
        try:
            for wrapper in wrappers:
                wrapper.originals.restore()
            self._judge = Judge(model, rows, RealCalls(), deviation=False)
        finally:
            for undo in put_back:
                undo()
        self._undo = [wrapper.originals.snapshot() for wrapper in wrappers]
        self._before = self._sqnr()

    def _sqnr(self):
        self._judge.calls = RealCalls()
        return self._judge.sqnr(every=True).computed

    def put_back(self) -> None:
        """Leaves the model as it was."""
        for undo in self._undo:
            undo()
        for variable, value in self._values:
            variable.assign(value)
        found, floating = self._found
        for name, value in found.items():
            setattr(self.model, name, value)
        leave_in_float(self.model, floating)

    def weigh(self, algorithms, anyhow: bool) -> Optimization:
        """Leaves the integers in the model that serve its outputs better; says which.

        Args:
            algorithms: Names of those that chose.
            anyhow: Whether what they chose is taken whatever it does to the outputs.
        """
        after = self._sqnr()
        taken = bool(anyhow or after > self._before)
        if not taken:
            self.put_back()
            _logger.warning(
                "The outputs of '%s' came no closer to the float model's by %s: %.1f dB of signal "
                "over noise before, %.1f behind. The model is as it was. More rows may help.",
                self.model.name,
                ", ".join(algorithms),
                self._before,
                after,
            )
        return Optimization(tuple(algorithms), self._before, after, taken)

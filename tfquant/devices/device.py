"""`Device`: what computes a file, as data plus arithmetic."""

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from keras import ops

# Where the output of an operator lies: on a grid of its own, or on that of its inputs.
OWN, INPUTS = "own", "inputs"

EXACT = "exact"

# Why an operator differs where the steps of its tensors are so far apart that other kernels run.
UNUSUAL_STEPS = "steps far apart"

# How near to a power of two LiteRT takes a step for one, as the difference of logarithms.
POWER_TOLERANCE = 1e-3
_PER_OCTAVE = np.float32(1.0) / np.log(np.float32(2.0))


@dataclasses.dataclass(frozen=True)
class Operator:
    """An integer kernel, or several under one name.

    Attributes:
        grid: Where the output lies: `OWN`, `INPUTS`, or the `(low, high)` that the device spreads
            over all integers; `None` for an output that is no real number.
        steps: Functions of the `Grid`s of the inputs, that of the output, and settings, which
            return output steps that are rounded (to even) and clipped behind them; a dict from
            the width of the activations. Where it has none, the operator computes in real
            arithmetic, and its output is rounded.
        num_bits: Widths of activations that it takes.
        weight_bits: Narrowest weights that it multiplies by; `None` for an operator without any.
        grouped: Whether groups of weights may share a scale, where activations are quantized at
            run time.
        inexact: Why the output may differ from the simulation's: a dict from the width.
        longest: Longest vectors that it computes without losing them: a dict from the width.
        series: What computes in place of `steps` where the first input's step is a power of two, to
            a thousandth of its logarithm: a dict from the width to one from that logarithm.
        modelled: Whether `steps` is the kernel's, as a function of the steps of the inputs and that
            of the output: a dict from the width; any are where it has none.
    """

    grid: str | tuple[float, float] | None
    steps: Mapping[int, Callable] = dataclasses.field(default_factory=dict)
    num_bits: tuple[int, ...] = (8, 16)
    weight_bits: int | None = None
    grouped: bool = False
    inexact: Mapping[int, str] = dataclasses.field(default_factory=dict)
    longest: Mapping[int, int] = dataclasses.field(default_factory=dict)
    series: Mapping[int, Mapping[int, Callable]] = dataclasses.field(default_factory=dict)
    modelled: Mapping[int, Callable[[Sequence[float], float], bool]] = dataclasses.field(
        default_factory=dict
    )

    def kernel(self, num_bits: int, input_scale: float | None) -> Callable | None:
        """Returns what computes a width where the first input has a step; `None` for no steps."""
        for power, kernel in self.series.get(num_bits, {}).items() if input_scale else ():
            if _is_power(input_scale, power):
                return kernel
        return self.steps.get(num_bits)


@dataclasses.dataclass(frozen=True)
class Product:
    """What decides how a kernel that multiplies by weights rounds.

    Attributes:
        operator: Name of the operator.
        weight_bits: Width of its weights.
        activation_bits: Width of its activations.
        depth: Number of products in a sum.
        channels: Number of output channels.
        columns: Number of vectors that it multiplies in one row of the batch; `None` if unknown.
        bias: Whether it adds one.
        pointwise: Whether it is a convolution of single points, all of them, without groups.
    """

    operator: str
    weight_bits: int
    activation_bits: int
    depth: int = 64
    channels: int = 64
    columns: int | None = 64
    bias: bool = True
    pointwise: bool = False


@dataclasses.dataclass(frozen=True)
class Device:
    """What computes a file.

    Attributes:
        name: What users call it.
        summary: One line about it.
        operators: Dict from the name of an operator to its `Operator`.
        rounding: Function of a `Product` that returns how it rounds: a name of
            `tfquant.numerics.fixed_point.ROUNDINGS`.
        at_run_time: Function of a `Product` that returns how it quantizes what it reads in float:
            a dict of `by_vector`, whether each vector has a grid of its own and not each row of the
            batch, and `rounding`, a name of `tfquant.numerics.run_time.ROUNDINGS`; `None` where no
            kernel does.
        resolver: Which of LiteRT's kernels it stands for, as the interpreter calls them.
        machines: Names of processors that it runs on; none for any.
        refusals: What it does not compute, in words: a dict from the name of an operator.
        runtime: What runs its files: `"litert"`, `"onnxruntime"` or `"tflm"`.
        dequantizes: Whether weights of layers that compute in float may be stored as integers, with
            a step for each channel, or in half precision.
    """

    name: str
    summary: str
    operators: Mapping[str, Operator]
    rounding: Callable[[Product], str]
    resolver: str = "AUTO"
    machines: tuple[str, ...] = ()
    refusals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    runtime: str = "litert"
    at_run_time: Callable[[Product], Mapping] | None = None
    dequantizes: bool = True

    def runs_here(self) -> bool:
        """Whether this machine can run what the device stands for."""
        return not self.machines or platform.machine().lower() in self.machines

    def simulates(self, name: str, num_bits: int) -> bool:
        """Whether the device has arithmetic of its own for an operator."""
        return name in self.operators and num_bits in self.operators[name].steps

    def moves(self, name: str) -> bool:
        """Whether the output of an operator lies on the grid of its inputs."""
        return name in self.operators and self.operators[name].grid == INPUTS

    def bounds(self, name: str) -> tuple[float, float] | None:
        """Returns what the device spreads over all integers of an operator's output, or `None`."""
        grid = self.operators[name].grid if name in self.operators else None
        return grid if isinstance(grid, tuple) else None

    def compute(self, name: str, inputs, output, **settings):
        """Computes an operator on integers.

        Args:
            name: Name of the operator.
            inputs: `Grid`s that hold their steps.
            output: `Grid` of the output.
            **settings: What else the operator needs to know.

        Returns:
            Float tensor of output steps, to be rounded and clipped.
        """
        num_bits = max(grid.spec.stored_bits for grid in (*inputs, output))
        operator = self.operators[name]
        steps = operator.steps[num_bits](inputs, output, **settings)
        for power, kernel in operator.series.get(num_bits, {}).items():
            taken = _is_power(inputs[0].params.scale, power)
            steps = ops.where(taken, kernel(inputs, output, **settings), steps)
        return steps

    def arithmetic(
        self,
        name: str,
        num_bits: int | None,
        input_scales: Sequence[float] = (),
        scale: float | None = None,
    ) -> str:
        """Returns `"exact"`, or why what an operator computes may differ from the simulation.

        Args:
            name: Name of the operator.
            num_bits: Width of its output.
            input_scales: Steps of its inputs.
            scale: Step of its output; `None` for one as usual.
        """
        operator = self.operators.get(name)
        if operator is None:
            return EXACT
        modelled = operator.modelled.get(num_bits)
        if scale is not None and modelled is not None and not modelled(input_scales, scale):
            return UNUSUAL_STEPS
        return operator.inexact.get(num_bits, EXACT)

    def why_not(self, name: str, num_bits: int) -> str:
        """Returns why the device does not compute an operator in integers; nothing if it does."""
        if name not in self.operators:
            no_kernel = f"{self.name} has no integer kernel that tfquant knows for {name}"
            return self.refusals.get(name, no_kernel)
        if num_bits in self.operators[name].num_bits:
            return ""
        return f"{self.name} has no kernel of {num_bits} bits for {name}"

    def why_too_long(self, name: str, num_bits: int, length: int | None) -> str:
        """Returns why vectors of a length are not computed in integers; nothing if they are."""
        longest = self.operators[name].longest.get(num_bits) if name in self.operators else None
        if longest is None or length is None or length <= longest:
            return ""
        return (
            f"{self.name} computes {name} in {num_bits} bits well up to {longest} values, and has "
            f"{length} here"
        )

    def differs(
        self, other: "Device", name: str, num_bits: int, input_scale: float | None = None
    ) -> bool:
        """Whether an operator without weights is computed otherwise on another device.

        Args:
            other: `Device`.
            name: Name of the operator.
            num_bits: Width of its output.
            input_scale: Step of its first input; `None` if that has none.
        """
        if name not in self.operators or name not in other.operators:
            return name in self.operators
        mine, theirs = (d.operators[name].kernel(num_bits, input_scale) for d in (self, other))
        return mine is not theirs


def _is_power(scale, power: int):
    """Whether LiteRT takes a step for `2**power`, as it computes that: in float32."""
    logarithm = ops.cast(ops.log(ops.cast(scale, "float64")), "float32") * _PER_OCTAVE
    return ops.abs(logarithm - float(power)) < POWER_TOLERANCE


def fixed_grid(bounds, num_bits: int) -> tuple[float, int]:
    """Returns the scale and zero point that spread `low` to `high` over all integers.

    Integers of 16 bits are symmetric: `-1` to `1`, whatever the bounds.

    Args:
        bounds: `(low, high)`.
        num_bits: 8 or 16.
    """
    if num_bits > 8:
        return 2.0 ** -(num_bits - 1), 0
    low, high = bounds
    qmin, qmax = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    scale = (high - low) / 2.0**num_bits
    return scale, min(int(qmin - low / scale), qmax)

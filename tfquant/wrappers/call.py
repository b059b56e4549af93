"""`Call`: one call of a wrapped layer at inference, as the device sees it."""

import dataclasses
from functools import cached_property

import keras
from keras import ops, tree

from tfquant.devices import Device
from tfquant.quantizers import Grid, from_steps, grid_of, steps_of


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a wrapped layer at inference.

    Attributes:
        wrapper: The `QuantizeWrapper`.
        site: Index of the call site.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
    """

    wrapper: object
    site: int
    args: tuple
    kwargs: dict

    @property
    def layer(self):
        """The wrapped layer."""
        return self.wrapper.layer

    @property
    def device(self) -> Device:
        """The device that is simulated."""
        return self.wrapper.device

    @property
    def clamp(self):
        """`(low, high)` of the activation behind the layer, or `None`."""
        return self.wrapper.call_sites[self.site].clamp

    @cached_property
    def grids(self) -> list[Grid | None]:
        """The `Grid` of each real tensor among the positional arguments, `None` without one."""
        return [grid_of(x) for x in tree.flatten(self.args) if is_real(x)]

    @cached_property
    def inputs(self) -> list[Grid]:
        """The grids, each with the integers of its tensor."""
        reals = [x for x in tree.flatten(self.args) if is_real(x)]
        return [grid_of(x)._replace(steps=steps_of(x)) for x in reals]

    @property
    def quantizer(self):
        """The quantizer of the first output, or `None`."""
        return next(iter(self.wrapper.output_quantizers[self.site]), None)

    @property
    def output(self) -> Grid:
        """The `Grid` of the first output."""
        q = self.quantizer
        return Grid(q.params(), q.spec, group=q.group)

    @property
    def on_grids(self) -> bool:
        """Whether each input lies on a grid."""
        return bool(self.grids) and None not in self.grids

    @property
    def exact(self) -> bool:
        """Whether grids are known of each input and of the output: the integers can be computed."""
        return self.on_grids and self.quantizer is not None and self.quantizer.calibrated

    def computes(self, operator: str | None) -> bool:
        """Whether the device has arithmetic for `operator` at the width of this call."""
        return (
            operator is not None
            and self.exact
            and len({grid.spec.stored_bits for grid in (*self.inputs, self.output)}) == 1
            and self.device.simulates(operator, self.output.spec.stored_bits)
        )

    def compute(self, operator: str, inputs=None, **settings):
        """Computes an operator on the device; see `Device.compute`. Returns the outputs."""
        inputs = self.inputs if inputs is None else inputs
        return self.finish(self.device.compute(operator, inputs, self.output, **settings))

    def finish(self, steps):
        """Rounds output steps to the grid of the output and applies the clamp."""
        return from_steps(ops.cast(steps, "float32"), self.quantizer, self.clamp)

    def run(self):
        """Runs the layer on integers `q - zero_point`; returns those of its outputs.

        What is no real number, such as an index, is passed on.
        """
        return self.wrapper.call_exactly(*tree.map_structure(_steps, self.args), **self.kwargs)


def is_real(x) -> bool:
    """Whether `x` is a tensor of real numbers."""
    return hasattr(x, "shape") and keras.backend.is_float_dtype(x.dtype)


def _steps(x):
    return steps_of(x) if is_real(x) else x

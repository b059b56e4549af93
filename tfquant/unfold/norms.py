"""Layer, root mean square and group norms, taken apart into what the device has integers for."""

import dataclasses
import math

import numpy as np
from keras import layers

from tfquant import devices
from tfquant.configs.elementwise import InverseRootConfig, ProductConfig, ReduceConfig, SumConfig
from tfquant.configs.parts import ConstantConfig, MatMulConfig
from tfquant.layers.parts import Constant, InverseRoot, MatMul, Mean
from tfquant.pieces.parts import Parts
from tfquant.wrappers import QuantizeAnnotate

# Squares of outliers decide the range of what a norm divides by: 8 bits leave the others nothing.
BITS = 16

# Vectors that are so many times shorter than any that calibration saw still have their length.
HEADROOM = 4.0


def unfold_layer_norm(layer, scheme):
    """Normalizes vectors; see `unfold` and `_unit`."""
    if getattr(layer, "rms_scaling", False):
        return None
    return _of_axes(layer, scheme, layer.gamma, layer.beta, True)


def unfold_rms_norm(layer, scheme):
    """Normalizes vectors, their mean left alone; see `unfold` and `_unit`."""
    return _of_axes(layer, scheme, layer.scale, None, False)


def _of_axes(layer, scheme, gamma, beta, centered):
    norm = _Norm.of(layer, scheme, centered)

    def call(x):
        rank = len(x.shape)
        axes = sorted(axis % rank for axis in layer.axis)
        sizes = [x.shape[axis] for axis in axes]
        if axes != list(range(rank - len(axes), rank)) or axes[0] == 0 or None in sizes:
            return None
        if tuple(x.shape[1 : axes[0]]).count(None) > 1:
            return None
        y = norm.shaped(x, (-1, math.prod(sizes)), "vectors")
        y = norm.shaped(norm.unit(y), [-1 if n is None else n for n in x.shape[1:]], "back")
        shape = (*(1,) * axes[0], *sizes)
        return norm.scaled(y, math.prod(sizes), gamma, beta, shape)

    return None if norm is None else call


def unfold_group_norm(layer, scheme):
    """Normalizes groups of channels of one image, or sequence; see `unfold` and `_unit`."""
    norm = _Norm.of(layer, scheme, True)

    def call(x):
        rank, groups = len(x.shape), layer.groups
        if layer.axis % rank != rank - 1 or None in x.shape[1:]:
            return None
        places, size = math.prod(x.shape[1:-1]), x.shape[-1] // groups
        y = x
        if groups > 1:
            y = norm.shaped(y, (places, groups, size), "groups")
            y = norm.parts.make("groups_first", layers.Permute, (2, 1, 3))(y)
        y = norm.unit(norm.shaped(y, (groups, places * size), "vectors"))
        if groups > 1:
            y = norm.shaped(y, (groups, places, size), "places")
            y = norm.parts.make("places_first", layers.Permute, (2, 1, 3))(y)
        y = norm.shaped(y, x.shape[1:], "back")
        shape = (*(1,) * (rank - 1), x.shape[-1])
        return norm.scaled(y, places * size, layer.gamma, layer.beta, shape)

    return None if norm is None else call


class _Norm:
    """Makes the parts of a norm, of 16 bits whatever the scheme's activations have.

    Args:
        layer: The norm.
        scheme: `Scheme`.
        centered: Whether it takes the mean away.
    """

    def __init__(self, layer, scheme, centered):
        self.layer, self.centered = layer, centered
        self.spec = dataclasses.replace(scheme, activation_bits=BITS).activations
        self.parts = Parts(layer.name, scheme, norm=layer.name)

    @classmethod
    def of(cls, layer, scheme, centered):
        """Returns the norm, `None` where it is to stay float."""
        if not scheme.static or scheme.norms == "float":
            return None
        if devices.get(scheme.device).why_not("RSQRT", BITS):
            return None
        return cls(layer, scheme, centered)

    def unit(self, x):
        """Brings vectors `(batch, number, size)` to length 2.

            d = x - mean(x)
            s = sum(d * d) + size * epsilon
            r = 1 / sqrt(s)
            y = d * (r * (3 - s * r * r))

        The sum is one of a product of matrices, which is rounded once: no square has a grid. The
        device looks `r` up in a table that is coarse where `s` is small; the factor of 3 less what
        should be 1 is a step of Newton's, which brings 42 dB to 66 where the longest of the vectors
        are 16 times as long as the shortest.
        """
        size, spec, make = x.shape[-1], self.spec, self.parts.make
        epsilon = size * self.layer.epsilon
        if self.centered:
            mean = make("mean", Mean, config=ReduceConfig(spec, operator="MEAN"))(x)
            x = make("centered", layers.Subtract, config=SumConfig(spec, -1))([x, mean])
        row, column = (
            self.shaped(x, shape, name)
            for name, shape in (("row", (-1, 1, size)), ("column", (-1, size, 1)))
        )
        total = make("squares", MatMul, config=MatMulConfig(spec))(row, column)
        total = self.shaped(total, (-1, 1), "total")
        shift = self._constant("epsilon", np.full((1, 1, 1), epsilon), False)(total)
        total = make("shifted", layers.Add, config=SumConfig(spec))([total, shift])
        config = InverseRootConfig(spec, headroom=HEADROOM)
        root = make("root", InverseRoot, epsilon, config=config)(total)
        root = self._nearer(total, root)
        return make("unit", layers.Multiply, config=ProductConfig(spec))([x, root])

    def _nearer(self, total, root):
        """Returns `root * (3 - total * root * root)`, twice the root."""
        spec, make = self.spec, self.parts.make
        # In float the product is 1, and calibration would see no more.
        to_2, to_4 = ((bound / 2.0 ** (BITS - 1), 0) for bound in (2.0, 4.0))
        length = make("length", layers.Multiply, config=ProductConfig(spec))([total, root])
        one = make("one", layers.Multiply, config=ProductConfig(spec, fixed=to_2))([length, root])
        three = self._constant("three", np.full((1, 1, 1), 3.0), False)(one)
        two = make("two", layers.Subtract, config=SumConfig(spec, -1, fixed=to_4))([three, one])
        config = ProductConfig(spec, headroom=HEADROOM)
        return make("nearer", layers.Multiply, config=config)([root, two])

    def scaled(self, x, size, gamma, beta, shape):
        """Returns `x * sqrt(size) / 2 * gamma + beta`.

        Args:
            x: Vectors of length 2.
            size: How many values each has.
            gamma: Weight, or `None`.
            beta: Likewise.
            shape: Shape in which both fit `x`.
        """
        trains = self.layer.trainable
        root, name = math.sqrt(size) / 2, self.layer.name
        gain = np.full((1,) * len(shape), root) if gamma is None else gamma.numpy() * root
        gain = np.reshape(gain, shape if gamma is not None else (1,) * len(shape))
        factor = self._constant("gamma", gain, trains and gamma is not None)(x)
        last = f"{name}_scaled" if beta is not None else name
        y = self._mark(layers.Multiply(name=last), ProductConfig(self.spec))([x, factor])
        if beta is None:
            return y
        shift = self._constant("beta", np.reshape(beta.numpy(), shape), trains)(y)
        return self._mark(layers.Add(name=name), SumConfig(self.spec))([y, shift])

    def shaped(self, x, shape, name):
        """Returns `x` in another shape, `-1` for what is free."""
        if len(x.shape) == len(shape) + 1 and all(
            m == n or (n == -1 and m is None) for m, n in zip(x.shape[1:], shape, strict=True)
        ):
            return x
        return self.parts.make(name, layers.Reshape, tuple(shape))(x)

    def _constant(self, name, values, trains):
        values = np.asarray(values, np.float32)
        layer = Constant.of(values, trains, f"{self.layer.name}_{name}")
        return self._mark(layer, ConstantConfig(self.spec))

    def _mark(self, layer, config):
        return QuantizeAnnotate(layer, config, self.layer.name)

"""The layers that time steps consist of: sums and products in 16 bits, and what cuts sequences."""

from keras import layers

from tfquant.configs.elementwise import (
    OutputConfig,
    ProductConfig,
    SameGridConfig,
    ScaleConfig,
    SumConfig,
)
from tfquant.layers.parts import Affine, Scale, Split, Stack, Unstack
from tfquant.pieces.parts import Parts
from tfquant.registry import schemes
from tfquant.registry.keras_layers import activation_config


class Steps(Parts):
    """Makes the layers of one recurrent layer, called at every step."""

    def __init__(self, name, scheme, trainable: bool = True):
        super().__init__(name, scheme, trainable)
        self.narrow = scheme.activations
        self.wide_scheme = schemes.get("w8a16")
        self.wide = self.wide_scheme.activations

    def convolution(self, name, kernel, bias, x, settings, config=None):
        """Convolves images, or sequences, with weights."""
        make = {3: layers.Conv1D, 4: layers.Conv2D}[kernel.ndim]
        settings = {**self.linear(kernel, bias), "kernel_size": kernel.shape[:-2], **settings}
        shape = (None, *x.shape[1:])
        return self.make(name, make, config=config, input_shape=shape, **settings)(x)

    def add(self, name, a, b):
        """Adds in 16 bits."""
        return self.make(name, layers.Add, config=SumConfig(self.wide))([a, b])

    def subtract(self, name, a, b):
        """Subtracts in 16 bits."""
        return self.make(name, layers.Subtract, config=SumConfig(self.wide, sign=-1))([a, b])

    def multiply(self, name, a, b):
        """Multiplies in 16 bits."""
        return self.make(name, layers.Multiply, config=ProductConfig(self.wide))([a, b])

    def activation(self, name, function, x):
        """Applies an activation in 16 bits."""
        config = activation_config(function, self.wide_scheme)
        return self.make(name, layers.Activation, function, config=config)(x)

    def split(self, name, sizes, x):
        """Cuts `x`, in 16 bits."""
        return self.make(name, Split, sizes, config=SameGridConfig(self.wide))(x)

    def unstack(self, name, x, activations=None):
        """Takes a sequence apart."""
        return as_list(self.make(name, Unstack, config=SameGridConfig(activations))(x))

    def stack(self, steps):
        """Puts time steps together, in 8 bits."""
        return self.make("stack", Stack, config=SameGridConfig(self.narrow))(steps)

    def reverse(self, x):
        """Turns a sequence around."""
        return self.stack(self.unstack("unstack", x)[::-1])

    def scale(self, name, x, factor):
        """Multiplies by constants in 16 bits."""
        settings = {"weights": [factor], "input_shape": factor.shape, "trainable": self.trainable}
        return self.make(name, Scale, config=ScaleConfig(self.wide), **settings)(x)

    def masks(self, mask):
        """Returns what new states of each step are multiplied by: 1, or 0 where it is masked."""
        x = self.make("mask", Affine, config=OutputConfig(self.narrow))(mask)
        column = self.make("mask_column", layers.Reshape, (mask.shape[1], 1))(x)
        return self.unstack("mask_steps", column)

    def hide(self, x, keep):
        """Returns zeros where a step is masked."""
        return self.multiply("hidden", x, keep)

    def masked(self, new, old, keep):
        """Returns the old states where a step is masked, `old + keep * (new - old)`."""
        if keep is None:
            return new
        return [self._kept(i, a, b, keep) for i, (a, b) in enumerate(zip(new, old, strict=True))]

    def _kept(self, i, new, old, keep):
        if old is None:
            return self.multiply(f"first{i}", new, keep)
        change = self.multiply(f"change{i}", self.subtract(f"difference{i}", new, old), keep)
        return self.add(f"state{i}", old, change)


def as_list(x) -> list:
    """Returns one tensor, or several, as a list."""
    return list(x) if isinstance(x, (list, tuple)) else [x]

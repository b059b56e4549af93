"""`IntegerKernel`: a layer on integers, between two grids."""

import dataclasses

import keras
import numpy as np
from keras import ops

from tfquant.lowbit.layers import PackedLayer
from tfquant.numerics import QuantParams, QuantSpec
from tfquant.numerics.fixed_point import accumulate, multiplier_dtype, requantize
from tfquant.quantizers import Grid, grid_of, round_to, steps_of
from tfquant.wrappers.wrapper import clamp


@dataclasses.dataclass(frozen=True)
class KernelSite:
    """Where an `IntegerKernel` is called: the grids on both sides of it.

    Attributes:
        input_scale: Step of the input.
        input_zero_point: Its zero point.
        input_bits: Its width, 8 or 16.
        output_scale: Step of the output; `None` for a real output.
        output_zero_point: Its zero point.
        output_spec: `QuantSpec` of the output, or `None`.
        group: Name that the output's grid shares with others, or `None`.
        clamp: `(low, high)` of the activation behind the layer, or `None`.
        rounding: How the accumulator is scaled: a name of
            `tfquant.numerics.fixed_point.ROUNDINGS`.
    """

    input_scale: float
    input_zero_point: int
    input_bits: int
    output_scale: float | None = None
    output_zero_point: int = 0
    output_spec: QuantSpec | None = None
    group: str | None = None
    clamp: tuple[float | None, float | None] | None = None
    rounding: str = "float32"

    @classmethod
    def between(cls, input_grid: Grid, output_grid: Grid | None, **settings) -> "KernelSite":
        """Returns the site between two grids whose parameters are numbers."""
        (scale, zero_point), spec, *_ = input_grid
        if output_grid is not None:
            settings["output_scale"] = float(output_grid.params.scale)
            settings["output_zero_point"] = int(output_grid.params.zero_point)
            settings["output_spec"] = output_grid.spec
        return cls(float(scale), int(zero_point), spec.num_bits, **settings)

    @property
    def output_grid(self) -> Grid:
        """`Grid` of the output."""
        params = QuantParams(np.float32(self.output_scale), np.float32(self.output_zero_point))
        return Grid(params, self.output_spec, group=self.group)

    def multiplier(self, scale) -> np.ndarray:
        """Returns what turns an accumulator into output steps, or into real values.

            input_scale * scale / output_scale

        Args:
            scale: Float32 step of each channel of the kernel.
        """
        wide = self.output_scale is not None and multiplier_dtype(self.rounding) == "float64"
        dtype = np.float64 if wide else np.float32
        product = dtype(self.input_scale) * np.asarray(scale, np.float32).astype(dtype)
        return product if self.output_scale is None else product / dtype(self.output_scale)

    def to_dict(self) -> dict:
        """Returns the fields as plain values that `from_dict` reads back."""
        spec = self.output_spec
        return {**dataclasses.asdict(self), "output_spec": spec and spec.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict) -> "KernelSite":
        """Returns the site that `to_dict` wrote."""
        spec, bounds = fields["output_spec"], fields["clamp"]
        spec, bounds = spec and QuantSpec.from_dict(spec), bounds and tuple(bounds)
        return cls(**{**fields, "output_spec": spec, "clamp": bounds})


@keras.saving.register_keras_serializable(package="tfquant")
class IntegerKernel(keras.layers.Layer):
    """Multiplies integers by the integers of `layer`, and rounds to the output's grid.

        a = sign * layer(q - zero_point) + bias
        y = round_to(output grid, requantize(a, multiplier))

    These are the sums and the roundings of a calibrated `QuantizeWrapper`, whose outputs it
    returns to the last bit, without the wrapper's real weights: `layer` holds packed integers.
    Sums beyond 2**24 round as any float32 does.

    Args:
        layer: Built layer without a bias: a `PackedLayer` of steps 1 with static activations of
            scale 1, or a Keras layer whose kernel holds integers.
        channels: Number of its output channels.
        sites: `KernelSite` of each place where the layer is called.
        signed: Whether the integers of some channels are stored negated, because that is narrower.

    Call arguments:
        x: Tensor on the input's grid.
        call_site: Index into `sites`.
    """

    def __init__(self, layer, channels: int, sites, signed: bool = False, **kwargs):
        super().__init__(autocast=False, trainable=False, **kwargs)
        self.supports_jit = layer.supports_jit
        self.supports_masking = layer.supports_masking
        self.layer, self.channels = layer, channels
        self.sites, self.signed = tuple(sites), signed
        weight = lambda name, dtype: self.add_weight(  # noqa: E731
            name=name, shape=(channels,), dtype=dtype, initializer="ones", trainable=False
        )
        self.sign = weight("sign", "float32") if signed else None
        self.biases, self.multipliers = [], []
        for number, site in enumerate(self.sites):
            wide = site.input_bits > 8
            self.biases.append(weight(f"bias_{number}", "float64" if wide else "float32"))
            dtype = str(site.multiplier(1.0).dtype)
            self.multipliers.append(weight(f"multiplier_{number}", dtype))
        self.built = True

    def set_parameters(self, biases, scales, sign=None) -> None:
        """Sets what is not in `layer`.

        Args:
            biases: For each site, integers: one for each channel.
            scales: For each site, the steps of the kernel: likewise.
            sign: -1 for each channel that is stored negated, +1 for the others, or `None`.
        """
        for site, bias, scale, own_bias, multiplier in zip(
            self.sites, biases, scales, self.biases, self.multipliers, strict=True
        ):
            own_bias.assign(bias)
            multiplier.assign(site.multiplier(scale))
        if sign is not None:
            self.sign.assign(sign)

    def call(self, x, call_site=0):
        """Multiplies and rounds; see the class."""
        site, multiplier = self.sites[call_site], self.multipliers[call_site].value
        steps = x / site.input_scale if grid_of(x) is None else steps_of(x)
        sums = accumulate(self._multiply, steps, site.input_bits, site.input_zero_point)
        sums = sums + self.biases[call_site].value
        if site.output_scale is None:
            return clamp(ops.cast(sums, "float32") * multiplier, site.clamp)
        steps = requantize(sums, multiplier, site.rounding)
        return round_to(site.output_grid, steps, site.clamp)

    def _multiply(self, x, zero_point):
        packed = isinstance(self.layer, PackedLayer)
        sums = self.layer(x, zero_point=zero_point) if packed else self.layer(x)
        return sums if self.sign is None else sums * self.sign.value

    def compute_output_shape(self, input_shape):
        """Returns that of `layer`."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "channels": self.channels,
            "sites": [site.to_dict() for site in self.sites],
            "signed": self.signed,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["layer"] = keras.saving.deserialize_keras_object(config["layer"])
        config["sites"] = [KernelSite.from_dict(site) for site in config["sites"]]
        for name in ("autocast", "trainable"):
            config.pop(name, None)
        return cls(**config)

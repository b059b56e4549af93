"""Bias correction: quantization moves and shrinks what a channel carries; its bias and gain can
take that back."""

import dataclasses

from keras import ops, tree

from tfquant.calibrate.real import RealCalls
from tfquant.configs.linear import LinearConfig
from tfquant.quantizers import RecordingScope
from tfquant.wrappers import CallHook

# A gain outside mends no rounding: what it would scale is noise.
LARGEST_GAIN = 2.0


@dataclasses.dataclass(frozen=True)
class Moments:
    """What a layer put out: mean and standard deviation of each channel, over everything else."""

    mean: object
    deviation: object

    @classmethod
    def of(cls, y) -> "Moments":
        """Returns those of `y`, whose channels come last."""
        y = ops.cast(y, "float32")
        axes = tuple(range(len(y.shape) - 1))
        return cls(ops.mean(y, axis=axes), ops.std(y, axis=axes))

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or infinite."""
        return bool(ops.all(ops.isfinite(self.mean)) and ops.all(ops.isfinite(self.deviation)))


def float_moments(model, arrays) -> dict:
    """Returns the `Moments` of each layer that can be corrected, in the float model.

    Args:
        model: Quantized model, calibrated, without corrections.
        arrays: Inputs of the model, a list.

    Returns:
        Dict from the `id` of a wrapper. A layer that is called in several places is not there.
    """
    found = {}

    def note(wrapper, args, kwargs):
        if not _is_correctable(wrapper):
            return None
        y = wrapper.quantize_config.real_call(wrapper, args, kwargs)
        found[id(wrapper)] = Moments.of(y)
        return y

    with RecordingScope(quantize_weights=False), CallHook(note):
        model(tree.pack_sequence_as(model.input, arrays), training=False)
    return found


def correct(model, arrays, moments, deviation: bool, calls: RealCalls) -> list[str]:
    """Gives each channel the mean, and the standard deviation, that it has in the float model.

        gain  = deviation(float output) / deviation(output), within 1/2 and 2, or 1
        shift = mean(float output) - gain * mean(output)
        y    <- gain * y + shift

    where `output` is that of quantized weights on quantized inputs. Layers are corrected in the
    order in which they run, each on inputs that the corrected layers before it computed. Rounding
    weights to few bits shifts means more than anything else, and the shifts add up along a network
    (Nagel et al. 2019, arXiv:1906.04721, section 4.2, measured on data instead of derived from
    batch norms). Clipped weights shrink what they carry, too: with exact means alone, a signal
    that shrinks layer by layer no longer crosses the bound of its ReLU, and the network goes
    constant. A gain costs nothing on the device; see `LinearConfig.rescaled`.

    Args:
        model: Calibrated model. A layer that has neither bias nor batch norm stays as it is.
        arrays: Inputs of the model, a list.
        moments: From `float_moments` on the same inputs.
        deviation: Whether to correct deviations as well.
        calls: `RealCalls` of the model, which keeps up with the corrections.

    Returns:
        Names of layers that were left because their output is not finite.
    """
    left = []

    def fix(wrapper, args, kwargs):
        if id(wrapper) not in moments:
            return calls(wrapper, args, kwargs)
        y = calls(wrapper, args, kwargs)
        if y is None:
            y = wrapper.quantize_config.real_call(wrapper, args, kwargs)
        expected, found = moments[id(wrapper)], Moments.of(y)
        if not (expected.finite and found.finite):
            left.append(wrapper.layer.name)
            return y
        for gain in ([_gain(expected, found)] if deviation else []) + [ops.ones_like(found.mean)]:
            shift = expected.mean - gain * found.mean
            changes = wrapper.quantize_config.rescaled(wrapper, gain, shift)
            if changes is not None:
                for variable, value in changes:
                    wrapper.originals.assign(variable, value)
                calls.rescale(wrapper, gain, shift)
                return ops.cast(gain * ops.cast(y, "float32") + shift, y.dtype)
        return y

    with CallHook(fix):
        model(tree.pack_sequence_as(model.input, arrays), training=False)
    return left


def _gain(expected, found):
    """Returns the gain of each channel; 1 where there is nothing to scale."""
    alive = (expected.deviation > 0) & (found.deviation > 0)
    ratio = expected.deviation / ops.where(alive, found.deviation, 1.0)
    return ops.where(alive, ops.clip(ratio, 1 / LARGEST_GAIN, LARGEST_GAIN), 1.0)


def _is_correctable(wrapper):
    config = wrapper.quantize_config
    return isinstance(config, LinearConfig) and len(wrapper.call_sites) == 1

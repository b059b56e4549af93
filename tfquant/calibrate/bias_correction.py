"""Bias correction: quantization moves and shrinks what a channel carries; its bias and gain can
take that back."""

import dataclasses

import numpy as np
from keras import ops

from tfquant.calibrate.real import RealCalls
from tfquant.configs.linear import LinearConfig
from tfquant.quantizers import RealScope
from tfquant.wrappers import CallHook

# A gain outside mends no rounding: what it would scale is noise.
LARGEST_GAIN = 2.0


@dataclasses.dataclass(frozen=True)
class Moments:
    """What a layer put out: mean and standard deviation of each channel, over everything else.

    Attributes:
        mean: Vector, an array.
        deviation: Likewise; `None` where nobody asked for it.
    """

    mean: object
    deviation: object = None

    @classmethod
    def of(cls, y, deviation: bool) -> "Moments":
        """Returns those of `y`, whose channels come last."""
        y = ops.cast(y, "float32")
        axes = tuple(range(len(y.shape) - 1))
        if not deviation:
            return cls(ops.convert_to_numpy(ops.mean(y, axis=axes)))
        mean, variance = (ops.convert_to_numpy(x) for x in ops.moments(y, axes))
        return cls(mean, np.sqrt(variance))

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or infinite."""
        known = (x for x in (self.mean, self.deviation) if x is not None)
        return all(np.isfinite(x).all() for x in known)


def noting(moments: dict, share: float, deviation: bool):
    """Returns a hook that notes the `Moments` of each layer that can be corrected, once.

    A layer that is called in several places is left out.

    Args:
        moments: Dict from a wrapper, which is filled.
        share: Of the rows of a batch that count, those in front.
        deviation: Whether deviations are noted as well.
    """

    def note(wrapper, args, kwargs):
        if not _is_correctable(wrapper):
            return None
        y = wrapper.quantize_config.real_call(wrapper, args, kwargs)
        if wrapper not in moments:
            counted = y if share == 1 else y[: max(1, round(y.shape[0] * share))]
            moments[wrapper] = Moments.of(counted, deviation)
        return y

    return note


def correct(runner, arrays, moments, deviation: bool, calls: RealCalls) -> list[str]:
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
        runner: `Runner` of a calibrated model. A layer that has neither bias nor batch norm stays
            as it is.
        arrays: Inputs of the model, a list.
        moments: Of the float model, on the same inputs; see `noting`.
        deviation: Whether to correct deviations as well.
        calls: `RealCalls` of the model, which keeps up with the corrections.

    Returns:
        Names of layers that were left because their output is not finite.
    """
    left = []

    def fix(wrapper, args, kwargs):
        if wrapper not in moments:
            return calls(wrapper, args, kwargs)
        y = calls(wrapper, args, kwargs)
        if y is None:
            y = wrapper.quantize_config.real_call(wrapper, args, kwargs)
        expected, found = moments[wrapper], Moments.of(y, deviation)
        if not (expected.finite and found.finite):
            left.append(wrapper.layer.name)
            return y
        for gain in [_gain(expected, found), None] if deviation else [None]:
            scaled = found.mean if gain is None else gain * found.mean
            shift = expected.mean - scaled
            changes = wrapper.quantize_config.rescaled(wrapper, gain, shift)
            if changes is not None:
                for variable, value in changes:
                    wrapper.originals.assign(variable, value)
                calls.rescale(wrapper, gain, shift)
                y = ops.cast(y, "float32")
                return (y if gain is None else gain * y) + shift
        return y

    with RealScope(), CallHook(fix):
        runner(arrays)
    return left


def _gain(expected, found):
    """Returns the gain of each channel; 1 where there is nothing to scale."""
    alive = (expected.deviation > 0) & (found.deviation > 0)
    ratio = expected.deviation / np.where(alive, found.deviation, np.float32(1))
    return np.where(alive, np.clip(ratio, 1 / LARGEST_GAIN, LARGEST_GAIN), np.float32(1))


def _is_correctable(wrapper):
    config = wrapper.quantize_config
    return isinstance(config, LinearConfig) and len(wrapper.call_sites) == 1

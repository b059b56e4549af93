"""What cancels is zero: a difference of equal values, of which float32 leaves its own rounding."""

from keras import ops, tree

from tfquant.calibrate.real import RealCalls
from tfquant.configs.elementwise import ReduceConfig, SumConfig
from tfquant.wrappers.call import is_real

# Float32 has 24 bits, of which sums of many values lose a few: what is below, by the largest value
# that went in, says nothing.
CERTAIN = 2.0**-20


def cancelling(calls: RealCalls):
    """Returns a hook that computes as `calls` does, and sums, differences and means without noise.

    The mean of what a mean was taken from is 0; float32 computes 1e-8 or so. Who took that for the
    range of a tensor would give it a grid on which a step of the device's own rounding is the whole
    range.
    """

    def call(wrapper, args, kwargs):
        y = calls(wrapper, args, kwargs)
        if y is not None or not isinstance(wrapper.quantize_config, (SumConfig, ReduceConfig)):
            return y
        y = wrapper.quantize_config.real_call(wrapper, args, kwargs)
        sizes = [ops.max(ops.abs(x)) for x in tree.flatten((args, kwargs)) if is_real(x)]
        # All of it: what is next to a mask of -1e9 says much.
        noise = ops.cast(ops.max(ops.stack(sizes)) * CERTAIN, y.dtype)
        return ops.where(ops.max(ops.abs(y)) > noise, y, ops.zeros_like(y))

    return call

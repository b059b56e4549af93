"""Low-bit arithmetic in TensorFlow: packed weights, and matmuls that read them as they are."""

from tfquant.lowbit.library import Doctor, FallbackWarning, doctor, load_if_built
from tfquant.lowbit.matmul import PackedWeights, matmul, pack, unpack
from tfquant.lowbit.plain import dequantize, quantize_pack

__all__ = [
    "Doctor",
    "FallbackWarning",
    "PackedWeights",
    "dequantize",
    "doctor",
    "matmul",
    "pack",
    "quantize_pack",
    "unpack",
]

# A SavedModel names the ops: they must be known before TensorFlow loads it.
load_if_built()

"""Keras layers around Keras layers: they quantize weights and outputs and change nothing else."""

from tfquant.wrappers.annotate import QuantizeAnnotate
from tfquant.wrappers.call import Call
from tfquant.wrappers.config import QuantizeConfig
from tfquant.wrappers.dynamic_kernel import DynamicKernel
from tfquant.wrappers.hook import CallHook
from tfquant.wrappers.integer_kernel import IntegerKernel, KernelSite
from tfquant.wrappers.known import KnownIntegers
from tfquant.wrappers.lowering import LoweredKernel, Lowering
from tfquant.wrappers.operation import OperationLayer
from tfquant.wrappers.quantize import Quantize
from tfquant.wrappers.wrapper import CallSite, QuantizeWrapper

__all__ = [
    "Call",
    "CallHook",
    "CallSite",
    "DynamicKernel",
    "IntegerKernel",
    "KernelSite",
    "KnownIntegers",
    "LoweredKernel",
    "Lowering",
    "OperationLayer",
    "Quantize",
    "QuantizeAnnotate",
    "QuantizeConfig",
    "QuantizeWrapper",
]

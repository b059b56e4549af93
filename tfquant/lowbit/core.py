"""The compiled core by its C ABI: numpy in, numpy out, any path, any number of threads.

For tests and benchmarks; models go through `matmul` and TensorFlow's threads.
"""

import ctypes

import numpy as np

from tfquant.lowbit import library
from tfquant.numerics import reference

_TYPES = {"float32": 0, "bfloat16": 1}


class Core:
    """The functions of `custom_ops/core/c_api.h` on numpy arrays.

    Args:
        file: Path of a library; by default the one that the ops use.
    """

    def __init__(self, file=None):
        self.file = str(file or library.doctor().library)
        self._c = library.open_c_library(file) if file else library.c_library()
        if self._c is None:
            raise RuntimeError(f"The ops are not built. {library.doctor().problem}")

    def paths(self):
        """Names of the paths that this processor can run."""
        return library.supported_paths(self._c)

    def pack(self, q, scale, *, num_bits, group_size=0):
        """Like `numerics.packing.pack_matmul`; the same bytes, on a cache line."""
        k, n = q.shape
        layout = (num_bits, _i64(group_size), _i64(k), _i64(n))
        size = self._c.tfquant_packed_bytes(*layout)
        if size < 0:
            raise ValueError(self._error())
        out = aligned(size, np.uint8)
        q = np.ascontiguousarray(q, np.int8)
        scale = np.ascontiguousarray(scale, np.float32)
        self._check(self._c.tfquant_pack(*layout, _ptr(q), _ptr(scale), _ptr(out)))
        return out

    def matmul(self, x, weights, **settings):
        """Like `numerics.reference.lowbit_matmul` on packed weights.

        `x` is float32 `[M, K]`, or with `dtype="bfloat16"` the bits of it as uint16.
        """
        call, out = self.bound_matmul(x, weights, **settings)
        call()
        return out

    def bound_matmul(
        self,
        x,
        weights,
        *,
        units,
        num_bits,
        group_size=0,
        activations="per_row",
        x_scale=1.0,
        zero_point=0,
        bias=None,
        fused="linear",
        path=None,
        threads=1,
        dtype="float32",
        out=None,
    ):
        """`matmul` with its arguments ready: a call without any, and the array that it fills."""
        m, k = x.shape
        if out is None:
            out = np.empty((m, units), x.dtype)
        arguments = (
            path.encode() if path else None,
            threads,
            _TYPES[dtype],
            _i64(m),
            _ptr(x),
            num_bits,
            _i64(group_size),
            _i64(k),
            _i64(units),
            _ptr(weights),
            _i64(weights.size),
            reference.ACTIVATIONS.index(activations),
            ctypes.c_float(x_scale),
            zero_point,
            _ptr(bias),
            reference.FUSED.index(fused),
            _ptr(out),
        )
        held = (x, weights, bias, out)  # the pointers do not keep their arrays

        def call(function=self._c.tfquant_matmul, held=held):
            if function(*arguments) != 0:
                raise ValueError(self._error())

        return call, out

    def dequantize(
        self,
        packed,
        scale,
        *,
        num_bits,
        columns,
        row_group=1,
        column_group=1,
        zero_point=None,
        codebook=None,
        dtype="float32",
        path=None,
        threads=1,
        out=None,
    ):
        """Like `numerics.reference.dequantize`; bfloat16 comes as its bits."""
        if out is None:
            out = np.empty((len(packed), columns), np.float32 if dtype == "float32" else np.uint16)
        self._check(
            self._c.tfquant_dequantize(
                path.encode() if path else None,
                threads,
                num_bits,
                _i64(len(packed)),
                _i64(columns),
                _i64(row_group),
                _i64(column_group),
                _ptr(packed),
                _i64(packed.size),
                _ptr(scale),
                _i64(scale.size),
                _ptr(zero_point),
                _ptr(codebook),
                _TYPES[dtype],
                _ptr(out),
            )
        )
        return out

    def _check(self, code):
        if code != 0:
            raise ValueError(self._error())

    def _error(self):
        return self._c.tfquant_error().decode()


def aligned(count, dtype, offset=0):
    """Uninitialized array of one axis that starts `offset` bytes behind a cache line."""
    size = np.dtype(dtype).itemsize * count
    memory = np.empty(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + size].view(dtype)


def _ptr(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


_i64 = ctypes.c_int64

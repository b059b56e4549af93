"""Checks every CUDA kernel against the reference and times it. Needs PyTorch or CuPy, and nvcc.

    python custom_ops/tests/gpu_check.py

No TensorFlow and no Keras: numerics is imported from its files. Matmuls are timed against the
float16 matmul of cuBLAS.
"""

import ctypes
import pathlib
import statistics
import subprocess
import sys
import tempfile
import types

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]


def import_numerics():
    """packing and reference, without what tfquant/__init__.py imports."""
    for name in ("tfquant", "tfquant.numerics"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT / name.replace(".", "/"))]
        sys.modules[name] = package
    from tfquant.numerics import packing, reference

    return packing, reference


class Torch:
    """Device memory and clocks by PyTorch."""

    def __init__(self):
        import torch

        if not torch.cuda.is_available():
            raise ImportError("PyTorch sees no GPU")
        self.torch = torch
        self.name = torch.cuda.get_device_name()

    def put(self, array):
        """The array on the device."""
        return self.torch.from_numpy(np.ascontiguousarray(array)).cuda()

    def get(self, tensor):
        """The array on the host."""
        return tensor.cpu().numpy()

    def pointer(self, tensor):
        """The device address."""
        return ctypes.c_void_p(tensor.data_ptr())

    def half_matmul(self, x, w):
        """A call of cuBLAS in float16."""
        x, w = x.half(), w.half()
        return lambda: self.torch.matmul(x, w)

    def stream(self):
        """The current stream."""
        return ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)

    def milliseconds(self, call):
        """Time of a call by the device's clock."""
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


class CuPy:
    """Device memory and clocks by CuPy."""

    def __init__(self):
        import cupy

        self.cupy = cupy
        self.name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()

    def put(self, array):
        """The array on the device."""
        return self.cupy.asarray(array)

    def get(self, tensor):
        """The array on the host."""
        return self.cupy.asnumpy(tensor)

    def pointer(self, tensor):
        """The device address."""
        return ctypes.c_void_p(tensor.data.ptr)

    def half_matmul(self, x, w):
        """A call of cuBLAS in float16."""
        x, w = x.astype("float16"), w.astype("float16")
        return lambda: x @ w

    def stream(self):
        """The current stream."""
        return ctypes.c_void_p(self.cupy.cuda.get_current_stream().ptr)

    def milliseconds(self, call):
        """Time of a call by the device's clock."""
        begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(begin, end)


def open_device():
    """The first of PyTorch and CuPy that works."""
    problems = []
    for kind in (Torch, CuPy):
        try:
            return kind()
        except Exception as error:  # whatever a broken driver raises is the answer
            problems.append(f"{kind.__name__}: {error}")
    raise SystemExit("No GPU to check. " + "; ".join(problems))


def build():
    """Compiles the TensorFlow-free library with nvcc for this GPU."""
    out = f"{tempfile.mkdtemp()}/libtfquant_cuda.so"
    source = ROOT / "custom_ops" / "core" / "cuda" / "launch.cu"
    flags = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-arch=native"]
    subprocess.run(["nvcc", *flags, str(source), "-o", out], check=True)
    return ctypes.CDLL(out)


class Check:
    """Runs kernels through the C ABI and keeps count."""

    def __init__(self):
        self.packing, self.reference = import_numerics()
        self.device, self.c = open_device(), build()
        self.failures = 0

    def call(self, name, *arguments):
        """Calls a function of the ABI with Python integers and device arrays."""
        values = []
        for value in arguments:
            if value is None:
                values.append(None)
            elif isinstance(value, int):
                values.append(ctypes.c_int64(value))
            else:
                values.append(self.device.pointer(value))
        values[0] = arguments[0] if "binary" not in name else values[0]  # num_bits is an int
        code = getattr(self.c, f"tfquant_cuda_{name}")(*values, self.device.stream())
        if code != 0:
            raise SystemExit(f"{name}: CUDA error {code}")

    def expect(self, ok, what):
        """Counts a failure and says it."""
        if not ok:
            self.failures += 1
            print(f"FAILED {what}")

    def weights(self, num_bits, group_size, k, n, rng):
        """Integers, scales as the kernels see them, and packed bytes on the device."""
        low = -(2 ** (num_bits - 1))
        q = rng.choice([-1, 1], (k, n)) if num_bits == 1 else rng.integers(low, -low, (k, n))
        scale = rng.uniform(0.5, 2, (-(-k // group_size) if group_size else 1, n))
        packed = self.packing.pack_matmul(q, scale, num_bits=num_bits, group_size=group_size)
        layout = {"num_bits": num_bits, "group_size": group_size, "k": k, "n": n}
        return (*self.packing.unpack_matmul(packed, **layout), self.device.put(packed))

    def matmul_call(self, mode, num_bits, group_size, x, bias, packed, k, n):
        """A call of one matmul kernel, and the array that it fills."""
        m = x.shape[0]
        y = self.device.put(np.zeros((m, n), np.float32))
        if num_bits == 1:
            return lambda: self.call("binary_matmul", m, k, n, packed, x, bias, y), y
        form = (num_bits, group_size, m, k, n, packed, x, bias)
        if mode == "float":
            return lambda: self.call("real_matmul", *form, y), y
        padded = self.packing.matmul_shape(num_bits, group_size, k, n)[0]
        q = self.device.put(np.zeros((m, padded), np.int8))
        scale = self.device.put(np.zeros(m, np.float32))
        return lambda: self.call("integer_matmul", *form, q, scale, y), y

    def matmuls(self):
        """Every width and group on both sides of the boundaries."""
        rng = np.random.default_rng(0)
        for num_bits, group_size in ((8, 0), (8, 32), (4, 0), (4, 32), (4, 128), (2, 64), (1, 0)):
            for m, k, n in ((1, 1, 1), (3, 31, 15), (4, 32, 16), (5, 129, 65), (9, 1030, 130)):
                q, scale, packed = self.weights(num_bits, group_size, k, n, rng)
                x, bias = rng.normal(size=(m, k)).astype("f"), rng.normal(size=n).astype("f")
                for mode in ("per_row", "float"):
                    form = {"num_bits": num_bits, "group_size": group_size, "bias": bias}
                    form["activations"] = mode
                    call, y = self.matmul_call(
                        mode,
                        num_bits,
                        group_size,
                        self.device.put(x),
                        self.device.put(bias),
                        packed,
                        k,
                        n,
                    )
                    call()
                    expected = self.reference.lowbit_matmul(x, q, scale, **form)
                    # The GPU adds rows of the panel in float, so its terms are as many as K.
                    bound = self.reference.lowbit_matmul_bound(
                        x, q, scale, **form | {"activations": "float"}
                    )
                    ok = (np.abs(self.device.get(y) - expected) <= 2 * bound).all()
                    self.expect(ok, f"w{num_bits} g{group_size} {mode} m{m} k{k} n{n}")

    def dequantize(self):
        """Every width against the reference, exactly."""
        rng = np.random.default_rng(1)
        for num_bits in (8, 4, 2, 1):
            for columns in (1, 7, 33, 130):
                packed = self.packing.pack(rng.integers(0, 2**num_bits, (5, columns)), num_bits)
                scale = rng.uniform(0.1, 1, (5, -(-columns // 32))).astype("f")
                zero = np.full_like(scale, 1.0)
                out = self.device.put(np.zeros((5, columns), np.float32))
                put = self.device.put
                self.call(
                    "dequantize",
                    num_bits,
                    5,
                    columns,
                    1,
                    32,
                    put(packed),
                    put(scale),
                    put(zero),
                    None,
                    out,
                )
                expected = self.reference.dequantize(
                    packed,
                    scale,
                    num_bits=num_bits,
                    columns=columns,
                    column_group=32,
                    zero_point=zero,
                )
                ok = np.array_equal(self.device.get(out), expected)
                self.expect(ok, f"dequantize {num_bits} bits, {columns} columns")

    def times(self):
        """Medians against cuBLAS float16."""
        rng = np.random.default_rng(2)
        k = n = 4096
        print("| kernel | M | ms | cuBLAS fp16 ms | ratio |\n|---|---|---|---|---|")
        dense = self.device.put(rng.normal(size=(k, n)).astype("f"))
        for num_bits, group_size, mode in ((4, 32, "float"), (8, 0, "per_row"), (1, 0, "per_row")):
            packed = self.weights(num_bits, group_size, k, n, rng)[2]
            for m in (1, 8, 64):
                x = self.device.put(rng.normal(size=(m, k)).astype("f"))
                ours, _ = self.matmul_call(mode, num_bits, group_size, x, None, packed, k, n)
                rival = self.device.half_matmul(x, dense)
                pairs = []
                for _ in range(30):
                    pairs.append([self.device.milliseconds(call) for call in (ours, rival)])
                a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
                name = f"w{num_bits} {'g' + str(group_size) if group_size else 'channel'} {mode}"
                print(f"| {name} | {m} | {a:.4f} | {b:.4f} | {b / a:.2f} |")


def main():
    """Checks, then times."""
    check = Check()
    print(f"# {check.device.name}")
    check.matmuls()
    check.dequantize()
    print("all kernels agree with the reference" if not check.failures else "")
    check.times()
    raise SystemExit(1 if check.failures else 0)


if __name__ == "__main__":
    main()

"""Checks every GPU kernel against the reference and times it; needs no TensorFlow and no Keras.

    python custom_ops/tests/gpu_check.py            # with a GPU, nvcc, and PyTorch or CuPy
    python custom_ops/tests/gpu_check.py --write    # and keeps the table, core/cuda/checked.md
    python custom_ops/tests/gpu_check.py --emulate  # no GPU: the same checks on the emulated one

Integer parts must be exact and float parts within the stated bound. Matmuls are timed against
cuBLAS in float16 and bfloat16, reads of packed weights and dequantize against a copy.
"""

import argparse
import ctypes
import datetime
import importlib.util
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import types

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "custom_ops" / "core" / "cuda" / "checked.md"
FORMATS = ((8, 0), (8, 32), (8, 128), (4, 0), (4, 32), (4, 64), (4, 128), (2, 0), (2, 64), (1, 0))
# Both sides of every change of kernel and tile.
ROWS = (1, 2, 4, 5, 16, 17, 33, 64, 65, 130)
SHAPES = ((1, 1), (31, 15), (32, 16), (33, 17), (129, 65), (288, 132), (1030, 130))
LARGE = ((1, 4096, 4096), (8, 4097, 1031), (64, 4096, 1000), (512, 2048, 4096), (513, 11008, 257))


def import_numerics():
    """packing and reference, without what tfquant/__init__.py imports."""
    if "tfquant" not in sys.modules:
        for name in ("tfquant", "tfquant.numerics"):
            package = types.ModuleType(name)
            package.__path__ = [str(ROOT / name.replace(".", "/"))]
            sys.modules[name] = package
    from tfquant.numerics import packing, reference

    return packing, reference


def load_build_tests():
    """build_tests.py beside this file."""
    path = pathlib.Path(__file__).with_name("build_tests.py")
    spec = importlib.util.spec_from_file_location("tfquant_build_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Torch:
    """Device memory and clocks by PyTorch."""

    def __init__(self):
        import torch

        if not torch.cuda.is_available():
            raise ImportError("PyTorch sees no GPU")
        self.torch = torch
        self.name = torch.cuda.get_device_name()
        self.software = f"PyTorch {torch.__version__}"

    def put(self, array):
        """The array on the device."""
        return self.torch.from_numpy(np.array(array, order="C")).cuda()

    def get(self, tensor):
        """The array on the host."""
        return tensor.cpu().numpy()

    def pointer(self, tensor):
        """The device address."""
        return ctypes.c_void_p(tensor.data_ptr())

    def matmul(self, x, w, dtype):
        """A call of cuBLAS."""
        x, w = (t.to(getattr(self.torch, dtype)) for t in (x, w))
        return lambda: self.torch.matmul(x, w)

    def copy(self, to, of):
        """A call that copies on the device."""
        return lambda: to.copy_(of)

    def stream(self):
        """The current stream."""
        return ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)

    def milliseconds(self, calls):
        """Time of a call by the device's clock, over several in a row."""
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / len(calls)


class CuPy:
    """Device memory and clocks by CuPy."""

    def __init__(self):
        import cupy

        self.cupy = cupy
        self.name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        self.software = f"CuPy {cupy.__version__}"

    def put(self, array):
        """The array on the device."""
        return self.cupy.array(array, order="C")

    def get(self, tensor):
        """The array on the host."""
        return self.cupy.asnumpy(tensor)

    def pointer(self, tensor):
        """The device address."""
        return ctypes.c_void_p(tensor.data.ptr)

    def matmul(self, x, w, dtype):
        """A call of cuBLAS; CuPy has no bfloat16."""
        if dtype == "bfloat16":
            return None
        x, w = x.astype(dtype), w.astype(dtype)
        return lambda: x @ w

    def copy(self, to, of):
        """A call that copies on the device."""
        return lambda: self.cupy.copyto(to, of)

    def stream(self):
        """The current stream."""
        return ctypes.c_void_p(self.cupy.cuda.get_current_stream().ptr)

    def milliseconds(self, calls):
        """Time of a call by the device's clock, over several in a row."""
        begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        begin.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(begin, end) / len(calls)


class Emulated:
    """Ordinary memory, for the emulated GPU."""

    name = "emulated GPU"
    software = "numpy"

    def put(self, array):
        """A copy that starts on a multiple of 16 bytes, as a GPU's memory does."""
        array = np.ascontiguousarray(array)
        memory = np.empty(array.nbytes + 16, np.uint8)
        start = -memory.ctypes.data % 16
        out = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        out[...] = array
        return out

    def get(self, tensor):
        """The array."""
        return tensor

    def pointer(self, tensor):
        """The address."""
        return ctypes.c_void_p(tensor.ctypes.data)

    def stream(self):
        """No stream."""
        return None


def open_device():
    """The first of PyTorch and CuPy that works."""
    problems = []
    for kind in (Torch, CuPy):
        try:
            return kind()
        except Exception as error:  # whatever a broken driver raises is the answer
            problems.append(f"{kind.__name__}: {error}")
    raise SystemExit("No GPU to check. " + "; ".join(problems))


def nvcc_command(out, options):
    """The call of nvcc that makes the library without TensorFlow."""
    lists = load_build_tests().load_build().source_lists(ROOT / "custom_ops")
    sources = [str(ROOT / "custom_ops" / n) for n in lists["GPU_SOURCES"] + lists["NVCC_SOURCES"]]
    flags = ["-O3", "-std=c++17", "-shared", "--threads=0", "-Xcompiler=-fPIC,-ffp-contract=off"]
    return ["nvcc", *flags, *options, *sources, "-o", str(out)]


def build(emulate=False):
    """Compiles the library for this GPU, or with the emulated one, and loads it."""
    folder = tempfile.mkdtemp()
    out = f"{folder}/libtfquant_gpu.so"
    if emulate:
        load_build_tests().emulated_gpu(out, ["-O2"])
    else:
        subprocess.run(nvcc_command(out, ["-arch=native"]), check=True)
    return open_library(out)


def open_library(file):
    """The functions of cuda_api.h."""
    library = ctypes.CDLL(str(file))
    library.tfquant_cuda_error.restype = ctypes.c_char_p
    library.tfquant_cuda_describe.restype = ctypes.c_char_p
    library.tfquant_cuda_kernel_name.restype = ctypes.c_char_p
    library.tfquant_cuda_scratch_bytes.restype = ctypes.c_int64
    return library


class Check:
    """Runs kernels through the C ABI and keeps count.

    Args:
        device: One of the classes above.
        library: What `open_library` gives.
    """

    def __init__(self, device, library):
        self.packing, self.reference = import_numerics()
        self.device, self.c = device, library
        self.checked, self.failures = 0, []

    def pointer(self, array):
        """The device address, or null."""
        return None if array is None else self.device.pointer(array)

    def expect(self, ok, what):
        """Counts, and says a failure."""
        self.checked += 1
        if not ok:
            self.failures.append(what)
            print(f"FAILED {what}", flush=True)

    def done(self, code, what):
        """Raises with the library's words if a call failed."""
        if code != 0:
            raise RuntimeError(f"{what}: {self.c.tfquant_cuda_error().decode()}")

    def weights(self, num_bits, group_size, k, n, rng, ones=False):
        """Integers, scales as the kernels see them, and packed bytes."""
        low = -(2 ** (num_bits - 1))
        q = rng.choice([-1, 1], (k, n)) if num_bits == 1 else rng.integers(low, -low, (k, n))
        shape = (-(-k // group_size) if group_size else 1, n)
        scale = np.ones(shape) if ones else rng.uniform(0.5, 2, shape)
        packed = self.packing.pack_matmul(q, scale, num_bits=num_bits, group_size=group_size)
        layout = {"num_bits": num_bits, "group_size": group_size, "k": k, "n": n}
        return (*self.packing.unpack_matmul(packed, **layout), packed)

    def matmul_call(self, x, packed, y, *, k, n, num_bits, group_size, brain=False, **settings):
        """A call of the matmul on arrays of the device."""
        mode = self.reference.ACTIVATIONS.index(settings.get("activations", "per_row"))
        fused = self.reference.FUSED.index(settings.get("fused", "linear"))
        i64, m = ctypes.c_int64, x.shape[0]
        layout = (i64(m), num_bits, i64(group_size), i64(k), i64(n), mode)
        size = self.c.tfquant_cuda_scratch_bytes(int(brain), *layout)
        if size < 0:
            raise RuntimeError(self.c.tfquant_cuda_error().decode())
        scratch = self.device.put(np.zeros(max(size, 1), np.uint8))
        arguments = (
            int(brain),
            i64(m),
            self.pointer(x),
            num_bits,
            i64(group_size),
            i64(k),
            i64(n),
            self.pointer(packed),
            i64(self.packing.matmul_shape(num_bits, group_size, k, n)[-1]),
            mode,
            ctypes.c_float(settings.get("x_scale", 1.0)),
            settings.get("zero_point", 0),
            self.pointer(settings.get("bias")),
            fused,
            self.pointer(y),
            self.pointer(scratch),
            i64(size),
        )

        def call(_keep=(x, packed, y, scratch, settings)):
            self.done(self.c.tfquant_cuda_matmul(*arguments, self.device.stream()), "matmul")

        return call

    def matmul(self, m, k, n, num_bits, group_size, rng, exact=False, **settings):
        """One matmul against the reference."""
        q, scale, packed = self.weights(num_bits, group_size, k, n, rng, ones=exact)
        x = rng.integers(-128, 128, (m, k)) if exact else rng.normal(size=(m, k))
        x = x.astype(np.float32)
        brain = settings.pop("brain", False)
        if brain:
            x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
        form = {"num_bits": num_bits, "group_size": group_size, **settings}
        if not exact:
            form["bias"] = rng.normal(size=n).astype(np.float32)
        given = (x.view(np.uint32) >> 16).astype(np.uint16) if brain else x
        y = self.device.put(np.full((m, n), 7, given.dtype))
        on_device = form | {"bias": self.device.put(form["bias"]) if "bias" in form else None}
        put = self.device.put
        call = self.matmul_call(put(given), put(packed), y, k=k, n=n, brain=brain, **on_device)
        call()
        found = self.device.get(y)
        if brain:
            found = (found.astype(np.uint32) << 16).view(np.float32)
        expected = self.reference.lowbit_matmul(x, q, scale, **form)
        bound = self.bound(x, q, scale, form)
        if brain:
            bound = bound + np.abs(expected) * 2.0**-8
        if exact:
            bound = 0
        what = f"w{num_bits} g{group_size} m{m} k{k} n{n} {settings}{' bfloat16' * brain}"
        self.expect((np.abs(found - expected) <= bound).all(), what)

    def bound(self, x, q, scale, form):
        """How far a GPU kernel may be from the reference.

        Integer sums of a channel are exact, so there the bound is that of every path. Sums of
        groups and of floats are added in float, some of them row by row of a panel, so that the
        terms are as many as K; and a tensor core cuts off what a float32 addition rounds, so twice
        that. Fused functions have slopes below 1.13 and err by a few units in the last place.
        """
        bound = self.reference.lowbit_matmul_bound(x, q, scale, **form)
        k, mode = len(q), form.get("activations", "per_row")
        if form["num_bits"] > 1 and (form["group_size"] or mode == "float"):
            terms = k if mode == "float" else -(-k // form["group_size"])
            bound = bound * 2 * (k + 4) / (terms + 4)
        if form.get("fused", "linear") != "linear":
            linear = np.abs(self.reference.lowbit_matmul(x, q, scale, **form | {"fused": "linear"}))
            bound = 1.13 * bound + 2.0**-21 * (linear + 1)
        return bound

    def matmuls(self, every=1, large=True):
        """Every width, group, mode and kernel; `every` nth of the cases."""
        rng = np.random.default_rng(0)
        count = 0
        for num_bits, group_size in FORMATS:
            for m in ROWS:
                for k, n in SHAPES:
                    for mode in self.reference.ACTIVATIONS:
                        if mode == "per_group" and not group_size:
                            continue
                        count += 1
                        if count % every:
                            continue
                        settings = {
                            "activations": mode,
                            "x_scale": 0.03,
                            "zero_point": -7 if mode == "static" else 0,
                            "fused": self.reference.FUSED[int(rng.integers(8))],
                            "brain": bool(rng.integers(2)),
                        }
                        self.matmul(m, k, n, num_bits, group_size, rng, **settings)
                if m % 4 == 1 or every == 1:
                    for mode in ("static", "float"):
                        self.matmul(m, 289, 20, num_bits, group_size, rng, True, activations=mode)
        if large:
            for num_bits, group_size in FORMATS:
                for m, k, n in LARGE:
                    for mode in ("per_row", "float"):
                        self.matmul(m, k, n, num_bits, group_size, rng, activations=mode)

    def plain_rows(self):
        """Dequantize, quantize and unpack, exactly."""
        rng, put, i64 = np.random.default_rng(1), self.device.put, ctypes.c_int64
        stream = self.device.stream()
        for num_bits in (8, 4, 2, 1):
            for columns in (1, 4, 7, 33, 130, 1028):
                for column_group in (1, 32):
                    v = rng.integers(0, 2**num_bits, (5, columns))
                    packed = self.packing.pack(v, num_bits)
                    shape = (3, -(-columns // column_group))
                    scale = rng.uniform(0.1, 1, shape).astype("f")
                    zero = rng.integers(0, 2**num_bits, shape).astype("f")
                    book = rng.normal(size=2**num_bits).astype("f")
                    form = {"num_bits": num_bits, "row_group": 2, "column_group": column_group}
                    sizes = (num_bits, i64(5), i64(columns), i64(2), i64(column_group))
                    on = [put(array) for array in (packed, scale, zero, book)]
                    p, s, z, b = (self.pointer(array) for array in on)
                    out = put(np.zeros((5, columns), np.float32))
                    for zeros, codebook in ((None, None), (z, None), (None, b)):
                        call = self.c.tfquant_cuda_dequantize
                        tail = (i64(scale.size), zeros, codebook, 0, self.pointer(out), stream)
                        self.done(call(*sizes, p, i64(packed.size), s, *tail), "dequantize")
                        expected = self.reference.dequantize(
                            packed,
                            scale,
                            columns=columns,
                            zero_point=zero if zeros else None,
                            codebook=book if codebook else None,
                            **form,
                        )
                        what = f"{num_bits} bits, {columns} columns, group {column_group}"
                        found = self.device.get(out)
                        self.expect(np.array_equal(found, expected), f"dequantize {what}")
                    x = rng.normal(size=(5, columns)).astype("f") * 3
                    x[0, 0] = np.nan
                    x_on, again = put(x), put(np.zeros_like(packed))
                    call = self.c.tfquant_cuda_quantize
                    tail = (self.pointer(again), i64(packed.size), stream)
                    code = call(*sizes, self.pointer(x_on), s, i64(scale.size), z, *tail)
                    self.done(code, "quantize")
                    expected = self.reference.quantize(x, scale, zero_point=zero, **form)
                    self.expect(np.array_equal(self.device.get(again), expected), f"pack {what}")
        for num_bits, group_size in FORMATS:
            for k, n in SHAPES:
                q, scale, packed = self.weights(num_bits, group_size, k, n, rng)
                data, out = put(packed), put(np.zeros((k, n), np.float32))
                layout = (num_bits, i64(group_size), i64(k), i64(n))
                tail = (self.pointer(data), i64(packed.size), self.pointer(out), stream)
                self.done(self.c.tfquant_cuda_unpack(*layout, *tail), "unpack")
                expected = q * np.repeat(scale, group_size or k, axis=0)[:k].astype("f")
                ok = np.array_equal(self.device.get(out), expected)
                self.expect(ok, f"unpack w{num_bits} g{group_size} k{k} n{n}")


class Times:
    """Times kernels and their rivals in turn, on weights that come from memory, not a cache."""

    def __init__(self, check):
        self.check, self.device = check, check.device
        self.rng = np.random.default_rng(2)
        self.lines = []

    def say(self, line):
        """Prints a line of the table and keeps it."""
        print(line, flush=True)
        self.lines.append(line)

    def medians(self, rivals):
        """Median milliseconds of each list of calls, run in turn."""
        for calls in rivals:
            self.device.milliseconds(calls)
        rounds = [[self.device.milliseconds(calls) for calls in rivals] for _ in range(15)]
        return [statistics.median(column) for column in zip(*rounds, strict=True)]

    def copies(self, array, at_least=256 << 20):
        """The array several times on the device, more than its caches hold."""
        return [self.device.put(array) for _ in range(min(24, -(-at_least // array.nbytes)))]

    def copy_rate(self):
        """Bytes read and written a millisecond by a copy on the device."""
        of, to = (self.device.put(np.zeros(1 << 28, np.uint8)) for _ in range(2))
        return 2 * (1 << 28) / self.medians([[self.device.copy(to, of)] * 5])[0]

    def matmuls(self, size=4096):
        """A line for each kernel and number of rows."""
        k = n = size
        rate = self.copy_rate()
        self.say(f"Copy on the device: {rate / 1e6:.0f} GB/s, read and written. K = N = {k}.\n")
        self.say(
            "| kernel | M | ms | weights read, of copy bandwidth | cuBLAS fp16, ms | cuBLAS bf16, "
            "ms | fp16 / ours |\n|---|---|---|---|---|---|---|"
        )
        dense = self.copies(self.rng.normal(size=(k, n)).astype("f"))[:8]
        kinds = (
            (4, 32, "float", True),
            (4, 32, "float", False),
            (4, 128, "float", True),
            (8, 0, "float", True),
            (8, 0, "per_row", False),
            (4, 32, "per_row", False),
            (2, 64, "per_row", False),
            (1, 0, "per_row", False),
        )
        for num_bits, group_size, mode, brain in kinds:
            packed = self.check.weights(num_bits, group_size, k, n, self.rng)[2]
            data = self.copies(packed)
            for m in (1, 8, 64, 512):
                x = self.rng.normal(size=(m, k)).astype("f")
                given = (x.view(np.uint32) >> 16).astype(np.uint16) if brain else x
                on, y = self.device.put(given), self.device.put(np.zeros((m, n), given.dtype))
                form = {"k": k, "n": n, "num_bits": num_bits, "group_size": group_size}
                form |= {"activations": mode, "brain": brain}
                ours = [self.check.matmul_call(on, each, y, **form) for each in data]
                x_on = self.device.put(x)
                rivals = [ours]
                for dtype in ("float16", "bfloat16"):
                    calls = [self.device.matmul(x_on, each, dtype) for each in dense]
                    if calls[0] is not None:
                        rivals.append(calls)
                times = [*self.medians(rivals), float("nan")]
                share = packed.nbytes / times[0] / rate
                name = f"w{num_bits} {f'g{group_size}' if group_size else 'channel'} {mode}"
                name += " bfloat16" if brain else ""
                self.say(
                    f"| {name} | {m} | {times[0]:.4f} | {share:.2f} | {times[1]:.4f} "
                    f"| {times[2]:.4f} | {times[1] / times[0]:.2f} |"
                )

    def dequantize(self, rows=8192, columns=8192):
        """A line for each width."""
        rate, i64 = self.copy_rate(), ctypes.c_int64
        self.say(f"\n| dequantize {rows} x {columns} | ms | of copy bandwidth |\n|---|---|---|")
        out = self.device.put(np.zeros((rows, columns), np.float32))
        for num_bits in (8, 4, 2, 1):
            packed = self.device.put(np.zeros((rows, columns * num_bits // 8), np.uint8))
            scale = self.device.put(np.ones((rows, columns // 32), np.float32))
            size = rows * columns * num_bits // 8
            arguments = (
                num_bits,
                i64(rows),
                i64(columns),
                i64(1),
                i64(32),
                self.check.pointer(packed),
                i64(size),
                self.check.pointer(scale),
                i64(rows * columns // 32),
                None,
                None,
                0,
                self.check.pointer(out),
            )
            call = self.check.c.tfquant_cuda_dequantize
            calls = [lambda a=arguments, call=call: call(*a, self.device.stream())] * 5
            time = self.medians([calls])[0]
            moved = size + rows * columns * 4 + rows * columns // 8
            self.say(f"| {num_bits} bits, group 32 | {time:.4f} | {moved / time / rate:.2f} |")


def write_table(check, lines):
    """Writes checked.md, as a whole or not at all."""
    head = [
        f"# GPU kernels checked on {check.device.name}",
        "",
        f"{check.checked} checks against the reference, {len(check.failures)} failures;",
        f"{check.c.tfquant_cuda_describe().decode()}; {check.device.software};",
        f"{platform.platform()}; {datetime.date.today()}. Made by",
        "`python custom_ops/tests/gpu_check.py --write`. Times: medians of 15 interleaved rounds.",
        "",
    ]
    made = TABLE.with_suffix(".md.part")
    made.write_text("\n".join([*head, *lines]) + "\n")
    os.replace(made, TABLE)


def main():
    """Checks, then times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulate", action="store_true", help="check on the emulated GPU")
    parser.add_argument("--every", type=int, default=1, help="check every nth matmul only")
    parser.add_argument("--write", action="store_true", help="keep the table, to be committed")
    args = parser.parse_args()
    device = Emulated() if args.emulate else open_device()
    check = Check(device, build(args.emulate))
    print(f"# {device.name}: {check.c.tfquant_cuda_describe().decode()}", flush=True)
    check.matmuls(args.every, large=not args.emulate)
    check.plain_rows()
    print(f"{check.checked} checks, {len(check.failures)} failures", flush=True)
    if not args.emulate:
        times = Times(check)
        times.matmuls()
        times.dequantize()
        if args.write:
            write_table(check, times.lines)
    raise SystemExit(1 if check.failures else 0)


if __name__ == "__main__":
    main()

"""What this machine could reach: peaks and bandwidths, by custom_ops/bench/floor.cc."""

import ctypes
import os
import pathlib
import subprocess
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]


def last_cache():
    """Bytes of the last cache; 0 where Linux does not tell."""
    files = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(file.read_text().strip().rstrip("K")) << 10 for file in files), default=0)


# More than the caches hold.
COLD_BYTES = max(256 << 20, 2 * last_cache())


class Floor:
    """The peaks and bandwidths of this machine, by custom_ops/bench/floor.cc.

    Attributes:
        eager: Seconds of an eager call, which contestants called "... tf" cannot go below.
    """

    def __init__(self, threads):
        folder = tempfile.mkdtemp()
        out = f"{folder}/floor.so"
        source = str(ROOT / "custom_ops" / "bench" / "floor.cc")
        flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        subprocess.run([os.environ.get("CXX", "g++"), *flags, source, "-o", out], check=True)
        c = ctypes.CDLL(out)
        for name in ("products", "compute", "read", "copy"):
            getattr(c, f"tfquant_floor_{name}").restype = ctypes.c_double
        self._c, self.threads, self._reads, self.peaks = c, threads, {}, {}
        self.eager = 0.0

    def measure(self):
        """The peaks, and forgets bandwidths that were measured before."""
        rounds = ctypes.c_int64(2_000_000)
        self._reads.clear()
        names = ["float", "integer", "integer, groups of 32", "bits"]
        names += ["integer by tiles", "integer, groups of 32 by tiles", "float by tiles"]
        for kind, name in enumerate(names):
            products = self._c.tfquant_floor_products(kind, rounds)
            if products:
                call = self._c.tfquant_floor_compute
                best = min(call(kind, self.threads, rounds) for _ in range(5))
                self.peaks[name] = self.threads * products / best

    def read(self, size):
        """Bytes a second of reading a footprint again and again."""
        size = max(64 << 10, 1 << (int(size) - 1).bit_length())
        if size not in self._reads:
            data = np.ones(size, np.uint8)
            repeats = max(1, (64 << 20) // size)
            call = self._c.tfquant_floor_read
            arguments = (ctypes.c_void_p(data.ctypes.data), ctypes.c_int64(size))
            best = min(call(*arguments, self.threads, repeats) for _ in range(7))
            self._reads[size] = size * repeats / best
        return self._reads[size]

    def copier(self, source, target):
        """A call that copies an array on all threads and returns its seconds."""
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (source, target)]
        call, size = self._c.tfquant_floor_copy, ctypes.c_int64(source.nbytes)
        return lambda: call(*pointers, size, self.threads)

    def describe(self):
        """The measurements in one line."""
        peaks = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in self.peaks.items())
        reads = ", ".join(
            f"{s >> 20} MB {self.read(s) / 1e9:.0f}" for s in (1 << 20, 16 << 20, COLD_BYTES)
        )
        return f"peak GMAC/s: {peaks}; read GB/s: {reads}"

    def seconds(self, name, m, k, n, cold):
        """The least time for one of our contestants; `None` for a rival."""
        classes = {
            "w8a8": (1.0, "integer"),
            "w4a8 channel": (0.5, "integer"),
            "w2a8 channel": (0.25, "integer"),
            "w8a8 g32": (1.0625, "integer, groups of 32"),
            "w4a8 g32": (0.5625, "integer, groups of 32"),
            "w4a8 g32x32": (0.5625, "integer, groups of 32"),
            "w2a8 g32": (0.3125, "integer, groups of 32"),
            "w4a16 g32": (0.5625, "float"),
            "w8a16": (1.0, "float"),
            "w1a1": (0.125, "bits"),
            "tf.matmul": (4.0, "float"),
        }
        eager = self.eager if name.endswith(" tf") else 0.0
        name = name.removesuffix(" tf")
        if name not in classes:
            return None
        each, peak = classes[name]
        if m > 8 and name != "tf.matmul":  # tiles where this processor has them
            peak = f"{peak} by tiles" if f"{peak} by tiles" in self.peaks else peak
        size = each * k * n
        bandwidth = self.read(COLD_BYTES) if cold else self.read(size)
        return max(size / bandwidth, m * k * n / self.peaks[peak]) + eager


def flush(cache=[]):  # noqa: B006
    """Evicts what the caches hold."""
    if not cache:
        cache.append(np.ones(COLD_BYTES // 8))
    cache[0].sum()


def processor():
    """Name of the processor."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def machine(floor):
    """What the numbers are from."""
    from tfquant import lowbit

    path, threads = lowbit.doctor().path, floor.threads
    return f"{processor()}, path {path}, {threads} thread(s); {floor.describe()}"

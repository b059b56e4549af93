"""The GPU path where there is no GPU: emulated, compiled, and out of the way."""

import ctypes
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tfquant.lowbit import build, library

TESTS = pathlib.Path(__file__).resolve().parents[2] / "custom_ops" / "tests"
ARCHITECTURES = (75, 80, 86, 89, 90, 100)
# One of each kind; `slow` compiles all.
SOME_KERNELS = (
    "QuantizeRows",
    "SplitRows<3>",
    "EncodeSigns",
    "BinaryGemv<4>",
    "BinaryGemm",
    "Gemm<Integer<8>, false>",
    "Gemm<Real<4, 1>, true>",
    "Skinny<Real<4, 3>, true, 1>",
    "IntegerGemv<4, 1>",
    "RealGemv<4, 1, true>",
    "UnpackWeights<2>",
    "Dequantize<4>",
    "QuantizePack<1>",
)


def load(name):
    spec = importlib.util.spec_from_file_location(f"tfquant_{name}", TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu_check():
    return load("gpu_check")


@pytest.fixture(scope="module")
def emulated(gpu_check, tmp_path_factory):
    """The emulated GPU behind the C ABI of core/cuda."""
    if build.compiler() is None:
        pytest.skip("needs a C++ compiler")
    # Under this name it also stands in for the driver, which nvrtc_launch.cc opens.
    file = tmp_path_factory.mktemp("gpu") / "libcuda.so.1"
    load("build_tests").emulated_gpu(file, ["-O1"])
    return gpu_check.open_library(file)


@pytest.fixture
def check(gpu_check, emulated):
    return gpu_check.Check(gpu_check.Emulated(), emulated)


def test_the_matmul_kernels_agree_with_the_reference_when_emulated(check):
    check.matmuls(every=41, large=False)
    assert check.failures == [] and check.checked > 80


def test_dequantize_quantize_and_unpack_are_exact_when_emulated(check):
    check.plain_rows()
    assert check.failures == []


@pytest.mark.long
def test_all_cases_of_the_matmul_kernels_agree_when_emulated(check):
    check.matmuls(large=False)
    assert check.failures == []


@pytest.mark.parametrize("order", ["descending", "3"])
def test_no_kernel_depends_on_which_thread_runs_first(check, monkeypatch, order):
    monkeypatch.setenv("TFQUANT_EMULATED_ORDER", order)
    rng = np.random.default_rng(0)
    for num_bits, group_size in ((8, 0), (4, 32), (2, 128), (1, 0)):
        for m in (3, 9, 40, 70):
            for mode in ("per_row", "float"):
                check.matmul(m, 289, 60, num_bits, group_size, rng, activations=mode)
    assert check.failures == []


def test_every_kernel_has_a_name_of_its_own_that_launches_ask_for(emulated):
    text = (TESTS.parent / "core" / "cuda" / "launches.cc").read_text()
    index, names = 0, []
    while (name := emulated.tfquant_cuda_kernel_name(index)) is not None:
        names.append(name.decode())
        index += 1
    assert len(set(names)) == len(names) == 91
    assert all(name.split("<")[0] in text for name in names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bits": 3}, "`num_bits` must be 8, 4, 2 or 1"),
        ({"m": -1}, "number of rows that overflows"),
        ({"m": 2**60}, "number of rows that overflows"),
        ({"weights_bytes": 1}, "`weights` must hold"),
        ({"weights": None}, "must not be null"),
        ({"weights": 8}, "multiple of 16 bytes"),
        ({"scratch_bytes": 0}, "`scratch` must hold"),
        ({"activations": 2}, "only if the weights have groups"),
        ({"fused": 99}, "`fused` must be 0 to 7"),
    ],
)
def test_wrong_arguments_are_refused_before_a_launch(check, emulated, change, words):
    i64 = ctypes.c_int64
    packed = check.device.put(check.weights(4, 0, 64, 20, np.random.default_rng(0))[2])
    x, y = np.zeros((9, 64), np.float32), np.zeros((9, 20), np.float32)
    scratch = check.device.put(np.zeros(1 << 16, np.uint8))
    given = {
        "m": 9,
        "num_bits": 4,
        "weights": packed.ctypes.data,
        "weights_bytes": packed.size,
        "activations": 1,
        "fused": 0,
        "scratch_bytes": scratch.size,
    } | change
    if change.get("weights"):
        given["weights"] = packed.ctypes.data + change["weights"]
    code = emulated.tfquant_cuda_matmul(
        0,
        i64(given["m"]),
        check.pointer(x),
        given["num_bits"],
        i64(0),
        i64(64),
        i64(20),
        ctypes.c_void_p(given["weights"]),
        i64(given["weights_bytes"]),
        given["activations"],
        ctypes.c_float(1),
        0,
        None,
        given["fused"],
        check.pointer(y),
        check.pointer(scratch),
        i64(given["scratch_bytes"]),
        None,
    )
    assert code == -1
    assert words in emulated.tfquant_cuda_error().decode()


def nvrtc():
    """File of NVRTC 12, from the package `nvidia-cuda-nvrtc-cu12` or the system."""
    for folder in sys.path:
        for path in pathlib.Path(folder or ".").glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.12"):
            return str(path)
    try:
        ctypes.CDLL("libnvrtc.so.12")
    except OSError:
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")
    return "libnvrtc.so.12"


def compile_kernels(core, architecture, options, nvrtc_file):
    """Compiles kernels in a process of its own, without loading them."""
    command = [sys.executable, str(TESTS / "gpu_compile.py"), "--library", core.file]
    return subprocess.run(
        [*command, "--architectures", str(architecture), *options],
        env=os.environ | {"TFQUANT_NVRTC": nvrtc_file, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "architecture",
    [80, *(pytest.param(a, marks=pytest.mark.long) for a in ARCHITECTURES if a != 80)],
)
def test_nvrtc_compiles_one_kernel_of_each_kind(core, architecture):
    done = compile_kernels(core, architecture, ["--kernels", *SOME_KERNELS], nvrtc())
    assert f"sm_{architecture}: 13 kernels" in done.stdout, done.stderr[-3000:]
    assert "compiled and not run" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_every_kernel(core, architecture):
    done = compile_kernels(core, architecture, [], nvrtc())
    assert f"sm_{architecture}: 91 kernels" in done.stdout, done.stderr[-3000:]


@pytest.mark.long  # 100 s where there is nvcc; NVRTC compiles some of each kind above.
def test_nvcc_compiles_the_library_without_tensorflow(gpu_check, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    out = tmp_path / "libtfquant_gpu.so"
    subprocess.run(gpu_check.nvcc_command(out, ["-arch=sm_80"]), check=True, timeout=1500)
    c = gpu_check.open_library(out)
    assert c.tfquant_cuda_abi_version() == 2 and c.tfquant_cuda_describe()


BY_THE_DRIVER = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("gpu_check", sys.argv[1])
gpu_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_check)
check = gpu_check.Check(gpu_check.Emulated(), gpu_check.open_library(sys.argv[2]))
print(check.c.tfquant_cuda_describe().decode())
rng = np.random.default_rng(0)
for m in (1, 3, 9, 70):
    for mode in ("per_row", "float"):
        check.matmul(m, 65, 20, 4, 32, rng, activations=mode)
        check.matmul(m, 65, 20, 1, 0, rng, activations=mode)
assert check.checked == 16 and not check.failures
"""


@pytest.mark.parametrize(("known", "form"), [("80", "sm_80"), ("75", "sm_80")])
def test_the_run_time_path_compiles_keeps_and_launches_kernels(
    core, gpu_check, emulated, tmp_path, known, form
):
    """The library that TensorFlow loads, with an emulated driver and compiler.

    A compiler that is older than the GPU makes code for the driver to translate.
    """
    folder = pathlib.Path(emulated._name).parent

    def run():
        return subprocess.run(
            [sys.executable, "-c", BY_THE_DRIVER, gpu_check.__file__, core.file],
            env=os.environ
            | {
                "LD_LIBRARY_PATH": f"{folder}:{build.tensorflow_folder()}",
                "TFQUANT_NVRTC": emulated._name,
                "TFQUANT_CACHE_DIR": str(tmp_path / "cache"),
                "TFQUANT_EMULATED_NVRTC": known,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "GPUs seen by the CUDA driver: 1. NVRTC 12.5" in done.stdout
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) > 8 and all(path.name.startswith(f"cuda-{form}-") for path in kept)
    # Kept code is used, and code that does not load is made again.
    first = kept[0].read_bytes()
    kept[0].write_bytes(b"truncated")
    times = {path: path.stat().st_mtime_ns for path in kept[1:]}
    assert run().returncode == 0
    assert kept[0].read_bytes() == first
    assert times == {path: path.stat().st_mtime_ns for path in kept[1:]}


def test_a_missing_nvrtc_is_said_with_the_remedy(core):
    done = compile_kernels(core, 80, ["--every", "50"], "/nowhere/libnvrtc.so")
    assert "NVRTC, which compiles the GPU kernels, is missing" in done.stderr
    assert "TFQUANT_NVRTC=/nowhere/libnvrtc.so" in done.stderr
    assert 'tf.device("CPU")' in done.stderr


def test_nvrtc_is_found_beside_tensorflow(core):
    """Where `tensorflow[and-cuda]` puts it, on no search path of the loader."""
    file = build.tensorflow_folder().parent / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
    if not file.is_file():
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")
    code = "from tfquant.lowbit import doctor; print(doctor().gpu)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if k not in ("TFQUANT_NVRTC", "LD_LIBRARY_PATH")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"({file.resolve()})" in done.stdout


def test_a_launch_without_a_driver_says_so(core):
    c = library.c_library()
    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("needs a machine without a CUDA driver")
    except OSError:
        pass
    i64, array = ctypes.c_int64, np.ones(16, np.float32)
    at = ctypes.c_void_p(array.ctypes.data)
    sizes = (8, i64(1), i64(4), i64(1), i64(4))
    code = c.tfquant_cuda_dequantize(*sizes, at, i64(4), at, i64(1), None, None, 0, at, None)
    assert code == -1
    assert "libcuda.so.1 is missing" in c.tfquant_cuda_error().decode()


@pytest.mark.parametrize(
    ("op", "on_gpu"),
    [("LowbitMatmul", 2), ("Dequantize", 2), ("LowbitUnpack", 1), ("QuantizePack", 1)],
)
def test_the_ops_have_kernels_for_cpu_and_gpu(core, op, on_gpu):
    class Buffer(ctypes.Structure):
        _fields_ = (
            ("data", ctypes.c_void_p),
            ("length", ctypes.c_size_t),
            ("free", ctypes.c_void_p),
        )

    c = ctypes.CDLL(str(build.tensorflow_folder() / "libtensorflow_cc.so.2"))
    c.TF_NewStatus.restype = ctypes.c_void_p
    c.TF_GetRegisteredKernelsForOp.restype = ctypes.POINTER(Buffer)
    c.TF_GetRegisteredKernelsForOp.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    found = c.TF_GetRegisteredKernelsForOp(f"Tfquant>{op}".encode(), c.TF_NewStatus()).contents
    kernels = ctypes.string_at(found.data, found.length)
    assert kernels.count(b"GPU") == kernels.count(b"CPU") == on_gpu


OPS_ON_EMULATED_GPU = """
import numpy as np, tensorflow as tf
from tfquant import lowbit
from tfquant.numerics import packing, reference
rng = np.random.default_rng(0)
for num_bits, group_size in ((8, 0), (4, 32), (1, 0)):
    q = rng.choice([-1, 1], (70, 19)) if num_bits == 1 else rng.integers(-8, 8, (70, 19))
    scale = rng.uniform(0.5, 1, (3 if group_size else 1, 19))
    w = lowbit.pack(q, scale, num_bits=num_bits, group_size=group_size)
    form = {"num_bits": num_bits, "group_size": group_size, "bias": rng.normal(size=19)}
    unpacked = packing.unpack_matmul(w.data, num_bits=num_bits, group_size=group_size, k=70, n=19)
    for batch in ((1,), (2, 3), (70,), (0,)):
        x = rng.normal(size=(*batch, 70)).astype("f")
        for mode in ("per_row", "float"):
            with tf.GradientTape() as tape:
                given = tf.constant(x)
                tape.watch(given)
                y = lowbit.matmul(given, w, bias=form["bias"], activations=mode, fused="relu")
            settings = form | {"activations": mode, "fused": "relu"}
            expected = reference.lowbit_matmul(x.reshape(-1, 70), *unpacked, **settings)
            np.testing.assert_allclose(np.reshape(y, (-1, 19)), expected, atol=1e-4)
            assert tape.gradient(y, given).shape == x.shape
            half = lowbit.matmul(tf.cast(x, tf.bfloat16), w, activations=mode)
            assert half.dtype == tf.bfloat16 and half.shape == y.shape
    spread = np.repeat(unpacked[1], group_size or 70, axis=0)[:70]
    np.testing.assert_array_equal(lowbit.unpack(w), unpacked[0] * spread)
for data, words in ((w.data[:-1], "must hold"),):
    try:
        lowbit.matmul(tf.ones((1, 70)), lowbit.PackedWeights(data, **w.layout))
    except tf.errors.InvalidArgumentError as error:
        assert words in str(error)
    else:
        raise AssertionError("wrong weights were accepted")
packed = lowbit.quantize_pack(tf.ones((2, 3)), np.ones((2, 1)), num_bits=4, column_group=3)
real = lowbit.dequantize(packed, np.ones((2, 1)), num_bits=4, columns=3, column_group=3)
np.testing.assert_array_equal(real, np.ones((2, 3)))
print("all right")
"""


@pytest.mark.slow
def test_the_gpu_kernels_of_the_ops_work_on_the_emulated_gpu(core, tmp_path):
    out = tmp_path / "libtfquant_emulated_ops.so"
    load("build_tests").emulated_ops(out, build.tensorflow_folder(), ["-O1"])
    done = subprocess.run(
        [sys.executable, "-c", OPS_ON_EMULATED_GPU],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TFQUANT_LIBRARY": str(out)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "all right" in done.stdout, done.stderr[-3000:]


def test_the_doctor_says_what_of_the_gpu_path_is_there(core):
    found = library.doctor().gpu
    assert "NVRTC" in found and "driver" in found
    checked = build.source_root() / "core" / "cuda" / "checked.md"
    assert ("not yet run on a GPU" in found) == (not checked.is_file())

"""The one list of what is compiled, and how.

Read as Starlark by the root BUILD and as Python literals by tfquant/lowbit/build.py; keep it to
plain assignments of literals. Paths are relative to custom_ops/.
"""

CORE_SOURCES = [
    "core/args.cc",
    "core/c_api.cc",
    "core/cuda/launches.cc",
    "core/cuda/nvrtc_launch.cc",
    "core/dequantize.cc",
    "core/matmul.cc",
    "core/pack.cc",
    "core/path.cc",
    "core/portable/kernels.cc",
    "core/prepared_rows.cc",
    "core/thread_pool.cc",
]

# Paths, from the plainest to the one that is preferred: core/<name>/kernels.cc, with the options that
# switch its instruction set on. A path is this line and that file.
X86_64_PATHS = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avxvnni": "-mavx2 -mfma -mf16c -mavxvnni",
    "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512bitalg",
    "amx": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mamx-tile -mamx-int8 -mamx-bf16",
}

AARCH64_PATHS = {
    "neon": "-march=armv8.2-a+dotprod+fp16",
}

TENSORFLOW_SOURCES = [
    "kernels/lowbit_ops.cc",
    "kernels/lowbit_ops_gpu.cc",
    "ops/lowbit_ops.cc",
]

# The GPU path by itself, for a library without TensorFlow: these and one way to launch, by the CUDA
# runtime or on the emulated GPU.
GPU_SOURCES = [
    "core/args.cc",
    "core/cuda/launches.cc",
    "core/pack.cc",
]

NVCC_SOURCES = ["core/cuda/nvcc_launch.cu"]

EMULATED_SOURCES = [
    "tests/emulated_driver.cc",
    "tests/emulated_gpu.cc",
]

GPU_TEST_SOURCES = ["tests/gpu_test.cc"]

# No contraction: a * b + c must round twice where the reference does.
COPTS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-unknown-warning-option",  # Of clang, which does not know the next one.
    "-Wno-maybe-uninitialized",
]

TENSORFLOW_COPTS = [
    "-D_GLIBCXX_USE_CXX11_ABI=1",
    "-DEIGEN_MAX_ALIGN_BYTES=64",
    "-Wno-unused-parameter",
]

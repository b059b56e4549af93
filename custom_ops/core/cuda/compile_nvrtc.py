"""Compiles kernels.cuh with NVRTC for every architecture it knows; needs no GPU.

pip install nvidia-cuda-nvrtc-cu12
python custom_ops/core/cuda/compile_nvrtc.py
"""

import ctypes
import pathlib
import sys

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")


def find_nvrtc():
    """The NVRTC of the `nvidia` packages, or the system's."""
    for folder in sys.path:
        for path in sorted(pathlib.Path(folder).glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    return ctypes.CDLL("libnvrtc.so")


def compile_cubin(nvrtc, source, architecture):
    """The cubin of `source`.

    Raises:
        RuntimeError: With the compiler's words.
    """
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    array = (ctypes.c_char_p * len(options))(*options)
    code = nvrtc.nvrtcCompileProgram(program, len(options), array)
    if code != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"NVRTC failed for {architecture}:\n{log.value.decode()}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return cubin.raw


def main():
    """Compiles for each architecture and says how large the result is."""
    nvrtc = find_nvrtc()
    source = pathlib.Path(__file__).with_name("kernels.cuh").read_bytes()
    for architecture in ARCHITECTURES:
        print(f"{architecture}: {len(compile_cubin(nvrtc, source, architecture))} bytes")


if __name__ == "__main__":
    main()

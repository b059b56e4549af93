"""Compiles GPU kernels with the NVRTC of this environment, as a TensorFlow user's process would.

    pip install nvidia-cuda-nvrtc-cu12
    python custom_ops/tests/gpu_compile.py [--architectures 75,80,86,89,90,100] [--every 7]

Needs an installed tfquant and no GPU; nothing is run.
"""

import argparse
import ctypes
import sys

from tfquant.lowbit import library


def compile_kernel(c, name, architecture):
    """The cubin of a kernel.

    Raises:
        RuntimeError: With the compiler's words.
    """
    size = ctypes.c_int64()
    code = c.tfquant_cuda_compile(name, architecture, None, ctypes.byref(size))
    made = ctypes.create_string_buffer(size.value)
    c.tfquant_cuda_compile(name, architecture, made, ctypes.byref(size))
    if code != 0:
        raise RuntimeError(made.value.decode())
    return made.raw


def kernel_names(c):
    """Every kernel, in the order of kernel_list.h."""
    index = 0
    while (name := c.tfquant_cuda_kernel_name(index)) is not None:
        yield name
        index += 1


def main():
    """Compiles, and says how much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", default="75,80,86,89,90,100")
    parser.add_argument("--every", type=int, default=1, help="compile every nth kernel only")
    parser.add_argument("--kernels", nargs="*", help="names of kernels, instead")
    parser.add_argument("--library", help="a library; by default the one that the ops use")
    args = parser.parse_args()
    c = library.open_c_library(args.library) if args.library else library.c_library()
    if c is None:
        sys.exit(f"The ops are not built. {library.doctor().problem}")
    names = [name.encode() for name in args.kernels or ()] or [*kernel_names(c)][:: args.every]
    for architecture in map(int, args.architectures.split(",")):
        size = sum(len(compile_kernel(c, name, architecture)) for name in names)
        print(f"sm_{architecture}: {len(names)} kernels, {size} bytes", flush=True)
    print("The GPU kernels were compiled and not run: that takes a GPU and gpu_check.py.")


if __name__ == "__main__":
    main()

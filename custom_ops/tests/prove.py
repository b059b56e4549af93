"""Proves what the tests of this machine alone cannot: each claim of custom_ops by one command.

    python custom_ops/tests/prove.py                     # every claim that there are tools for
    python custom_ops/tests/prove.py sanitizers neon     # these two; --list names them all
    python custom_ops/tests/prove.py --quick             # what takes about a minute, for CI

A proof whose tools are missing is left out and listed at the end with what it lacks; asked for by
name it is a failure. Run it with the Python that has TensorFlow.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parents[1]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")


@dataclasses.dataclass(frozen=True)
class Proof:
    """A claim, what shows it, and what that takes.

    Attributes:
        name: What to ask for.
        claim: What holds if it succeeds.
        show: Called with a folder for what it makes and the options; raises if the claim fails.
        needs: What must be there: `(how to get it, whether it is there)`.
        quick: Whether it takes about a minute.
    """

    name: str
    claim: str
    show: Callable
    needs: tuple = ()
    quick: bool = False

    def missing(self):
        """What is not here, in words."""
        return ", ".join(words for words, is_here in self.needs if not is_here())


def program(name, package):
    """A need: a program, and the package of Debian that brings it."""
    return f"{name} (Debian: {package})", lambda: shutil.which(name) is not None


def run(*command, **environment):
    """Runs a command of the repository's root and shows what it says."""
    subprocess.run([str(w) for w in command], cwd=ROOT, check=True, env=os.environ | environment)


def build(name, out, *options, copts=(), **environment):
    """One program of build_tests.py."""
    copts = [f"--copts={option}" for option in copts]
    run(
        sys.executable,
        TESTS / "build_tests.py",
        name,
        "--out",
        out,
        *options,
        *copts,
        **environment,
    )


def sanitizers(folder, args):
    """core_test on every path of this processor."""
    build("core_test", folder / "core_test", copts=SANITIZERS)
    run(folder / "core_test")


def gpu_sanitizers(folder, args):
    """gpu_test, whose GPU is emulated, with the threads of a block in two orders."""
    build("gpu_test", folder / "gpu_test", copts=SANITIZERS)
    run(folder / "gpu_test")
    run(folder / "gpu_test", TFQUANT_EMULATED_ORDER="descending")


def fuzz(folder, args):
    """By libFuzzer where clang++ is, by random bytes elsewhere."""
    out = folder / "fuzz"
    if shutil.which("clang++"):
        copts = ("-fsanitize=fuzzer,address,undefined", *SANITIZERS[1:])
        build("unpack_fuzz", out, copts=copts, CXX="clang++")
        # What it finds outlives this folder.
        kept = f"-artifact_prefix={tempfile.gettempdir()}/tfquant-fuzz-"
        limits = (f"-max_total_time={args.seconds}", "-max_len=600", "-report_slow_units=1000")
        run(out, *limits, kept, "-print_final_stats=1")
    else:
        build("unpack_fuzz", out, copts=("-DTFQUANT_FUZZ_MAIN", *SANITIZERS))
        run(out, args.seconds)


def neon(folder, args):
    """core_test for aarch64, by qemu."""
    out = folder / "core_test"
    more = ("--machine", "aarch64")
    build("core_test", out, *more, copts=("-static",), CXX="aarch64-linux-gnu-g++")
    run("qemu-aarch64", "-cpu", "max", out)


def vnni(folder, args):
    """core_test with AVX512-VNNI, AVX-VNNI and AMX by SIMDe."""
    out = folder / "core_test"
    build("core_test", out, "--simde", copts=("-O1",))
    said = subprocess.run([out], capture_output=True, text=True, check=False)
    print(said.stdout, said.stderr, end="", flush=True)
    wanted = {f"{path}: done" for path in ("avxvnni", "avx512", "amx")}
    if said.returncode or not wanted <= set(said.stdout.splitlines()):
        raise subprocess.CalledProcessError(said.returncode or 1, str(out))


def bazel(folder, args):
    """Builds by Bazel, then multiplies and compiles a GPU kernel with what it built."""
    rules = pathlib.Path("/usr/share/bazel/rules")  # Debian's Bazel wants Debian's rules
    override = [f"--override_repository=rules_cc={ROOT / 'tools' / 'rules_cc_stub'}"]
    override += [
        f"--override_repository=rules_{name}={rules / name}"
        for name in ("java", "proto")
        if (rules / name).is_dir()
    ]
    startup = ("bazel", "--batch", f"--output_user_root={folder / 'bazel'}")
    targets = ("//:libtfquant_ops.so", "//:gpu_test")
    python = {"PYTHON_BIN_PATH": sys.executable}
    # Bazel hides the TensorFlow of the environment from its actions, so its links stay in `folder`.
    links = f"--symlink_prefix={folder}/bazel-"
    run(*startup, "build", "-c", "opt", links, *override, *targets, **python)
    library = folder / "bazel-bin" / "libtfquant_ops.so"
    tests = ("tests/lowbit/test_matmul.py", "-q", "-p", "no:cacheprovider")
    run(sys.executable, "-m", "pytest", *tests, TFQUANT_LIBRARY=str(library))
    made, folder = library.read_bytes(), ROOT / "custom_ops" / "core" / "cuda"
    for part in (folder / "arguments.h", *folder.rglob("*.cuh")):
        if part.name != "kernels.cuh" and part.read_bytes() not in made:
            raise RuntimeError(f"The library that Bazel built does not carry the text of {part}.")


def nvrtc(folder, args):
    """Every 5th kernel for sm_80; gpu_compile.py alone compiles all for every architecture."""
    run(sys.executable, TESTS / "gpu_compile.py", "--architectures", 80, "--every", 5)


def gpu(folder, args):
    """gpu_check.py on the emulated GPU."""
    run(sys.executable, TESTS / "gpu_check.py", "--emulate", "--every", 5)


def has_nvrtc():
    """Whether a process with tfquant finds NVRTC."""
    code = "from tfquant.lowbit import doctor; import sys; sys.exit('NVRTC 1' not in doctor().gpu)"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def on_x86_64():
    """Whether this processor is one."""
    return platform.machine() in ("x86_64", "AMD64")


COMPILER = ("a C++ compiler", lambda: any(map(shutil.which, ("g++", "clang++"))))
X86_64 = ("an x86-64 processor", on_x86_64)
PROOFS = (
    Proof("sanitizers", "AddressSanitizer and UBSan find nothing in core", sanitizers, (COMPILER,)),
    Proof(
        "gpu-sanitizers",
        "AddressSanitizer and UBSan find nothing in the GPU kernels",
        gpu_sanitizers,
        (COMPILER,),
    ),
    Proof("fuzz", "bytes of no meaning never lead out of a buffer", fuzz, (COMPILER,)),
    Proof(
        "neon",
        "the path neon agrees with the reference",
        neon,
        (
            program("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"),
            program("qemu-aarch64", "qemu-user"),
        ),
        quick=True,
    ),
    Proof(
        "vnni",
        "the paths avx512, avxvnni and amx agree with the reference",
        vnni,
        (
            COMPILER,
            X86_64,
            (
                "SIMDe (Debian: libsimde-dev)",
                pathlib.Path("/usr/include/simde/x86/avx512.h").is_file,
            ),
        ),
        quick=True,
    ),
    Proof(
        "bazel",
        "Bazel builds a library that works",
        bazel,
        (program("bazel", "bazel-bootstrap"),),
        quick=True,
    ),
    Proof(
        "nvrtc",
        "NVRTC compiles the GPU kernels",
        nvrtc,
        (COMPILER, ("NVRTC 12 (pip: nvidia-cuda-nvrtc-cu12)", has_nvrtc)),
    ),
    Proof("gpu", "the GPU kernels agree with the reference when emulated", gpu, (COMPILER,)),
)


def main():
    """Shows each claim, or says what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [proof.name for proof in PROOFS]
    parser.add_argument("proofs", nargs="*", metavar="PROOF", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="those that take about a minute")
    parser.add_argument("--list", action="store_true", help="names, claims and what is missing")
    parser.add_argument("--seconds", type=int, default=60, help="of fuzzing")
    args = parser.parse_args()
    if unknown := set(args.proofs) - set(names):
        parser.error(f"PROOF must be among {', '.join(names)}. Received: {', '.join(unknown)}.")
    wanted = [proof for proof in PROOFS if not args.proofs or proof.name in args.proofs]
    wanted = [proof for proof in wanted if proof.quick or not args.quick]
    if args.list:
        for proof in wanted:
            print(f"{proof.name}: {proof.claim}. Needs here: {proof.missing() or 'nothing'}")
        return
    failed, left_out = [], []
    for proof in wanted:
        if missing := proof.missing():
            left_out.append(f"{proof.name}, needs {missing}")
            continue
        print(f"\n== {proof.name}: to be shown: {proof.claim}", flush=True)
        verdict, begin = "holds", time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tfquant-") as folder:
            try:
                proof.show(pathlib.Path(folder), args)
            except (subprocess.CalledProcessError, RuntimeError) as error:
                failed.append(proof.name)
                verdict = "FAILED"
                print(error, flush=True)
        print(f"== {proof.name}: {verdict}, {time.monotonic() - begin:.0f} s", flush=True)
    for line in left_out:
        print(f"left out: {line}")
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    raise SystemExit(bool(failed or (args.proofs and left_out)))


if __name__ == "__main__":
    main()

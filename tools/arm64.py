"""Runs `.tflite` files on LiteRT's ARM64 kernels, on a machine that is none: an emulated processor.

    python tools/arm64.py setup ROOT              once, as root, with apt and pip: about a minute
    python tools/arm64.py verify ROOT MODEL FILE  compares a quantized Keras model with its file
    python tools/arm64.py run ROOT FILE IN OUT    runs a file on the arrays of an .npz

ROOT is a folder that `setup` fills with an ARM64 system of a few hundred megabytes: Debian's
Python, LiteRT's wheel, and a description of a processor, since LiteRT asks the system for one and
dies without an answer. `CPU=cortex-a53` emulates a processor without dot products; the default is
`cortex-a76`. Emulators that know SME emulate it wrongly: `CPU=max,sme=off` has matrix instructions
and not that.

The model of `verify` is one from `tfq.quantize_model(..., device="litert_arm")`, saved by Keras. As
`to_tflite` does, it compares operator by operator and end to end; from Python:

    tfq.to_tflite(q, "model.tflite", run=arm64.Emulator(root).run)

Of the repository's tests, these run on it: every file of the end-to-end suite, and each operator.

    pytest tests/end_to_end tests/devices --arm64 ROOT
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np

EMULATOR = "qemu-aarch64-static"
PACKAGES = ("qemu-user-static", "debootstrap", "dpkg")
WHEELS = ("ai-edge-litert", "numpy", "ml_dtypes", "protobuf", "flatbuffers", "typing-extensions")
WHEELS += ("tqdm", "backports.strenum")
PYTHON = "3.11"
RELEASE = "bookworm"

OLD = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
NEW = f"{OLD} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"

# What runs inside: for each folder that it is told, it reads a file's inputs there and writes its
# outputs, row by row, and says what it made of them.
INSIDE = """
import pathlib, sys, numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

def run(folder, resolver):
    content = (folder / "f.tflite").read_bytes()
    kernels = OpResolverType[resolver]
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    arrays = [a for _, a in sorted(np.load(folder / "in.npz").items())]
    inputs = interpreter.get_input_details()
    for detail, array in zip(inputs, arrays, strict=True):
        shape = (int(detail["shape"][0]) if len(detail["shape"]) else 1, *array.shape[1:])
        if tuple(detail["shape"]) != shape:
            interpreter.resize_tensor_input(detail["index"], shape)
    interpreter.allocate_tensors()
    outputs = interpreter.get_output_details()
    batch = int(interpreter.get_input_details()[0]["shape"][0])
    found = [[] for _ in outputs]
    for start in range(0, len(arrays[0]), batch):
        for detail, array in zip(inputs, arrays, strict=True):
            part = array[start : start + batch]
            part = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * (part.ndim - 1))
            interpreter.set_tensor(detail["index"], part)
        interpreter.invoke()
        for rows, detail in zip(found, outputs, strict=True):
            y = np.atleast_1d(interpreter.get_tensor(detail["index"]))
            y = y.reshape(batch, -1, *y.shape[1:]) if len(y) != batch and not len(y) % batch else y
            rows.append(y.copy())
    found = [np.concatenate(rows)[: len(arrays[0])] for rows in found]
    np.savez(folder / "out.npz", **{f"o{i:06}": y for i, y in enumerate(found)})

for line in sys.stdin:
    resolver, folder = line.rstrip().split(" ", 1)
    try:
        run(pathlib.Path(folder), resolver)
        print("done", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
"""


class Emulator:
    """An emulated ARM64 processor with LiteRT.

    Args:
        root: Folder that `setup` filled.
        cpu: Name that the emulator has for the processor.

    Raises:
        FileNotFoundError: If the emulator is not installed or the folder was not set up.
    """

    def __init__(self, root, cpu: str = "cortex-a76"):
        self.root, self.cpu = pathlib.Path(root).resolve(), cpu
        self.python = self.root / "usr/bin" / f"python{PYTHON}"
        self.inside = None
        if shutil.which(EMULATOR) is None or not self.python.exists():
            raise FileNotFoundError(
                f"{EMULATOR} and a folder made by `python tools/arm64.py setup` are expected. "
                f"Received: {root}."
            )

    def run(self, content: bytes, rows, resolver: str = "AUTO") -> list[np.ndarray]:
        """Runs a file; see `tfq.to_tflite`.

        Args:
            content: Bytes of the file.
            rows: One array for each input.
            resolver: Which of LiteRT's kernels run, as the interpreter calls them.

        Raises:
            RuntimeError: If LiteRT does not run it.
        """
        if self.inside is None or self.inside.poll() is not None:
            self._start()
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "f.tflite").write_bytes(content)
            inputs = {f"i{i:06}": array for i, array in enumerate(rows)}
            np.savez(pathlib.Path(folder, "in.npz"), **inputs)
            self.inside.stdin.write(f"{resolver} {folder}\n")
            self.inside.stdin.flush()
            answer = self.inside.stdout.readline().strip()
            if answer != "done":
                self.errors.seek(0)
                said = answer or self.errors.read().strip()[-500:]
                raise RuntimeError(f"LiteRT on {self.cpu} failed: {said}")
            return [array for _, array in sorted(np.load(pathlib.Path(folder, "out.npz")).items())]

    def close(self):
        """Ends what runs inside. The next file starts it again."""
        if self.inside is not None:
            self.inside.stdin.close()
            self.inside.wait()
            self.inside.stdout.close()
            self.errors.close()
            self.inside = None

    def _start(self):
        """Starts what runs inside, which takes seconds and then takes file after file."""
        self.close()
        self._describe()
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        command = [EMULATOR, "-cpu", self.cpu, "-L", self.root, self.python, "-c", INSIDE]
        self.inside = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(self.root / "site")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def _describe(self):
        """Writes what the system says of its processor."""
        old = self.cpu.startswith(("cortex-a53", "cortex-a72"))
        part, features = ("0xd03", OLD) if old else ("0xd0b", NEW)
        lines = {"processor": "0", "BogoMIPS": "50.00", "Features": features}
        lines |= {"CPU implementer": "0x41", "CPU architecture": "8", "CPU variant": "0x1"}
        lines |= {"CPU part": part, "CPU revision": "0"}
        text = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
        path = self.root / "proc/cpuinfo"
        if not path.exists() or path.read_text() != f"{text}\n":
            new = path.with_name(f"cpuinfo.{os.getpid()}")
            new.write_text(f"{text}\n")
            new.replace(path)


def setup(root) -> None:
    """Fills the folder `root`."""
    root = pathlib.Path(root).resolve()
    missing = [tool for tool in (EMULATOR, "debootstrap", "dpkg") if shutil.which(tool) is None]
    if missing:
        subprocess.run(["apt-get", "install", "-y", "-qq", *PACKAGES], check=True)
    bootstrap = ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase"]
    subprocess.run([*bootstrap, "--include=python3", RELEASE, root, *_mirror()], check=True)
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    tags = [f"manylinux_2_{n}_aarch64" for n in (17, 24, 27, 28, 31)] + ["manylinux2014_aarch64"]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    version = ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    subprocess.run([*download, *version, "-d", root / "wheels", *WHEELS], check=True)
    for wheel in (root / "wheels").glob("*.whl"):
        shutil.unpack_archive(wheel, root / "site", format="zip")
    processor = root / "sys/devices/system/cpu"
    (processor / "cpu0/topology").mkdir(parents=True)
    (processor / "cpu0/cpufreq").mkdir()
    (root / "proc").mkdir(exist_ok=True)
    for name in ("possible", "present"):
        (processor / name).write_text("0\n")
    for name in ("core_siblings_list", "package_cpus_list", "cluster_cpus_list", "core_id"):
        (processor / "cpu0/topology" / name).write_text("0\n")
    for name in ("thread_siblings_list", "core_cpus_list"):
        (processor / "cpu0/topology" / name).write_text("0\n")
    for name, value in (("cpuinfo_max_freq", 2000000), ("cpuinfo_min_freq", 500000)):
        (processor / "cpu0/cpufreq" / name).write_text(f"{value}\n")


def _mirror():
    """Returns the mirror that this system's packages come from, if one is named."""
    lists = [pathlib.Path("/etc/apt/sources.list")]
    lists += sorted(pathlib.Path("/etc/apt/sources.list.d").glob("*.sources"))
    text = "\n".join(path.read_text() for path in lists if path.exists())
    return re.findall(r"^(?:URIs:|deb(?: \[.*?\])?)\s+(\S+)", text, re.MULTILINE)[:1]


def verify(root, model, file):
    """Prints the report of the comparison of a saved model with its file."""
    import keras

    import tfquant as tfq

    emulator = Emulator(root, os.environ.get("CPU", "cortex-a76"))
    quantized = keras.models.load_model(model)
    with tempfile.TemporaryDirectory() as folder:
        again = pathlib.Path(folder, "again.tflite")
        print(tfq.to_tflite(quantized, again, run=emulator.run, progress=False))
        same = again.read_bytes() == pathlib.Path(file).read_bytes()
    print(f"{file} {'is the file' if same else 'IS NOT THE FILE'} that was compared")
    emulator.close()


def main(command, *arguments):
    """Runs a command; see the module."""
    if command == "run":
        root, file, given, found = arguments
        rows = [array for _, array in sorted(np.load(given).items())]
        emulator = Emulator(root, os.environ.get("CPU", "cortex-a76"))
        outputs = emulator.run(pathlib.Path(file).read_bytes(), rows)
        np.savez(found, **{f"o{i:06}": y for i, y in enumerate(outputs)})
        emulator.close()
        return
    {"setup": setup, "verify": verify}[command](*arguments)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("setup", "verify", "run"):
        sys.exit(__doc__)
    main(*sys.argv[1:])

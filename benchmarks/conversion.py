"""Time and memory of quantize + calibrate + convert (+ verify) beside the stock converter's.

    python benchmarks/conversion.py [--rounds 3] [--only ResNet50]

Each run is a process of its own, and the tools take turns. Weights are random: neither time nor
memory depends on them. *memory* is the largest resident set above that of the process with the
float model built and the images at hand, by the bytes of the float weights.

Bars: memory below stock's, and at most 6 times the float weights on ResNet50, whose activations are
few; verified time at most 0.6 of stock's.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import clock
import numpy as np

NETWORKS = {"ResNet50": 64, "EfficientNetB0": 224, "MobileNetV2": 96}
TOOLS = ("stock", "verified", "unverified")
IMAGES = 20
MEMORY_BARS, TIME_BAR = {"ResNet50": 6.0}, 0.6
MIB = 2**20


def once(network: str, tool: str) -> dict:
    """Runs one tool on one network; returns seconds and MiB."""
    import keras
    from device import stock_int8

    import tfquant as tfq

    size = NETWORKS[network]
    rng = np.random.default_rng(0)
    model = getattr(keras.applications, network)(weights=None, input_shape=(size, size, 3))
    images = rng.uniform(-1, 1, (IMAGES, size, size, 3)).astype("float32")
    weights = sum(int(np.prod(v.shape)) * 4 for v in model.weights)
    before, parts = _resident(), {}
    start = time.perf_counter()
    if tool == "stock":
        stock_int8(model, images)
    else:
        q = tfq.quantize_model(model)
        parts["quantize"] = time.perf_counter() - start
        tfq.calibrate(q, images, progress=False)
        parts["calibrate"] = time.perf_counter() - start - parts["quantize"]
        parts["memory_before_converting"] = (_peak() - before) / weights
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "m.tflite")
            tfq.to_tflite(q, path, verify=tool == "verified", progress=False)
    seconds = time.perf_counter() - start
    above = _peak() - before
    return {"seconds": seconds, "memory": above / weights, "weights": weights / MIB, **parts}


def _resident():
    """Returns the resident set, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak():
    """Returns the largest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(network: str, rounds: int) -> dict[str, list[dict]]:
    """Returns what each run of each tool came to."""
    found = {tool: [] for tool in TOOLS}
    for number in range(rounds):
        for tool in TOOLS[number % 3 :] + TOOLS[: number % 3]:
            command = [sys.executable, __file__, "--once", network, tool]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
            found[tool].append(json.loads(run.stdout.splitlines()[-1]))
    return found


def report(network: str, found) -> bool:
    """Prints the figures of one network; returns whether the bars are met."""
    seconds = {tool: [run["seconds"] for run in runs] for tool, runs in found.items()}
    memory = {
        tool: float(np.median([run["memory"] for run in runs])) for tool, runs in found.items()
    }
    pairs = list(zip(seconds["verified"], seconds["stock"], strict=True))
    time_ratio = clock.ratios(pairs)
    bare = clock.ratios(list(zip(seconds["unverified"], seconds["stock"], strict=True)))
    parts = {
        name: float(np.median([run[name] for run in found["verified"]]))
        for name in ("quantize", "calibrate")
    }
    print(
        f"{network}: time by stock {time_ratio}, without the comparison {bare}; seconds: stock "
        f"{time_ratio.stock:.1f}, ours {time_ratio.ours:.1f} (quantize {parts['quantize']:.1f}, "
        f"calibrate {parts['calibrate']:.1f}); memory by {found['stock'][0]['weights']:.0f} MiB of "
        f"weights: stock {memory['stock']:.1f}, verified {memory['verified']:.1f}, unverified "
        f"{memory['unverified']:.1f}"
    )
    small = memory["verified"] <= min(MEMORY_BARS.get(network, memory["stock"]), memory["stock"])
    return small and time_ratio.median <= TIME_BAR


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=NETWORKS, action="append")
    parser.add_argument("--once", nargs=2, metavar=("NETWORK", "TOOL"))
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(once(*arguments.once)))
        return 0
    met = [report(name, measure(name, arguments.rounds)) for name in arguments.only or NETWORKS]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())

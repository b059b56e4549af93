"""Many random calls of every operator, what a device is said to compute against what it does.

    python tests/devices/fuzz.py --results FILE [--cases 20000] [--devices litert,...]
        [--only SOFTMAX,...] [--arm64 ROOT]

Goes through the operators in pieces of 250 cases and appends what each found to FILE, a line of
JSON; pieces that are there are not run again, so that it may be stopped at any time. In the end, or
with `--cases 0` at once, it prints a table of all that FILE holds. A case is the number of a random
generator; that of the first case that is apart is in the table. Devices that do not run here are
left out, `litert_arm` unless ROOT is a folder of `tools/arm64.py setup`.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from operator_cases import CASES

from tfquant.devices import DEVICES
from tfquant.litert import micro

# Those that run `.tflite` files: LiteRT stands for them, or TensorFlow Lite Micro's interpreter.
OF_FILES = {name: d for name, d in DEVICES.items() if d.runtime in ("litert", "tflm")}

PIECE = 250


def rows(devices):
    """Yields each device, operator and width that it has arithmetic for and that has a case."""
    for device in devices:
        for name, (widths, _) in CASES.items():
            row = device.operators.get(name.split()[0])
            for bits in widths if row else ():
                weights = 4 if name.endswith("INT4") else 8
                multiplies = row.weight_bits is not None and row.weight_bits <= weights
                if bits in row.steps or (multiplies and bits in row.num_bits):
                    yield device, name, bits


def differing(device, name, bits, seed, run=None):
    """Returns how many values of a random call differ, their number and the largest difference.

    Args:
        device: `Device`.
        name: Key of `CASES`.
        bits: Width of activations.
        seed: Number of the case.
        run: Function that runs a file elsewhere; see `tfq.to_tflite`.
    """
    file, expected = CASES[name][1](device, np.random.default_rng(seed), bits)
    apart = np.abs(file.run(device.resolver, run).reshape(expected.shape) - expected)
    return int((apart > 0).sum()), apart.size, int(apart.max(initial=0))


def piece(device, name, bits, seeds, run=None):
    """Returns what a piece of the fuzz found, as data."""
    found = np.array([differing(device, name, bits, seed, run) for seed in seeds])
    apart = found[:, 0]
    return {
        "cases": len(seeds),
        "values": int(found[:, 1].sum()),
        "apart": int(apart.sum()),
        "largest": int(found[:, 2].max()),
        "seed": int(seeds[int(np.argmax(apart > 0))]) if apart.any() else None,
    }


def main():
    """Runs what is not in the file of results, and prints what is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", required=True, type=pathlib.Path)
    parser.add_argument("--cases", type=int, default=20_000, help="of each operator")
    parser.add_argument("--devices", default=",".join(OF_FILES))
    parser.add_argument("--only", default=",".join(CASES), help="names of operators")
    parser.add_argument("--arm64", metavar="ROOT", help="folder of tools/arm64.py setup")
    arguments = parser.parse_args()
    runs = {d.name: None for d in OF_FILES.values() if d.runs_here()}
    runs["tflm"] = micro.run
    if arguments.arm64:
        sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))
        import arm64

        runs.setdefault("litert_arm", arm64.Emulator(arguments.arm64).run)
    devices = [DEVICES[name] for name in arguments.devices.split(",") if name in runs]
    table = _read(arguments.results)
    for start in range(0, arguments.cases, PIECE):
        seeds = range(start, min(start + PIECE, arguments.cases))
        for device, name, bits in rows(devices):
            key = device.name, name, bits
            done = table.setdefault(key, {}).get(start, {"cases": 0})
            if name in arguments.only.split(",") and done["cases"] < len(seeds):
                found = piece(device, name, bits, seeds, runs[device.name])
                line = {"device": device.name, "operator": name, "bits": bits, "start": start}
                with arguments.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line | found) + "\n")
                table[key][start] = found
    _print(table)


def _read(path):
    """Returns a dict from device, operator and width to a dict from the first case to a piece."""
    table = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        found = json.loads(line)
        key = tuple(found.pop(word) for word in ("device", "operator", "bits"))
        table.setdefault(key, {})[found.pop("start")] = found
    return table


def _print(table):
    columns = "device", "operator", "bits", "arithmetic", "cases", "values", "apart", "largest"
    print(f"| {' | '.join(columns)} | first case |\n| {'--- | ' * len(columns)}--- |")
    for (device, name, bits), pieces in table.items():
        arithmetic = DEVICES[device].arithmetic(name.split()[0], bits)
        sums = [sum(p[word] for p in pieces.values()) for word in ("cases", "values", "apart")]
        largest = max((p["largest"] for p in pieces.values()), default=0)
        first = min((p["seed"] for p in pieces.values() if p["seed"] is not None), default="")
        counts = " | ".join(f"{count:,}" for count in sums)
        print(f"| {device} | {name} | {bits} | {arithmetic} | {counts} | {largest} | {first} |")


if __name__ == "__main__":
    main()

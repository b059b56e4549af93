"""What the commands of `tfquant` do; `tfquant_cli.py` reads their arguments."""

import dataclasses
import importlib
import json
import os
import runpy
import sys
import zipfile

import keras
import numpy as np
import rich
from rich.console import Console

import tfquant as tfq
from tfquant import demo as digits
from tfquant import lowbit
from tfquant.data.batches import batches
from tfquant.data.files import replacing
from tfquant.nodes.extra import check as check_extra
from tfquant.registry import schemes
from tfquant.report.printable import plain
from tfquant.report.record import from_json, versions

# What `--bias_correction` is in Python, where that is no name; without the flag the effort's.
BIAS_CORRECTIONS = {"none": False}

# Arrays of these names are targets, unless an input has the name.
TARGETS = ("y", "label", "labels", "target", "targets")


def run(command: str, arguments: list[str], flags: dict) -> bool:
    """Runs one command.

    Args:
        command: Its name.
        arguments: The files it was given.
        flags: Values of its flags.

    Returns:
        Whether all was done: `False` of a file that could not be compared with its model, or is
        farther from it than was asked for.

    Raises:
        ImportError, OSError, RuntimeError, TypeError, ValueError: If the user made a mistake.
    """
    rich.reconfigure(stderr=True)  # Progress bars; what the user asked for goes to stdout.
    import_modules(flags.get("imports", ()))
    commands = {
        "quantize": quantize,
        "inspect": inspect,
        "compare": compare,
        "benchmark": benchmark,
        "check": check,
        "sensitivity": sensitivity,
        "search": search,
        "auto": auto,
        "export-c": export_c,
        "report": report,
        "demo": demo,
        "doctor": doctor,
    }
    return commands[command](*arguments, flags) is not False


def import_modules(names) -> None:
    """Imports modules, or `.py` files, that register layers of the user's.

    Raises:
        ValueError: If one cannot be imported, with what it raised.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                runpy.run_path(name)
            else:
                sys.path.insert(0, os.getcwd())
                importlib.import_module(name)
        except Exception as error:  # Whatever somebody's module raises.
            raise ValueError(
                f"--import must name a module or a .py file that can be imported. Received: "
                f"{name}, which raises {type(error).__name__}: {error}"
            ) from error


def quantize(model_path, flags) -> bool:
    """Quantizes a model, writes the file and shows the report.

    Returns:
        `False` if the file could not be compared with the model.
    """
    recipe = read_recipe(flags)
    if not flags["calibration"] and (recipe.static or flags["effort"] == "best"):
        named = "the recipe" if flags["recipe"] else f"scheme {recipe.scheme.name}"
        why = f"{named} quantizes activations" if recipe.static else "--effort best runs on data"
        raise ValueError(f"{why}, so --calibration DATA.npz is needed. Received: no --calibration")
    other = None if flags["format"] == "tflite" else flags["format"]
    if other and (flags["input_type"] or flags["output_type"]):
        raise ValueError(
            f"--input_type and --output_type are for --format tflite. Received: --format {other}"
        )
    if other == "onnx":
        check_extra()
    model = read_model(model_path, flags["allow_unsafe"])
    data = None
    if flags["calibration"]:
        data = read_data(flags["calibration"], model.inputs)
    names = (
        *("skip", "norms", "effort", "observer", "batch_size", "steps", "seed"),
        *("device", "unknown_layers", "weight_quantizer", "activation_quantizer"),
    )
    settings = {name: flags[name] for name in names}
    settings["bias_correction"] = BIAS_CORRECTIONS.get(
        flags["bias_correction"], flags["bias_correction"]
    )
    if other == "onnx" and settings["device"] is None:
        settings["device"] = "onnxruntime"
    try:
        quantized = tfq.quantize(model, data, recipe, progress=_watched(), **settings)
    except ValueError as error:
        named = "".join(f" (--{x}={flags[x]})" for x in ("recipe", "calibration") if flags[x])
        raise ValueError(f"'{model_path}'{named}: {error}") from error
    if recipe.static:
        data = None  # What calibration kept is enough for the comparison.
    if other == "packed":
        report = tfq.to_packed(quantized, flags["output"]).packing_report
    else:
        settings = {"verify": flags["verify"], "progress": _watched()}
        if data is not None:
            settings["samples"] = _first_rows(data, model.inputs, flags["batch_size"])
        if other is None:
            settings |= {name: flags[name] for name in ("input_type", "output_type", "strict")}
            settings["batch_size"] = flags["file_batch"] or None
        write = tfq.to_tflite if other is None else tfq.to_onnx
        report = write(quantized, flags["output"], **settings)
    show(report, flags)
    written = flags["output"]
    if flags["report"]:
        with replacing(flags["report"]) as temporary, open(temporary, "w") as file:
            file.write(report.to_json() + "\n")
        written += f" and {flags['report']}"
    _say(f"Wrote {written}", flags)
    return not getattr(report, "not_compared", "")


def read_recipe(flags) -> tfq.Recipe:
    """Returns the recipe in the file that `--recipe` names, or that of `--scheme`.

    Raises:
        ValueError: If both are given, or the file holds no recipe.
    """
    if not flags["recipe"]:
        scheme = flags["scheme"] or "w8a8"
        scheme = tfq.Scheme(**scheme) if isinstance(scheme, dict) else schemes.get(scheme)
        changes = {"group_size": flags["group_size"], "edge_weight_bits": flags["edge_weight_bits"]}
        changes = {name: int(value) for name, value in changes.items() if value is not None}
        return tfq.Recipe(dataclasses.replace(scheme, **changes))
    for name in ("scheme", "group_size", "edge_weight_bits"):
        if flags[name] is not None:
            raise ValueError(
                f"a recipe says what each layer has, so --{name} cannot stand beside --recipe. "
                f"Received: --{name}={flags[name]}"
            )
    return tfq.Recipe.load(flags["recipe"])


def inspect(path, flags) -> None:
    """Shows what is in a `.keras` or `.tflite` file."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start[4:8] == b"TFL3":
        show(tfq.inspect(path), flags)
    elif _may_be_keras(path):
        show(tfq.summarize(read_model(path, flags["allow_unsafe"])), flags)
        _say(f"{path}: {os.path.getsize(path):,} bytes", flags)
    else:
        raise ValueError(
            f"a .keras or .tflite file is expected. Received: '{path}', which is none, or cut short"
        )


def compare(model_path, file_path, flags) -> bool:
    """Runs a model and a file on the same data and shows how far they are apart.

    Returns:
        `False` if they are farther apart than the flags allow.
    """
    model = read_model(model_path, flags["allow_unsafe"])
    data = read_data(flags["data"], model.inputs)
    rows = _first_rows(data, model.inputs, flags["batch_size"], None)
    settings = {"batch_size": flags["batch_size"], "progress": _watched()}
    labels = read_labels(flags["data"], model.inputs)
    parity = tfq.compare(model, file_path, rows, labels=labels, **settings)
    failed = _missed(parity, flags)
    if flags["json"]:
        print(json.dumps(plain({**dataclasses.asdict(parity), "failed": failed}), indent=2))
    else:
        _show_parity(parity, model_path, file_path, flags["data"])
    for words in failed:
        print(f"tfquant: {file_path} against {model_path}: {words}", file=sys.stderr)
    return not failed


def _show_parity(parity, model_path, file_path, data_path):
    unit = "steps" if parity.in_steps else "of the largest output"
    print(f"{model_path} against {file_path}, {parity.rows:,} rows of {data_path}")
    print(
        f"differing values    {parity.differing:,} of {parity.values:,} "
        f"({parity.share_differing:.4%})"
    )
    print(f"largest difference  {parity.largest:.6g} {unit}")
    if parity.equal_predictions is not None:
        print(f"equal predictions   {parity.equal_predictions:.2%}")
    if parity.accuracies is not None:
        ours, theirs = parity.accuracies
        print(f"accuracy            {ours:.4f} {model_path}, {theirs:.4f} {file_path}")


def _missed(parity, flags):
    """Returns what was asked for and not reached, in words."""
    missed, most, least = [], flags["max_differing"], flags["min_agreement"]
    if most is not None and parity.differing > most:
        missed.append(f"{parity.differing:,} values differ, more than --max_differing={most}")
    if least is not None:
        equal = parity.equal_predictions
        if equal is None:
            raise ValueError(
                f"--min_agreement needs outputs that are vectors of scores. Received: {least:g}"
            )
        if equal < least:
            missed.append(f"{equal:.4%} equal predictions, less than --min_agreement={least:g}")
    return missed


def check(path, flags) -> bool:
    """Shows what a device takes of a file.

    Returns:
        `False` if it does not take all of it.
    """
    report = tfq.check(path, flags["device"])
    show(report, flags)
    return report.fits


def benchmark(*paths_and_flags) -> None:
    """Shows how long files take, in turn, and what memory."""
    *paths, flags = paths_and_flags
    found = tfq.benchmark(paths, threads=flags["threads"], runs=flags["runs"], progress=_watched())
    show(found, flags)


def sensitivity(path, flags) -> None:
    """Shows which layers of a model lose most by quantization."""
    model = read_model(path, flags["allow_unsafe"])
    names = ("mode", "gradients", "advice")
    settings = {name: flags[name] for name in names} | read_measuring(model, flags)
    found = tfq.sensitivity(model, progress=_watched(), **settings)
    show(found, flags)
    if flags["plot"]:
        found.plot(flags["plot"])
        _say(f"Wrote {flags['plot']}", flags)


def search(path, flags) -> bool:
    """Finds a mixture of schemes, and writes its file and recipe.

    Returns:
        `False` if a drop was asked for that the validation rows do not promise.
    """
    budget = tfq.Budget(**{name: flags[name] for name in ("bytes", "bops", "max_drop")})
    model = read_model(path, flags["allow_unsafe"])
    settings = read_measuring(model, flags)
    settings["evaluations"] = flags["evaluations"]
    found = tfq.search(model, budget=budget, progress=_watched(), **settings)
    show(found, flags)
    write_found(found, flags)
    return found.promise is None or found.promise.kept


def auto(path, flags) -> bool:
    """Tries schemes and efforts until the target holds, and writes the file and the recipe.

    Returns:
        `False` if nothing holds: then the best is written.
    """
    target, bounds = flags["target"], {name: flags[name] for name in ("max_drop", "bytes")}
    if target is not None and flags["max_drop"] is not None:
        raise ValueError(
            "one of --target and --max_drop is expected. Received: "
            f"--target={target:g} and --max_drop={flags['max_drop']:g}"
        )
    model = read_model(path, flags["allow_unsafe"])
    rows, labels = read_validation(model, flags)
    if target is None and any(bound is not None for bound in bounds.values()):
        target = tfq.Budget(**bounds)
    elif target is not None and bounds["bytes"] is not None:
        raise ValueError("--bytes goes with --max_drop. Received: --bytes and --target")
    found = tfq.autoquantize(
        model,
        read_data(flags["calibration"], model.inputs),
        (rows, labels),
        target=target,
        progress=_watched(),
        **{name: flags[name] for name in ("device", "batch_size", "seed")},
    )
    show(found, flags)
    write_found(found, flags)
    return found.holds


def write_found(found, flags) -> None:
    """Writes the file and the recipe of a model that was found, where that was asked for."""
    if flags["output"]:
        tfq.to_tflite(found.model, flags["output"], progress=_watched())
        _say(f"Wrote {flags['output']}", flags)
    if flags["save_recipe"]:
        found.recipe.save(flags["save_recipe"])
        _say(f"Wrote {flags['save_recipe']}", flags)


def read_measuring(model, flags) -> dict:
    """Returns what `tfq.sensitivity` and its like take, from the flags that they share.

    Raises:
        ValueError: If the validation file has no labels.
    """
    names = ("choices", "effort", "device", "cache", "batch_size", "seed")
    settings = {name: flags[name] for name in names}
    settings["choices"] = [
        tfq.Scheme(**choice) if isinstance(choice, dict) else choice for choice in flags["choices"]
    ]
    settings["data"] = read_data(flags["calibration"], model.inputs)
    if flags["validation"]:
        settings["validation"] = read_validation(model, flags)
    return settings


def read_validation(model, flags) -> tuple:
    """Returns inputs and labels of the file that `--validation` names.

    Raises:
        ValueError: If it has no labels.
    """
    labels = read_labels(flags["validation"], model.inputs)
    if labels is None:
        raise ValueError(
            f"--validation must hold labels, under one of {', '.join(TARGETS)}. Received: "
            f"{flags['validation']}, which has none"
        )
    return read_data(flags["validation"], model.inputs), labels


def export_c(path, folder, flags) -> None:
    """Writes a `.tflite` file as source for microcontrollers."""
    show(tfq.export_c(path, folder, flags["name"]), flags)


def report(path, flags) -> None:
    """Shows a report that `--report` wrote."""
    with open(path, "rb") as file:
        content = file.read()
    show(from_json(content, path), flags)


def demo(flags) -> None:
    """Trains, quantizes and converts a small network."""
    show(digits.run(flags["output"], epochs=flags["epochs"], progress=_watched()), flags)
    _say(f"Wrote {flags['output']}", flags)


def doctor(flags) -> None:
    """Says what is installed, how the low-bit operations are doing, and how to mend them."""
    found, installed = lowbit.doctor(), versions()
    if flags["json"]:
        print(json.dumps({"versions": installed, **dataclasses.asdict(found)}, indent=2))
        return
    if found.built:
        print(f"low-bit operations: compiled, running on {found.path}")
    else:
        print(f"low-bit operations: not compiled, running on {found.path}")
    if found.problem:
        print(f"problem: {found.problem}")
        print(f"to mend it: {found.remedy}")
    print(f"paths of this processor: {', '.join(found.supported_paths) or '-'}")
    print(f"GPU: {found.gpu or '-'}")
    print(f"library: {found.library or '-'}")
    print(f"compiler: {found.compiler or '-'}")
    print(f"versions: {', '.join(f'{name} {version}' for name, version in installed.items())}")
    print(f"tfquant is in {os.path.dirname(tfq.__file__)}")


def _say(words, flags):
    """Prints a line, unless JSON is all that is wanted."""
    if not flags["json"]:
        print(words)


def show(printable, flags) -> None:
    """Prints a report, as wide as the terminal or as the report; or as JSON."""
    if flags["json"]:
        print(printable.to_json())
        return
    console = Console()
    if console.is_terminal and console.width >= 100:
        console.print(printable)
    else:
        print(printable)


def read_model(path, allow_unsafe: bool = False) -> keras.Model:
    """Reads a Keras file.

    Args:
        path: The file.
        allow_unsafe: Whether code in the file may run, that of Lambda layers.

    Raises:
        ValueError: If it holds no Keras model that can be read here.
    """
    if not _may_be_keras(path):
        raise ValueError(
            f"a Keras model is expected (.keras). Received: '{path}', which is none, or cut short"
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=not allow_unsafe)
    except Exception as error:  # A file may hold anything, and make Keras raise anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"a Keras model is expected (.keras). Received: '{path}', which Keras cannot read: "
            f"{reason[:300]}{_hint(reason)}"
        ) from error
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"a Keras model is expected (.keras). Received: '{path}', which holds a "
            f"{type(model).__name__}"
        )
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"a functional or sequential model that is built is expected. Received: '{path}' with "
            f"'{model.name}', a {type(model).__name__} whose inputs are not known"
        )
    return model


def _hint(reason):
    """Says which flag helps, where one does."""
    if "safe_mode" in reason or "nsafe" in reason:
        return " (--allow_unsafe runs it, if you trust the file)"
    if "Could not locate" in reason:
        return " (--import MODULE registers layers of your own)"
    return ""


def read_labels(path, inputs) -> np.ndarray | None:
    """Returns the labels in a `.npz` file, `None` if it has none.

    They have a name of `TARGETS`, which no input has.
    """
    arrays, taken = _arrays(path), {x.name for x in inputs}
    found = [name for name in arrays if name.lower() in TARGETS and name not in taken]
    return arrays[found[0]] if found else None


def read_data(path, inputs):
    """Reads the arrays of a model's inputs from a `.npz` (or `.npy`) file.

    Args:
        path: The file. It holds one array for each input under the input's name; a model of one
            input takes one array of any name. Arrays for targets are left out.
        inputs: `model.inputs`.

    Returns:
        Array, or dict from input name to array.

    Raises:
        ValueError: If the file is none, or its arrays are not those of the inputs.
    """
    arrays = _arrays(path)
    names = [x.name for x in inputs]
    if all(name in arrays for name in names):
        return {name: arrays[name] for name in names}
    others = [name for name in arrays if name.lower() not in TARGETS]
    if len(names) == len(others) == 1:
        return arrays[others[0]]
    expected = "one array" if len(names) == 1 else f"arrays named {', '.join(names)}"
    raise ValueError(
        f"'{path}' must hold {expected} for the model's inputs. "
        f"Received: {', '.join(arrays) or 'no array'}"
    )


def _arrays(path):
    """Returns the arrays of a `.npz` file by name, that of a `.npy` file under no name."""
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            return {"": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # A file may hold anything.
        raise ValueError(
            f"numbers written by numpy.savez are expected. Received: '{path}', which numpy cannot "
            "read as such"
        ) from error


def _may_be_keras(path):
    return zipfile.is_zipfile(path) or path.endswith((".h5", ".hdf5"))


def _watched():
    """Whether somebody sees a progress bar."""
    return sys.stderr.isatty()


def _first_rows(data, inputs, batch_size, limit=256):
    """Returns checked arrays in the order of `inputs`, with at most about `limit` rows."""
    steps = None if limit is None else max(1, limit // batch_size)
    parts = zip(*batches(data, inputs, batch_size, steps), strict=True)
    return [np.concatenate(arrays) for arrays in parts]

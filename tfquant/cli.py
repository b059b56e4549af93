"""What the commands of `tfquant` do; `tfquant_cli.py` reads their arguments."""

import dataclasses
import os
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

# Arrays of these names are targets, unless an input has the name.
TARGETS = ("y", "label", "labels", "target", "targets")


def run(command: str, arguments: list[str], flags: dict) -> bool:
    """Runs one command.

    Args:
        command: Its name.
        arguments: The files it was given.
        flags: Values of its flags.

    Returns:
        Whether all was done: `False` of a file that could not be compared with its model.

    Raises:
        ImportError, OSError, RuntimeError, TypeError, ValueError: If the user made a mistake.
    """
    rich.reconfigure(stderr=True)  # Progress bars; what the user asked for goes to stdout.
    commands = {
        "quantize": quantize,
        "inspect": inspect,
        "compare": compare,
        "demo": demo,
        "doctor": doctor,
    }
    return commands[command](*arguments, flags) is not False


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
    model = read_model(model_path)
    data = None
    if flags["calibration"]:
        data = read_data(flags["calibration"], model.inputs)
    names = "skip", "norms", "effort", "observer", "batch_size"
    settings = {name: flags[name] for name in names}
    settings["device"] = "onnxruntime" if other == "onnx" else None
    quantized = tfq.quantize(model, data, recipe, progress=_watched(), **settings)
    if recipe.static:
        data = None  # What calibration kept is enough for the comparison.
    if other == "packed":
        report = tfq.to_packed(quantized, flags["output"]).packing_report
    else:
        settings = {"verify": flags["verify"], "progress": _watched()}
        if data is not None:
            settings["samples"] = _first_rows(data, model.inputs, flags["batch_size"])
        if other is None:
            settings |= {name: flags[name] for name in ("input_type", "output_type")}
        write = tfq.to_tflite if other is None else tfq.to_onnx
        report = write(quantized, flags["output"], **settings)
    show(report)
    written = flags["output"]
    if flags["report"]:
        with replacing(flags["report"]) as temporary, open(temporary, "w") as file:
            file.write(report.to_json() + "\n")
        written += f" and {flags['report']}"
    print(f"Wrote {written}")
    return not getattr(report, "not_compared", "")


def read_recipe(flags) -> tfq.Recipe:
    """Returns the recipe in the file that `--recipe` names, or that of `--scheme`.

    Raises:
        ValueError: If both are given, or the file holds no recipe.
    """
    if not flags["recipe"]:
        scheme = schemes.get(flags["scheme"] or "w8a8")
        if flags["group_size"] is not None:
            scheme = dataclasses.replace(scheme, group_size=int(flags["group_size"]))
        return tfq.Recipe(scheme)
    for name in ("scheme", "group_size"):
        if flags[name] is not None:
            raise ValueError(
                f"a recipe says what each layer has, so --{name} cannot stand beside --recipe. "
                f"Received: --{name}={flags[name]}"
            )
    return tfq.Recipe.load(flags["recipe"])


def inspect(path, flags) -> None:
    """Shows what is in a `.keras` or `.tflite` file."""
    del flags
    with open(path, "rb") as file:
        start = file.read(8)
    if start[4:8] == b"TFL3":
        show(tfq.inspect(path))
    elif _may_be_keras(path):
        show(tfq.summarize(read_model(path)))
        print(f"{path}: {os.path.getsize(path):,} bytes")
    else:
        raise ValueError(
            f"a .keras or .tflite file is expected. Received: '{path}', which is none, or cut short"
        )


def compare(model_path, file_path, flags) -> None:
    """Runs a model and a file on the same data and shows how far they are apart."""
    model = read_model(model_path)
    data = read_data(flags["data"], model.inputs)
    rows = _first_rows(data, model.inputs, flags["batch_size"], None)
    settings = {"batch_size": flags["batch_size"], "progress": _watched()}
    parity = tfq.compare(model, file_path, rows, **settings)
    unit = "steps" if parity.in_steps else "of the largest output"
    print(f"{model_path} against {file_path}, {parity.rows:,} rows of {flags['data']}")
    print(
        f"differing values    {parity.differing:,} of {parity.values:,} "
        f"({parity.share_differing:.4%})"
    )
    print(f"largest difference  {parity.largest:.6g} {unit}")
    if parity.equal_predictions is not None:
        print(f"equal predictions   {parity.equal_predictions:.2%}")


def demo(flags) -> None:
    """Trains, quantizes and converts a small network."""
    show(digits.run(flags["output"], epochs=flags["epochs"], progress=_watched()))
    print(f"Wrote {flags['output']}")


def doctor(flags) -> None:
    """Says whether the compiled low-bit operations are there, and how to get them if not."""
    del flags
    found = lowbit.doctor()
    if found.built:
        print(f"low-bit operations: compiled, running on {found.path}")
    else:
        print(f"low-bit operations: not compiled, running on {found.path}: {found.problem}")
        print(f"to mend it: {found.remedy}")
    print(f"paths of this processor: {', '.join(found.supported_paths) or '-'}")
    print(f"GPU: {found.gpu or '-'}")
    print(f"library: {found.library or '-'}")
    print(f"TensorFlow: {found.tensorflow or '-'}; compiler: {found.compiler or '-'}")


def show(printable) -> None:
    """Prints a report, as wide as the terminal or as the report."""
    console = Console()
    if console.is_terminal and console.width >= 100:
        console.print(printable)
    else:
        print(printable)


def read_model(path) -> keras.Model:
    """Reads a Keras file.

    Raises:
        ValueError: If it holds no Keras model that can be read here.
    """
    if not _may_be_keras(path):
        raise ValueError(
            f"a Keras model is expected (.keras). Received: '{path}', which is none, or cut short"
        )
    try:
        model = keras.saving.load_model(path, compile=False)
    except (AttributeError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"a Keras model is expected (.keras). Received: '{path}', which Keras cannot read: "
            f"{reason[:200]}"
        ) from error
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"a functional or sequential model that is built is expected. Received: '{path}' with "
            f"'{model.name}', a {type(model).__name__} whose inputs are not known"
        )
    return model


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
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {"": content} if isinstance(content, np.ndarray) else dict(content)
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"numbers written by numpy.savez are expected. Received: '{path}', which numpy cannot "
            "read as such"
        ) from error
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

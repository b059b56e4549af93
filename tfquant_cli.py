"""The `tfquant` command: reads the arguments, keeps TensorFlow quiet, sets the exit code.

It stands beside the package and not in it: importing anything of `tfquant` imports TensorFlow,
which takes seconds and writes to the terminal, and `tfquant --help` needs neither. What the
commands do is in `tfquant/cli.py`.

    exit code 0    done
              1    internal error, with its traceback
              2    a mistake of the user, told in one line
              3    the file was written, and could not be compared with its model; or a comparison
                   did not reach what was asked for, or a device does not take all of a file
              130  interrupted
"""

import argparse
import contextlib
import dataclasses
import difflib
import logging
import os
import pathlib
import re
import runpy
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable

from absl.flags import argparse_flags

OK, INTERNAL_ERROR, USER_ERROR, NOT_COMPARED, INTERRUPTED = 0, 1, 2, 3, 130

# What may be asked for; tests compare each with the package, which is not imported here.
SCHEMES = (
    *("w8a8", "w8a16", "w4a8", "w2a8", "w8", "w4", "w4_g32"),
    *("w8a8_dynamic", "w4a8_g32", "f16"),
)
OBSERVERS = ("auto", "min_max", "moving_average", "percentile", "mean_squared_error", "entropy")
WEIGHT_QUANTIZERS = ("abs_max", "dorefa", "learned_step", "learned_threshold")
ACTIVATION_QUANTIZERS = (
    *("static", "moving_average", "learned_step", "learned_clip", "learned_threshold"),
)
DEVICES = ("litert", "litert_arm", "litert_reference", "onnxruntime", "tflm")
TARGETS = ("litert", "xnnpack", "litert-gpu", "tflm", "ethos-u", "edgetpu", "onnxruntime")
NORMS = ("auto", "integer", "float")
EFFORTS = ("fast", "default", "best")
GROUP_SIZES = ("0", "32", "64", "128")
UNKNOWN_LAYERS = ("weights", "float")
BIAS_CORRECTIONS = ("auto", "mean", "mean_deviation", "none")
TYPES = ("int8", "uint8", "int16", "float32")
FORMATS = ("tflite", "onnx", "packed")
MODES = ("one", "all_but_one")

# Argument of a command that is a folder to make.
FOLDER = "DIR"

# Endings of what is written; no ending fits, too.
ENDINGS = {"tflite": (".tflite",), "onnx": (".onnx",), "packed": (".keras",), "report": (".json",)}
ENDINGS |= {"plot": (".svg",), "cache": (".jsonl",)}
ENDINGS |= {"save_recipe": (".json", ".yaml", ".yml")}


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: What the user types.
        summary: One line for the list of commands.
        arguments: Names of the files it takes, in order. They must exist, but for `FOLDER`, which
            it makes.
        flags: Function that adds its flags to a parser.
        example: How it is called.
        reads: Flags that name files to read.
        writes: Flags that name files to write.
    """

    name: str
    summary: str
    arguments: tuple[str, ...]
    flags: Callable[[argparse.ArgumentParser], None]
    example: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


class Mistake(Exception):
    """A mistake of the user; the message says what was expected and what came."""


class Parser(argparse_flags.ArgumentParser):
    """A parser that raises `Mistake` instead of ending the process."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(inherited_absl_flags=None, allow_abbrev=False, **kwargs)
        self.names, self.needed = {"--help"}, []

    def add_argument(self, *names, **settings):
        """Adds an argument, and remembers what it is called."""
        if hasattr(self, "names"):
            self.names |= {name for name in names if name.startswith("--")}
            if settings.get("required"):
                self.needed.append(f"{names[0]} {settings['metavar']}")
        return super().add_argument(*names, **settings)

    def error(self, message):
        """Raises; argparse would print and exit."""
        raise Mistake(f"{message}. See: {self.prog} --help")


def run() -> None:
    """Runs the command of `sys.argv` and exits with its code."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the name of the program.

    Returns:
        The exit code.
    """
    try:
        if argv[:1] == ["help"]:
            argv = [*argv[1:2], "--help"]
        if not argv or argv[0] in ("-h", "--help"):
            print(_overview())
            return OK if argv else USER_ERROR
        if argv[0] == "--version":
            print(f"tfquant {_version()}")
            return OK
        command = _command(argv[0])
        parser = _parser(command)
        if {"-h", "--help", "--helpfull"} & set(argv[1:]):
            print(parser.format_help().rstrip())
            return OK
        values = _parse(command, parser, argv[1:])
        return _run(command, values)
    except Mistake as mistake:
        return _fail(mistake)
    except KeyboardInterrupt:
        print("tfquant: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def one_of(names) -> Callable[[str], str]:
    """Returns a type of argument: one of `names`, in any case."""

    def convert(text):
        if text.lower() not in names:
            raise argparse.ArgumentTypeError(_unknown(text.lower(), names))
        return text.lower()

    return convert


def scheme(text: str) -> str | dict:
    """A type of argument: a name of `SCHEMES` in any case, or fields of a `Scheme` of widths."""
    name = text.lower()
    if name in SCHEMES:
        return name
    found = re.fullmatch(r"w(\d+)(?:a(\d+))?(?:_g(\d+))?(_dynamic)?", name)
    if found is None:
        words = _unknown(name, SCHEMES)
        raise argparse.ArgumentTypeError(f"{words}. Or widths, such as w5a8, w3, w6a6_g64")
    weights, activations, group, dynamic = found.groups()
    return {
        "name": name,
        "weight_bits": int(weights),
        "activation_bits": activations and int(activations),
        "group_size": int(group or 0),
        "dynamic": dynamic is not None,
    }


def positive(text: str) -> int:
    """A type of argument: a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on. Received: {text!r}")
    return int(text)


def positives(text: str) -> list[int]:
    """A type of argument: several such, separated by commas."""
    return [positive(part) for part in text.split(",")]


def amount(text: str) -> float:
    """A type of argument: a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number. Received: {text!r}")
    return number


def share(text: str) -> float:
    """A type of argument: a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1. Received: {text!r}")
    return number


def names(text: str) -> list[str]:
    """A type of argument: names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def schemes(text: str) -> list:
    """A type of argument: schemes with commas between them, `float` among them."""
    return ["float" if name.lower() == "float" else scheme(name) for name in names(text)]


def _unknown(text, known):
    near = difflib.get_close_matches(text, known, 1)
    guess = f", did you mean {near[0]}?" if near else ""
    return f"must be one of {', '.join(known)}. Received: {text}{guess}"


def _choice(parser, name, known, words, default=None):
    listed = f"{words} One of {', '.join(known)}."
    metavar = name.upper()
    parser.add_argument(
        f"--{name}", type=one_of(known), default=default, help=listed, metavar=metavar
    )


def _text(parser, name, words, **settings):
    parser.add_argument(f"--{name}", help=words, metavar=name.upper(), **settings)


def _yes_no(parser, name, words):
    """Adds a flag that is on, and turned off by `--noNAME` or `--no_NAME`."""
    parser.add_argument(f"--{name}", action="store_true", default=True, help=argparse.SUPPRESS)
    parser.add_argument(
        f"--no{name}", f"--no_{name}", dest=name, action="store_false", default=True, help=words
    )


def _device(parser):
    _choice(
        parser, "device", DEVICES, "What is simulated; the default is LiteRT on this processor."
    )


def _running(parser):
    """Adds flags that say how rows are computed."""
    _text(parser, "batch_size", "Rows to compute at once (32).", type=positive, default=32)
    _text(parser, "seed", "Of what is drawn by chance (0).", type=int, default=0)


def _validation(parser, **settings):
    _text(
        parser,
        "validation",
        "A .npz file of inputs and labels (y, label, labels, target, targets) of other rows.",
        **settings,
    )


def _found(parser):
    """Adds flags that say where what was found goes."""
    _text(parser, "output", "The .tflite file to write; none if it is left out.")
    _text(parser, "save_recipe", "A .json or .yaml file to write the recipe to.")


def _quantize_flags(parser):
    _text(
        parser,
        "output",
        "The file to write; packed: a .keras file, or a SavedModel's new folder.",
        required=True,
    )
    _choice(
        parser,
        "format",
        FORMATS,
        "A LiteRT file, an ONNX file, or a Keras model on packed weights.",
        "tflite",
    )
    _text(parser, "report", "A .json file to write the report to; tfquant report shows it again.")
    _text(parser, "calibration", "A .npz file of inputs. Schemes with static activations need it.")
    _text(
        parser,
        "scheme",
        "How weights and activations are stored (w8a8 if there is no --recipe): "
        f"{', '.join(SCHEMES)}; or other widths, such as w5a8 or w3a8_g32_dynamic.",
        type=scheme,
    )
    _text(parser, "recipe", "A .json or .yaml file: which scheme each layer has, see tfq.Recipe.")
    _choice(
        parser,
        "effort",
        EFFORTS,
        "fast: data are seen once; default: ranges and biases that serve the outputs; best: and "
        "integers chosen on all of the data, in minutes (512 to 1024 rows serve).",
        "default",
    )
    _choice(
        parser,
        "group_size",
        GROUP_SIZES,
        "Inputs of a channel whose weights share a scale, 0 for all; the default is the scheme's.",
    )
    _text(
        parser,
        "edge_weight_bits",
        "Width of the weights of the first and the last layer.",
        type=positive,
    )
    _choice(
        parser, "weight_quantizer", WEIGHT_QUANTIZERS, "Grids of weights, as training learns them."
    )
    _choice(
        parser, "activation_quantizer", ACTIVATION_QUANTIZERS, "Grids of activations, likewise."
    )
    _choice(
        parser,
        "observer",
        OBSERVERS,
        "What chooses the ranges of activations; the default is the effort's.",
    )
    _choice(
        parser,
        "bias_correction",
        BIAS_CORRECTIONS,
        "How biases are corrected on the data; the default is the effort's.",
    )
    _choice(
        parser,
        "norms",
        NORMS,
        "Form of layer, root mean square and group norms; the default is the scheme's, auto.",
    )
    _device(parser)
    _choice(
        parser,
        "unknown_layers",
        UNKNOWN_LAYERS,
        "What of a layer of unknown kind is quantized.",
        "weights",
    )
    _text(
        parser,
        "skip",
        "Names of layers that stay float, with commas between them.",
        type=names,
        default=[],
    )
    _text(parser, "batch_size", "Rows of a calibration batch (32).", type=positive, default=32)
    _text(parser, "steps", "Number of calibration batches; the default is all.", type=positive)
    _text(parser, "seed", "Of what is drawn by chance (0).", type=int, default=0)
    for end in ("input", "output"):
        _choice(
            parser,
            f"{end}_type",
            TYPES,
            f"Type of the file's {end}s; the default is that of the activations.",
        )
    _text(
        parser,
        "file_batch",
        "Rows that the file takes at once (1), 0 for any.",
        type=int,
        default=1,
    )
    _yes_no(parser, "verify", "Do not run model and file to compare them.")
    _yes_no(parser, "strict", "Write a file that computes something else than the model, too.")
    _loading(parser)


def _compare_flags(parser):
    _text(
        parser,
        "data",
        "A .npz file of inputs, and of labels (y, label, labels, target, targets) if any.",
        required=True,
    )
    _text(
        parser,
        "batch_size",
        "Rows that the Keras model computes at once (32).",
        type=positive,
        default=32,
    )
    _text(parser, "max_differing", "Exit with 3 if more values differ.", type=int)
    _text(
        parser,
        "min_agreement",
        "Exit with 3 if a smaller share of rows has the same prediction.",
        type=share,
    )
    _loading(parser)


def _measuring(parser, choices):
    """Adds flags that say what layers are measured on, and how."""
    _text(parser, "calibration", "A .npz file of inputs; a hundred rows serve.", required=True)
    _validation(parser)
    default = ", ".join(choices)
    words = f"Schemes that layers choose from, with commas between them ({default}), or float."
    _text(parser, "choices", words, type=schemes, default=list(choices))
    _choice(parser, "effort", EFFORTS, "As of tfquant quantize.", "default")
    _device(parser)
    _text(
        parser,
        "cache",
        "A .jsonl file to keep figures in as they come: what was interrupted goes on.",
    )
    _running(parser)


def _sensitivity_flags(parser):
    _measuring(parser, ("w8a8", "w4a8"))
    _choice(
        parser, "mode", MODES, "One layer is quantized at a time, or all but one are.", MODES[0]
    )
    _text(parser, "plot", "An .svg file to draw the layers in.")
    _yes_no(parser, "gradients", "Do not predict the same from gradients.")
    _yes_no(parser, "advice", "Do not look for what helps the worst layers.")
    _loading(parser)


def _search_flags(parser):
    _text(parser, "bytes", "Most bytes of the .tflite file.", type=positive)
    _text(parser, "bops", "Most bit operations of a row.", type=amount)
    _text(
        parser,
        "max_drop",
        "Most that the share of right predictions may fall, such as 0.005; needs --validation.",
        type=share,
    )
    _measuring(parser, ("w8a8", "w4a8"))
    _text(parser, "evaluations", "Mixtures to measure at most (96).", type=positive, default=96)
    _found(parser)
    _loading(parser)


def _auto_flags(parser):
    _text(parser, "calibration", "A .npz file of inputs; 512 to 1024 rows serve.", required=True)
    _validation(parser, required=True)
    _text(parser, "target", "The least share of right predictions.", type=share)
    _text(
        parser,
        "max_drop",
        "Or by how much it may fall: 0.005, half a point, if neither is given.",
        type=share,
    )
    _text(parser, "bytes", "Most bytes of the .tflite file.", type=positive)
    _found(parser)
    _device(parser)
    _running(parser)
    _loading(parser)


def _export_c_flags(parser):
    _text(parser, "name", "What names in the source begin with; the default is the file's.")


def _check_flags(parser):
    _choice(parser, "device", TARGETS, "What is to run it (litert).", default="litert")


def _benchmark_flags(parser):
    _text(
        parser,
        "threads",
        "Threads that a kernel may take, several numbers in turn (1,2).",
        type=positives,
        default=[1, 2],
    )
    _text(parser, "runs", "Timed runs of each file (50).", type=positive, default=50)


def _demo_flags(parser):
    _text(parser, "output", "The .tflite file to write (digits.tflite).", default="digits.tflite")
    _text(parser, "epochs", "Passes over the training rows (8).", type=positive, default=8)


def _loading(parser):
    """Adds flags that say how a Keras file is read."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="A module, or a .py file, that registers layers of your own; may be given again.",
    )
    parser.add_argument(
        "--allow_unsafe",
        action="store_true",
        help="Run code that a Keras file holds: Lambda layers. Of files that you trust.",
    )


COMMANDS = (
    Command(
        "quantize",
        "quantize a Keras model, write a .tflite or .onnx file and compare, or pack its weights",
        ("MODEL.keras",),
        _quantize_flags,
        "tfquant quantize model.keras --calibration data.npz --output model.tflite",
        reads=("calibration", "recipe"),
        writes=("output", "report"),
    ),
    Command(
        "inspect",
        "show layers or operators, bits and sizes of a .keras or .tflite file",
        ("FILE",),
        _loading,
        "tfquant inspect model.tflite",
    ),
    Command(
        "compare",
        "run a Keras model and a .tflite file on the same data",
        ("MODEL.keras", "MODEL.tflite"),
        _compare_flags,
        "tfquant compare model.keras model.tflite --data data.npz --max_differing 0",
        reads=("data",),
    ),
    Command(
        "check",
        "say what a device takes of a .tflite or .onnx file, and what to change",
        ("FILE",),
        _check_flags,
        "tfquant check model.tflite --device ethos-u",
    ),
    Command(
        "benchmark",
        "time .tflite and .onnx files on random inputs, in turn, and say what memory they take",
        ("FILE...",),
        _benchmark_flags,
        "tfquant benchmark float.tflite model.tflite --threads 1",
    ),
    Command(
        "sensitivity",
        "say which layer loses most by quantization, at which width, and what would help",
        ("MODEL.keras",),
        _sensitivity_flags,
        "tfquant sensitivity model.keras --calibration data.npz --choices w8a8,w4a8",
        reads=("calibration", "validation"),
        writes=("plot", "cache"),
    ),
    Command(
        "search",
        "find the scheme of each layer within a budget of bytes, operations or accuracy",
        ("MODEL.keras",),
        _search_flags,
        "tfquant search model.keras --calibration data.npz --bytes 60000 --output model.tflite",
        reads=("calibration", "validation"),
        writes=("output", "save_recipe", "cache"),
    ),
    Command(
        "auto",
        "try schemes and efforts in the order of what they cost, until the accuracy holds",
        ("MODEL.keras",),
        _auto_flags,
        "tfquant auto model.keras --calibration data.npz --validation test.npz --output out.tflite",
        reads=("calibration", "validation"),
        writes=("output", "save_recipe"),
    ),
    Command(
        "export-c",
        "write a .tflite file as C++ source for TensorFlow Lite Micro",
        ("MODEL.tflite", FOLDER),
        _export_c_flags,
        "tfquant export-c model.tflite firmware/model",
    ),
    Command(
        "report",
        "show a report again that --report wrote",
        ("REPORT.json",),
        lambda parser: None,
        "tfquant report report.json",
    ),
    Command(
        "demo",
        "train a small network on handwritten digits, quantize it, show what came out",
        (),
        _demo_flags,
        "tfquant demo --output digits.tflite",
        writes=("output",),
    ),
    Command(
        "doctor",
        "say what is installed, whether the low-bit operations are compiled, and how to mend it",
        (),
        lambda parser: None,
        "tfquant doctor --json",
    ),
)


def _command(name):
    for command in COMMANDS:
        if command.name == name:
            return command
    raise Mistake(f"a command {_unknown(name, [command.name for command in COMMANDS])}")


def _parser(command):
    parser = Parser(
        prog=f"tfquant {command.name}",
        description=f"tfquant {command.name}: {command.summary}.",
        epilog=f"example:\n  {command.example}",
    )
    for name in command.arguments:
        parser.add_argument(name, nargs="+" if name.endswith("...") else None)
    command.flags(parser)
    parser.add_argument("--json", action="store_true", help="Print JSON, and nothing else.")
    parser.add_argument("--verbose", action="store_true", help="Show what TensorFlow logs.")
    parser.usage = " ".join([parser.prog, *command.arguments, *parser.needed, "[flags]"])
    return parser


def _version():
    """The version of the package beside, which is not imported for it."""
    return _beside("about.py")["__version__"]


def _beside(*names):
    """What a file of the package defines, run without the package."""
    return runpy.run_path(str(pathlib.Path(__file__).with_name("tfquant").joinpath(*names)))


def _overview():
    width = max(len(command.name) for command in COMMANDS)
    rows = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS]
    return "\n".join(
        [
            "tfquant: from a Keras 3 model to a small, fast, verified integer model.",
            "",
            "usage: tfquant COMMAND [arguments] [flags]",
            "",
            *rows,
            "",
            "tfquant help COMMAND shows the flags of a command, and an example.",
        ]
    )


def _parse(command, parser, argv):
    """Reads the flags, and checks the files that they name."""
    space, unknown = parser.parse_known_args([_underscored(text) for text in argv])
    if unknown:
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            files = " ".join(command.arguments) or "no file"
            raise Mistake(f"{parser.prog} takes {files}. Received also: {' '.join(unknown)}")
        near = difflib.get_close_matches(flag, parser.names, 1)
        guess = f", did you mean {near[0]}?" if near else ""
        raise Mistake(f"a flag of {parser.prog} is expected. Received: {flag}{guess}")
    values = vars(space)
    found = [(name, values.pop(name)) for name in command.arguments]
    given = [(name, x) for name, x in found for x in (x if isinstance(x, list) else [x])]
    values["arguments"] = [path for _, path in given]
    files = [path for name, path in given if name != FOLDER]
    read = [*files, *filter(None, (values[name] for name in command.reads))]
    for path in read:
        if not os.path.isfile(path):
            raise Mistake(f"a file is expected. Received: '{path}', which is not there")
    written = [(name, values[name]) for name in command.writes if values[name]]
    for index, (name, path) in enumerate(written):
        others = [*read, *(other for _, other in written[:index])]
        _check_output(path, values.get("format", "tflite") if name == "output" else name, others)
    return values


def _underscored(text):
    """Makes `--batch-size=8` of a flag `--batch_size=8`."""
    if not text.startswith("--"):
        return text
    name, equals, value = text[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _check_output(path, kind, others):
    """Raises if `path` cannot be written, before anybody waits for what goes in."""
    ending = os.path.splitext(path)[1].lower()
    special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    if ending and ending not in ENDINGS[kind] and not special:
        wanted = f"a name that ends in {ENDINGS[kind][0]}"
        raise Mistake(f"{wanted} is expected for {kind}. Received: '{path}'")
    if os.path.realpath(path) in map(os.path.realpath, others):
        raise Mistake(f"each file has one use. Received: '{path}' twice")
    files = _beside("data", "files.py")
    is_folder = kind == "packed" and not ending
    try:
        files["check_new_folder" if is_folder else "check_file"](path)
    except OSError as error:
        raise Mistake(str(error)) from error


def _run(command, values):
    verbose = values["verbose"]
    quiet = contextlib.nullcontext() if verbose else _quiet()
    try:
        with quiet:
            from tfquant import cli

            done = cli.run(command.name, values.pop("arguments"), values)
            sys.stdout.flush()
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        return _fail(error) if _is_ours(error) else _crash()
    except Exception:
        return _crash()
    return OK if done else NOT_COMPARED


@contextlib.contextmanager
def _quiet():
    """Sends what C++ libraries log to a file that is shown only if something goes wrong.

    They write to file descriptor 2, some of it before any setting of theirs is read. Python's own
    `sys.stderr` goes to the terminal as ever.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    python_stderr = sys.stderr
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        log = stack.enter_context(tempfile.TemporaryFile())
        terminal = stack.enter_context(os.fdopen(os.dup(2), "w", buffering=1))
        os.dup2(log.fileno(), 2)
        sys.stderr = terminal
        handler = logging.StreamHandler(terminal)
        handler.setFormatter(logging.Formatter("tfquant: warning: %(message)s"))
        logger = logging.getLogger("tfquant")
        logger.addHandler(handler)
        logger.propagate = False
        try:
            yield
        except Exception as error:
            if not _is_ours(error):
                log.seek(0)
                terminal.write(log.read().decode(errors="replace"))
            raise
        finally:
            logger.removeHandler(handler)
            terminal.flush()
            os.dup2(terminal.fileno(), 2)
            sys.stderr = python_stderr


def _is_ours(error):
    """Whether tfquant raised `error` itself, with words meant for the user, or the system did."""
    if isinstance(error, OSError) and error.errno is not None:
        return True  # A disk that is full, a folder that went away.
    if getattr(error, "name", None):
        return False  # A failed `import` names the module.
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals["__name__"]
    return module.split(".")[0] == "tfquant"


def _fail(error):
    words = " ".join(str(error).split())
    print(f"tfquant: error: {words}", file=sys.stderr)
    return USER_ERROR


def _crash():
    traceback.print_exc()
    print("tfquant: internal error, please report it with the lines above", file=sys.stderr)
    return INTERNAL_ERROR


if __name__ == "__main__":
    run()

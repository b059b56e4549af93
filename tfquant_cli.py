"""The `tfquant` command: reads the arguments, keeps TensorFlow quiet, sets the exit code.

It stands beside the package and not in it: importing anything of `tfquant` imports TensorFlow,
which takes seconds and writes to the terminal, and `tfquant --help` needs neither. What the
commands do is in `tfquant/cli.py`.

    exit code 0    done
              1    internal error, with its traceback
              2    a mistake of the user, told in one line
              3    the file was written, and could not be compared with its model
              130  interrupted
"""

import contextlib
import dataclasses
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata

from absl import flags

OK, INTERNAL_ERROR, USER_ERROR, NOT_COMPARED, INTERRUPTED = 0, 1, 2, 3, 130

FORMATS = ("tflite", "onnx", "packed")

NORMS = ("auto", "integer", "float")
GROUP_SIZES = ("0", "32", "64", "128")
TYPES = ("int8", "uint8", "int16", "float32")
EFFORTS = ("fast", "default", "best")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: What the user types.
        summary: One line for the list of commands.
        arguments: Names of the files it takes, in order. They must exist.
        flags: Function that defines its flags in a `FlagValues`.
        required: Flags that must be given.
        reads: Flags that name files to read.
        writes: Flags that name files to write.
    """

    name: str
    summary: str
    arguments: tuple[str, ...]
    flags: Callable[[flags.FlagValues], None]
    required: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """How to call it."""
        required = [f"--{name} {name.upper()}" for name in self.required]
        return " ".join(["tfquant", self.name, *self.arguments, *required, "[flags]"])


class Mistake(Exception):
    """A mistake of the user; the message says what was expected and what came."""


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
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_overview())
            return OK if argv else USER_ERROR
        if argv[0] == "--version":
            print(f"tfquant {metadata.version('tfquant')}")
            return OK
        command = _command(argv[0])
        values = _flag_values(command)
        if {"-h", "--help"} & set(argv[1:]):
            print(_help(command, values))
            return OK
        arguments = _parse(command, values, argv[1:])
        return _run(command, arguments, values)
    except Mistake as mistake:
        return _fail(mistake)
    except KeyboardInterrupt:
        print("tfquant: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _quantize_flags(values):
    text = lambda name, default, words: flags.DEFINE_string(  # noqa: E731
        name, default, words, flag_values=values
    )
    text(
        "scheme",
        None,
        "How weights and activations are stored: w8a8 (if there is no --recipe), w8a16, w4a8, ...",
    )
    text("recipe", None, "A .json or .yaml file: which scheme each layer has, see tfq.Recipe.")
    flags.DEFINE_enum(
        "group_size",
        None,
        GROUP_SIZES,
        "Inputs of a channel whose weights share a scale, 0 for all; the default is the scheme's.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "norms",
        None,
        NORMS,
        "Form of layer, root mean square and group norms; the default is the scheme's, auto.",
        flag_values=values,
    )
    text("calibration", None, "A .npz file of inputs. Schemes with static activations need it.")
    text("output", None, "The file to write; packed: a .keras file, or a SavedModel's new folder.")
    flags.DEFINE_enum(
        "format",
        "tflite",
        FORMATS,
        "What to write: a LiteRT file, an ONNX file, or a Keras model on packed weights.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "effort",
        "default",
        EFFORTS,
        "fast: data are seen once; default: ranges and biases that serve the outputs; best: and "
        "integers chosen on all of the data, in minutes (512 to 1024 rows serve).",
        flag_values=values,
    )
    text("observer", None, "What chooses the ranges of activations: min_max, percentile, ...")
    text("report", None, "A .json file to write the report to.")
    for name in ("input_type", "output_type"):
        words = f"Type of the file's {name.split('_')[0]}s; the default is that of the activations."
        flags.DEFINE_enum(name, None, TYPES, words, flag_values=values)
    flags.DEFINE_list("skip", [], "Names of layers that stay float.", flag_values=values)
    _batch_size(values, "Rows of a calibration batch.")
    flags.DEFINE_bool(
        "verify", True, "Whether to run model and file and compare them.", flag_values=values
    )


def _compare_flags(values):
    flags.DEFINE_string("data", None, "A .npz file of inputs.", flag_values=values)
    _batch_size(values, "Rows that the Keras model computes at once.")


def _demo_flags(values):
    flags.DEFINE_string("output", "digits.tflite", "The .tflite file to write.", flag_values=values)
    flags.DEFINE_integer(
        "epochs", 8, "Passes over the training rows.", lower_bound=1, flag_values=values
    )


def _batch_size(values, words):
    flags.DEFINE_integer("batch_size", 32, words, lower_bound=1, flag_values=values)


COMMANDS = (
    Command(
        "quantize",
        "quantize a Keras model, write a .tflite or .onnx file and compare, or pack its weights",
        ("MODEL.keras",),
        _quantize_flags,
        required=("output",),
        reads=("calibration", "recipe"),
        writes=("output", "report"),
    ),
    Command(
        "inspect",
        "show layers or operators, bits and sizes of a .keras or .tflite file",
        ("FILE",),
        lambda values: None,
    ),
    Command(
        "compare",
        "run a Keras model and a .tflite file on the same data",
        ("MODEL.keras", "MODEL.tflite"),
        _compare_flags,
        required=("data",),
        reads=("data",),
    ),
    Command(
        "demo",
        "train a small network on handwritten digits, quantize it, show what came out",
        (),
        _demo_flags,
        writes=("output",),
    ),
    Command(
        "doctor",
        "say whether the compiled low-bit operations are there, and how to get them if not",
        (),
        lambda values: None,
    ),
)


def _command(name):
    for command in COMMANDS:
        if command.name == name:
            return command
    known = ", ".join(command.name for command in COMMANDS)
    raise Mistake(f"a command must be one of {known}. Received: {name}")


def _flag_values(command):
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # Flags may stand before and behind the files.
    command.flags(values)
    flags.DEFINE_bool(
        "verbose", False, "Show what TensorFlow logs, and tracebacks.", flag_values=values
    )
    return values


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
            "tfquant COMMAND --help shows the flags of a command.",
        ]
    )


def _help(command, values):
    lines = [f"tfquant {command.name}: {command.summary}", "", f"usage: {command.usage}", ""]
    for name in values:
        flag = values[name]
        label = f"--[no]{name}" if flag.boolean else f"--{name}"
        default = "" if flag.default in (None, []) else f" Default: {flag.default}."
        lines.append(f"  {label:<15} {flag.help}{default}")
    return "\n".join(lines)


def _parse(command, values, argv):
    """Reads flags into `values`, checks the files that they name, and returns the arguments."""
    try:
        arguments = values(["tfquant", *argv])[1:]
    except flags.Error as error:
        raise Mistake(str(error)) from error
    if len(arguments) != len(command.arguments):
        received = " ".join(arguments) or "no file"
        raise Mistake(f"usage: {command.usage}. Received: {received}")
    for name in command.required:
        if not values[name].value:
            raise Mistake(f"--{name} is needed. usage: {command.usage}")
    read = [*arguments, *(values[name].value for name in command.reads)]
    for path in filter(None, read):
        if not os.path.isfile(path):
            raise Mistake(f"a file is expected. Received: '{path}', which is not there")
    written = [values[name].value for name in command.writes if values[name].value]
    for index, path in enumerate(written):
        _check_output(path, [*filter(None, read), *written[:index]])
    return arguments


def _check_output(path, others):
    """Raises if `path` cannot be written, before anybody waits for what goes in."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise Mistake(f"a file is expected. Received: '{path}', which is a folder")
    if not os.path.isdir(folder):
        raise Mistake(f"the folder of '{path}' does not exist: '{folder}'")
    if not os.access(folder, os.W_OK):
        raise Mistake(f"the folder of '{path}' cannot be written: '{folder}'")
    if os.path.realpath(path) in map(os.path.realpath, others):
        raise Mistake(f"each file has one use. Received: '{path}' twice")


def _run(command, arguments, values):
    verbose = values["verbose"].value
    quiet = contextlib.nullcontext() if verbose else _quiet()
    try:
        with quiet:
            from tfquant import cli

            done = cli.run(command.name, arguments, values.flag_values_dict())
            sys.stdout.flush()
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        if verbose or not _is_ours(error):
            return _crash()
        return _fail(error)
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
    """Whether tfquant raised `error` itself, with words meant for the user."""
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

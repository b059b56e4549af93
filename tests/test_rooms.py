"""The rooms of the package: what they import, and what is written about them."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "tfquant"

# From left to right; a room imports rooms to its left only.
ORDER = (
    "numerics",
    "data",
    "layers",
    "rounding",
    "lowbit",
    "observers",
    "quantizers",
    "kernels",
    "devices",
    "graph",
    "reading",
    "wrappers",
    "configs",
    "registry",
    "pieces",
    "unroll",
    "unfold",
    "passes",
    "rewrite",
    "bridges",
    "calibrate",
    "train",
    "scaling",
    "streams",
    "optimize",
    "board",
    "report",
    "sensitivity",
    "litert",
    "c",
    "skeleton",
    "tflite",
    "search",
    "nodes",
    "onnx",
    "packed",
    "targets",
    "speed",
)

# Single files that use every room, and those that every room may use.
ABOVE = ("__init__", "__main__", "cli", "demo")
BELOW = ("about", "backend")

# A room above this is several.
MOST_LINES = 1800

# Folders of tests of more than one room.
BESIDE = ("cli", "conformance", "end_to_end", "examples", "hostile")

ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_names(path):
    """Full names of what a file imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def imported_rooms(path):
    parts = [name.split(".") for name in imported_names(path)]
    return {name[1] for name in parts if name[0] == "tfquant" and len(name) > 1}


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def test_every_room_has_its_place_in_the_order():
    assert set(ROOMS) == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_rooms_to_its_left(path):
    room = room_of(path)
    if room in ABOVE:
        return
    allowed = set(() if room in BELOW else (*BELOW, *ORDER[: ORDER.index(room) + 1]))
    assert imported_rooms(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_uses_public_names_of_keras_and_tensorflow(path):
    private = ("keras.src", "tensorflow.python")
    assert not [name for name in imported_names(path) if name.startswith(private)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_small_enough_to_know(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert lines <= MOST_LINES


def test_tests_stand_in_rooms_of_the_same_names():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {*ROOMS, *BESIDE}


def test_what_is_listed_as_slow_is_there():
    names = (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    tests = {name.partition("[")[0] for name in names}
    for path, *classes, function in (name.split("::") for name in tests):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert all(f"class {name}" in text for name in classes) and f"def {function}(" in text


def test_nobody_imports_the_command_line():
    assert not [path for path in FILES if "cli" in imported_rooms(path)]


# A file that a text names: `file.py`, `folder/file.py`.
NAMED = re.compile(r"`([\w./]+\.(?:py|md))`")

TEXTS = ["CONTRIBUTING.md", "tests/README.md", *(f"tfquant/{room}/README.md" for room in ROOMS)]


@pytest.mark.parametrize("text", TEXTS)
def test_files_that_a_text_names_exist(text):
    named = NAMED.findall((ROOT / text).read_text(encoding="utf-8"))
    places = (ROOT / text).parent, ROOT, PACKAGE
    assert not [x for x in named if not any((place / x).exists() for place in places)]


@pytest.mark.parametrize("room", [*(f"tfquant/{room}" for room in ROOMS), "tests", "examples"])
def test_a_room_says_what_lives_in_it(room):
    text = (ROOT / room / "README.md").read_text(encoding="utf-8")
    assert 5 <= len(text.splitlines()) <= 25

"""Which file of custom_ops may know which: arrows point down, from the ops to the formats."""

import re

import pytest

from tfquant.lowbit import build

ROOT = build.source_root()
FILES = [path for path in build.source_files() if path.suffix != ".bzl"]
# What a path's kernels are made of; whoever calls them lies above. Two paths share AVX2's pairs.
BELOW_PATHS = {"avx2/pairs.h", "blocks.h", "float16.h", "kernels.h", "settings.h"}


def included(path):
    """The files that one names in quotes, with angles, and as text for the assembler."""
    text = path.read_text()
    quoted = {(path.parent / name).resolve() for name in re.findall(r'#include "(.*)"', text)}
    return {file for file in quoted if file.is_file()}, set(re.findall(r"#include <(.*)>", text))


def reached(path, above=()):
    """All that a file includes, directly or not; fails on a circle."""
    assert path not in above, f"{[p.name for p in above]} leads back to {path.name}"
    direct, _ = included(path)
    return direct.union(*(reached(file, (*above, path)) for file in direct))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_arrows_point_down(path):
    room = path.relative_to(ROOT).parts[0]
    allowed = {"core": {"core"}, "ops": {"core", "kernels"}, "kernels": {"core", "kernels"}}[room]
    below = reached(path)
    assert {file.relative_to(ROOT).parts[0] for file in below} <= allowed
    if room == "core":
        assert not [name for name in included(path)[1] if name.startswith(("tensorflow", "absl"))]


LISTS = build.source_lists()


@pytest.mark.parametrize("name", [*LISTS["X86_64_PATHS"], *LISTS["AARCH64_PATHS"]])
def test_a_path_knows_nothing_of_its_callers(name):
    core, name = ROOT / "core", build.path_source(name)
    below = {str(file.relative_to(core)) for file in reached(ROOT / name)}
    own = {file for file in below if file.startswith((f"{(ROOT / name).parent.name}/", "generic/"))}
    assert below - own <= BELOW_PATHS
    # A template of the library, made with a path's instructions, could be the one that others get.
    headers = {name for file in reached(ROOT / name) for name in included(file)[1]}
    assert not headers & {"string", "functional", "vector", "algorithm"}

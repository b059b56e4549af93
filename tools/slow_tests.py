"""Notes which tests are slow, from what a whole run of the suite took.

    pytest -n 2 -m "not long" --junitxml=RESULTS.xml
    python tools/slow_tests.py RESULTS.xml

writes `tests/slow.txt`, which has a test a line. `tests/conftest.py` marks those as slow.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]
SLOW = ROOT / "tests" / "slow.txt"

# What a test may take, in seconds with two at a time.
LIMIT = 2.5


def node_id(case) -> str:
    """Returns the name by which pytest calls a test of a results file."""
    parts = case.get("classname").split(".")
    count = next(n for n in range(len(parts), 0, -1) if _path(parts[:n]).is_file())
    return "::".join(["/".join(parts[:count]) + ".py", *parts[count:], case.get("name")])


def _path(parts):
    return ROOT.joinpath(*parts).with_suffix(".py")


def main(results):
    """Writes the list."""
    cases = ElementTree.parse(results).getroot().iter("testcase")
    slow = sorted(node_id(case) for case in cases if float(case.get("time")) > LIMIT)
    SLOW.write_text("".join(f"{name}\n" for name in slow))
    print(f"{len(slow)} tests take more than {LIMIT:g} s: {SLOW.relative_to(ROOT)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

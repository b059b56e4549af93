"""The integer program: its answers are those of trying everything."""

import itertools
import math

import numpy as np
import pytest

from tfquant.search.program import Item, nearest, solve

# HAWQ-V3's ILP.ipynb, ResNet18 (github.com/Zhen-Dong/HAWQ, Yao et al. 2021, arXiv:2011.10680):
# normalized Hessian traces, squared changes of the weights at 8 and at 4 bits, weights of layers.
TRACES = (
    *(0.06857826, 0.03162379, 0.03298575, 0.01205663, 0.02222431, 0.00596336, 0.06931772),
    *(0.00807129, 0.00372905, 0.00530698, 0.00209011, 0.00737569, 0.00210454, 0.00151197),
    *(0.00158041, 0.00078146, 0.00451841, 0.00098745, 0.00072944),
)
AT_8 = (
    *(0.0235, 0.0125, 0.0102, 0.0082, 0.0145, 0.0344, 0.0023, 0.0287, 0.0148, 0.0333),
    *(0.0682, 0.0027, 0.0448, 0.0336, 0.0576, 0.1130, 0.0102, 0.0947, 0.0532),
)
AT_4 = (
    *(6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, 0.6827, 9.0942, 4.8857, 10.7599),
    *(21.7546, 0.8603, 14.5324, 10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016),
)
WEIGHTS = (
    *(36864, 36864, 36864, 36864, 73728, 147456, 8192, 147456, 147456, 294912),
    *(589824, 32768, 589824, 589824, 1179648, 2359296, 131072, 2359296, 2359296),
)
TIED = ((4, 6), (9, 11), (14, 16))


def test_it_finds_the_widths_of_hawqs_resnet18():
    groups = [*TIED, *((i,) for i in range(19) if not any(i in pair for pair in TIED))]
    items = [
        Item(
            tuple(map(str, group)),
            {
                bits: sum(TRACES[i] * changes[i] for i in group)
                for bits, changes in (("8", AT_8), ("4", AT_4))
            },
            {
                bits: (sum(WEIGHTS[i] for i in group) * size,)
                for bits, size in (("8", 1.0), ("4", 0.5))
            },
        )
        for group in groups
    ]
    chosen = solve(items, [sum(WEIGHTS) * 0.75])
    low = {
        int(name) for item, x in zip(items, chosen, strict=True) if x == "4" for name in item.names
    }
    assert low == {15, 17, 18}
    size = sum(item.costs[x][0] for item, x in zip(items, chosen, strict=True)) / 2**20
    assert size == pytest.approx(7.266, abs=0.001)
    gained = sum(item.noise[x] - item.noise["4"] for item, x in zip(items, chosen, strict=True))
    assert gained == pytest.approx(-1.23321, abs=1e-5)


def instance(rng, count, widths=3):
    """Returns items whose noise falls and whose costs grow with the width, not evenly."""
    items = []
    for number in range(count):
        noise = np.sort(10 ** rng.uniform(-9, 0, widths))[::-1]
        costs = np.sort(rng.uniform(1, 100, (2, widths)), axis=1)
        items.append(
            Item(
                (str(number),),
                {f"w{w}": float(noise[w]) for w in range(widths)},
                {f"w{w}": (float(costs[0, w]), float(costs[1, w])) for w in range(widths)},
            )
        )
    return items


def totals(items, chosen):
    costs = np.array([item.costs[x] for item, x in zip(items, chosen, strict=True)])
    return costs.sum(axis=0)


def everything(items, bounds):
    """Returns the least noise of all mixtures within bounds, `inf` where there is none."""
    noise = np.array([[item.noise[x] for x in item.noise] for item in items])
    costs = np.array([[item.costs[x] for x in item.costs] for item in items])
    total, first, second = np.zeros(1), np.zeros(1), np.zeros(1)
    for n, c in zip(noise, costs, strict=True):
        total = (total[:, None] + n).reshape(-1)
        first = (first[:, None] + c[:, 0]).reshape(-1)
        second = (second[:, None] + c[:, 1]).reshape(-1)
    kept = (first <= bounds[0]) & (second <= bounds[1])
    return total[kept].min(initial=np.inf)


@pytest.mark.parametrize("count", range(1, 13))
def test_it_is_as_good_as_trying_everything(count, rng):
    for _ in range(4):
        items = instance(rng, count)
        low = totals(items, ["w0"] * count)
        high = totals(items, ["w2"] * count)
        one, two = rng.uniform(0, 1, 2)
        for bounds in (
            (low[0] + one * (high[0] - low[0]), math.inf),
            (math.inf, low[1] + two * (high[1] - low[1])),
            (low[0] + one * (high[0] - low[0]), low[1] + two * (high[1] - low[1])),
        ):
            chosen, least = solve(items, bounds), everything(items, bounds)
            found = sum(item.noise[x] for item, x in zip(items, chosen, strict=True))
            # The solver's tolerance is relative to the largest noise.
            largest = max(max(item.noise.values()) for item in items)
            assert found == pytest.approx(least, rel=1e-6, abs=1e-6 * largest)
            assert (totals(items, chosen) <= np.array(bounds) * (1 + 1e-6)).all()


def test_bounds_that_nothing_keeps_have_a_nearest(rng):
    items = instance(rng, 6)
    low = totals(items, ["w0"] * 6)
    bounds = low * [0.5, 0.9]
    assert solve(items, bounds) is None
    beyond = max(totals(items, nearest(items, bounds)) / bounds)
    mixtures = itertools.product(["w0", "w1", "w2"], repeat=6)
    assert beyond == pytest.approx(min(max(totals(items, x) / bounds) for x in mixtures), rel=1e-5)


def test_the_same_program_has_the_same_answer(rng):
    items = [Item((str(i),), {"a": 1.0, "b": 1.0}, {"a": (1.0,), "b": (1.0,)}) for i in range(8)]
    assert solve(items, [8]) == solve(items, [8]) is not None

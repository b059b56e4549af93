"""`Mixtures`: choices of all layers, what they cost, and which neighbours are better."""

import math

from tfquant.registry.recipe import FLOAT
from tfquant.search.program import Item, nearest, solve
from tfquant.search.report import Candidate
from tfquant.sensitivity import LARGEST

# Neighbours that are measured in a round, those that promise most.
TRIED = 12

# A mixture is better if its outputs are so many dB closer.
LEAST_GAIN = 0.02


class Mixtures:
    """Choices of all layers with weights.

    A mixture is a tuple of choices, one for each of `items`.

    Args:
        study: `Study`.
        costs: `Costs`.
        names: Names of the choices.
        ties: As of `search`.

    Attributes:
        items: `Item`s: layers with their noise and costs, one at a time.
        candidates: Dict from mixtures to the `Candidate`s that were measured.
    """

    def __init__(self, study, costs, names, ties=()):
        self.study, self.costs, self.candidates = study, costs, {}
        groups = _groups(costs.weighted, ties)
        study.progress.begin(len(groups) * len(names))
        self.items = [self._item(group, names) for group in groups]

    def _item(self, group, names):
        """Measures the layers of a group, each alone."""
        units = [self.study.board.units[name] for name in group]
        noise, costs = {}, {}
        for choice in names:
            self.study.progress.tell(f"{group[0]} {choice}")
            self.study.progress.advance()
            if any(choice not in unit.options for unit in units):
                continue
            # The same to all of them as one that came before.
            if any(
                all(unit.options[choice] == unit.options[other] for unit in units)
                for other in noise
            ):
                continue
            noise[choice] = sum(self._noise(unit, choice) for unit in units)
            costs[choice] = tuple(
                sum(cost(unit.name, choice) for unit in units)
                for cost in (self.costs.unit_bytes, self.costs.unit_bops)
            )
        if not noise:
            raise ValueError(
                "`choices` must have one that the device computes each layer in. Received: "
                f"{', '.join(names)}, of which none is for '{group[0]}'; add 'float'."
            )
        return Item(tuple(group), noise, costs)

    def _noise(self, unit, choice):
        option = unit.options[choice]
        alone = lambda: {**self.study.board.everywhere(FLOAT), unit.name: option}  # noqa: E731
        ratio = self.study.sqnr(f"one {unit.name} {option}", alone)
        return 0.0 if ratio >= LARGEST else 10 ** (-ratio / 10)

    def full(self, mixture) -> dict:
        """Returns the choices of all layers."""
        units = self.study.board.units
        chosen = {
            name: units[name].options[choice]
            for item, choice in zip(self.items, mixture, strict=True)
            for name in item.names
        }
        return self.study.board.follow(chosen)

    def bytes(self, mixture) -> int:
        """Returns about the bytes of the file of a mixture."""
        return self.costs.bytes(self.full(mixture))

    def measure(self, mixture, scored: bool = False) -> Candidate:
        """Returns what a mixture does to the outputs; what was measured once is known.

        Args:
            mixture: The mixture.
            scored: Whether the metric is wanted.
        """
        mixture = tuple(mixture)
        full = self.full(mixture)
        known = self.candidates.get(mixture)
        name = " ".join(full[x] for x in self.costs.weighted)
        score = known.score if known else None
        if scored and score is None:
            score = self.study.score(f"mix {name}", lambda: full)
        if known is None or score != known.score:
            chosen = {x: full[x] for x in self.costs.weighted}
            ratio = known.sqnr if known else self.study.sqnr(f"mix {name}", lambda: full)
            size, bops = self.costs.bytes(full), self.costs.bops(full)
            self.candidates[mixture] = Candidate(chosen, size, bops, ratio, score)
        return self.candidates[mixture]

    def _bounds(self, bounds):
        return [bounds[0] - self.costs.start_bytes, bounds[1]]

    def solve(self, bounds) -> tuple | None:
        """Returns the best mixture within bounds by what layers cost one at a time.

        Args:
            bounds: Bytes and bit operations.

        Returns:
            A mixture that keeps the bounds with what lies between layers of different widths, too;
            `None` where there is none.
        """
        tight = self._bounds(bounds)
        for _ in range(8):
            if min(tight) <= 0:
                return None
            found = solve(self.items, tight)
            if found is None:
                return None
            beyond = self.bytes(found) - bounds[0]
            if beyond <= 0:
                return tuple(found)
            tight[0] -= beyond
        return None

    def smallest(self) -> tuple:
        """Returns the mixture with the fewest bytes."""
        return tuple(
            min(item.costs, key=lambda x, item=item: (item.costs[x], item.noise[x]))
            for item in self.items
        )

    def smallest_bytes(self) -> int:
        """Returns about the bytes of the smallest file."""
        return self.bytes(self.smallest())

    def largest(self) -> tuple:
        """Returns the mixture with the least noise, layer by layer."""
        return tuple(min(item.noise, key=item.noise.get) for item in self.items)

    def check(self, bounds, budget) -> None:
        """Raises unless some mixture keeps bounds.

        Raises:
            ValueError: If none does, naming the nearest.
        """
        if self.solve(bounds) is not None:
            return
        tight = [max(bound, 1.0) for bound in self._bounds(bounds)]
        found = tuple(nearest(self.items, tight))
        if math.isinf(bounds[1]):
            found = self.smallest()
        full = self.full(found)
        raise ValueError(
            f"A budget that some mixture keeps is expected. Received: {budget}; the nearest has "
            f"about {self.costs.bytes(full):,} bytes and {self.costs.bops(full):.4g} bit "
            "operations."
        )

    def levels(self, count: int) -> list:
        """Returns the best mixtures of budgets from the smallest file to the largest."""
        low, high = self.smallest_bytes(), self.bytes(self.largest())
        bounds = [low + (high - low) * k / (count - 1) for k in range(count)]
        found = [self.solve([bound + 1, math.inf]) for bound in bounds]
        return [x for x in dict.fromkeys(found) if x is not None]

    def refine(self, start, bounds, evaluations: int) -> tuple:
        """Returns the best mixture that is found from one by measuring neighbours.

        A neighbour has another choice for one item, or for two of which one pays for the other.

        Args:
            start: Mixture within bounds.
            bounds: Bytes and bit operations.
            evaluations: How many mixtures may be measured.
        """
        best, ratio, left = tuple(start), self.measure(start).sqnr, evaluations
        while left > 0:
            gained = False
            for other in self._neighbours(best, bounds)[:TRIED]:
                if left <= 0:
                    break
                if other in self.candidates:
                    found = self.candidates[other].sqnr
                else:
                    found, left = self.measure(other).sqnr, left - 1
                if found > ratio + LEAST_GAIN:
                    best, ratio, gained = other, found, True
                    break
            if not gained:
                break
        return best

    def _neighbours(self, mixture, bounds):
        """Returns neighbours within bounds, those first that add the least noise by themselves."""
        changes = [
            (index, choice)
            for index, item in enumerate(self.items)
            for choice in item.noise
            if choice != mixture[index]
        ]
        change = lambda index, choice: (  # noqa: E731
            self.items[index].noise[choice] - self.items[index].noise[mixture[index]]
        )
        costs = lambda index, choice: [  # noqa: E731
            new - old
            for new, old in zip(
                self.items[index].costs[choice],
                self.items[index].costs[mixture[index]],
                strict=True,
            )
        ]
        total = [sum(item.costs[x][k] for item, x in self._with(mixture)) for k in range(2)]
        room = [b - t for b, t in zip(self._bounds(bounds), total, strict=True)]
        rated = [(change(*x), costs(*x), (x,)) for x in changes]
        pairs = [
            (a + b, [p + q for p, q in zip(u, v, strict=True)], (*x, *y))
            for number, (a, u, x) in enumerate(rated)
            for b, v, y in rated[number + 1 :]
            if x[0][0] != y[0][0] and (u[0] < 0) != (v[0] < 0)
        ]
        fit = [
            (n, x)
            for n, c, x in rated + pairs
            if all(map(float.__le__, map(float, c), map(float, room)))
        ]
        found = []
        for _, moved in sorted(fit, key=lambda pair: (pair[0], pair[1]))[: 4 * TRIED]:
            other = list(mixture)
            for index, choice in moved:
                other[index] = choice
            if self.bytes(other) <= bounds[0]:
                found.append(tuple(other))
        return found

    def _with(self, mixture):
        return zip(self.items, mixture, strict=True)


def _groups(names, ties) -> list[tuple]:
    """Returns the names of layers, those together that are tied.

    Raises:
        ValueError: If a tie names a layer that has no choice, or that is tied twice.
    """
    seen = set()
    for tie in ties:
        for name in tie if not isinstance(tie, str) else [tie]:
            if name not in names or name in seen:
                why = "twice" if name in seen else "which has no weights with a choice"
                raise ValueError(
                    "`ties` must be lists of names of layers with weights, each once. Received: "
                    f"{name!r}, {why}; there are {', '.join(names)}."
                )
            seen.add(name)
    groups = [
        tuple(name for name in names if name in tie) for tie in ties if not isinstance(tie, str)
    ]
    groups += [(name,) for name in names if name not in {x for g in groups for x in g}]
    return sorted(groups, key=lambda group: names.index(group[0]))

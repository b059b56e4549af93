"""`Controlled`: the smallest mixture whose metric is near the float model's."""

import math

from tfquant.registry.recipe import FLOAT
from tfquant.search.report import Promise

# Standard deviations that a drop is kept away from what is allowed: nine of ten draws of as many
# other rows have no more, whose drop is off by chance, as that of these rows is.
SURE = 1.28 * 2**0.5


class Promiser:
    """Says of outputs by how much they drop the metric, and whether other rows would show no more.

    Args:
        scoring: `Scoring`.
        expected: Outputs of the float model on its rows.
        most: The drop that is allowed.

    Attributes:
        scoring: As given.
        float_score: Metric of the float model.
    """

    def __init__(self, scoring, expected, most: float):
        self.scoring, self._expected, self._most = scoring, expected, most
        self.float_score = scoring(expected)
        self._resolution = scoring.resolution(expected)

    def promise_of(self, outputs) -> Promise:
        """Returns what validation rows say of outputs of a quantized model."""
        scoring, most = self.scoring, self._most
        drop = self.float_score - scoring(outputs)
        deviation = scoring.deviation(self._expected, outputs)
        kept = drop + SURE * deviation <= most
        seen = f"{len(scoring)} rows: ±{100 * self._resolution:.1f} points"
        words = (
            f"drop of {scoring.name}: {100 * drop:.2f} ±{100 * deviation:.2f} points of "
            f"{100 * most:.2f} allowed ({seen} for a score alone)"
        )
        if not kept:
            words += "; not promised for other rows"
            if deviation * SURE > most:
                needed = len(scoring) * (SURE * deviation / most) ** 2 if most else math.inf
                rows = f"about {needed:,.0f} rows" if math.isfinite(needed) else "no number of rows"
                words += f": so few rows cannot show a drop of {100 * most:.2f}, {rows} could"
        return Promise(drop, deviation, self._resolution, len(scoring), most, kept, words)


class Controlled:
    """Looks for the smallest mixture with a drop that is allowed.

    All layers begin at their fewest bytes. They are raised in the order of the noise that it takes
    away for a byte, as many as needed, found by halving; then each that was raised is lowered again
    if the drop allows. What is allowed is a drop that rows like these confirm in nine of ten draws;
    where no mixture has that, one whose drop on these rows is allowed.

    Args:
        study: `Study` with validation rows.
        mixtures: `Mixtures`.
        budget: `Budget` with a `max_drop`.
    """

    def __init__(self, study, mixtures, budget):
        self.study, self.mixtures, self.budget = study, mixtures, budget
        chosen = dict.fromkeys(study.board.units, FLOAT)
        expected = study.validation_stage.outputs(chosen)[1]
        self._promiser = Promiser(study.scoring, expected, budget.max_drop)
        self._promises = {}

    def promise_of(self, outputs) -> Promise:
        """Returns what validation rows say of outputs of a quantized model."""
        return self._promiser.promise_of(outputs)

    def _promise(self, mixture) -> Promise:
        if mixture not in self._promises:
            full = self.mixtures.full(mixture)
            self.study.progress.tell(f"mixture {len(self._promises) + 1}")
            outputs = self.study.validation_stage.outputs(full)[1]
            self._promises[mixture] = self.promise_of(outputs)
            self.mixtures.measure(mixture, scored=True)
        return self._promises[mixture]

    def run(self) -> tuple:
        """Returns the mixture."""
        path = self._path()
        self._sure = any(self._promise(x).kept for x in (path[-1], path[len(path) // 2]))
        low, high = -1, len(path) - 1
        if self._holds(path[0]):
            high = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._holds(path[middle]) else (middle, high)
        return self._stepped_back(path[high])

    def _holds(self, mixture):
        promise = self._promise(mixture)
        return promise.kept if self._sure else promise.drop <= self.budget.max_drop

    def _path(self) -> list:
        """Returns mixtures from the smallest to the closest, one item raised at a time."""
        now, found = list(self.mixtures.smallest()), []
        found.append(tuple(now))
        while True:
            raises = self._raises(now)
            if not raises:
                return found
            _, index, choice = max(raises)
            now[index] = choice
            found.append(tuple(now))

    def _raises(self, now):
        """Returns what may be raised: noise that it takes away for a byte, item, choice."""
        found = []
        for index, item in enumerate(self.mixtures.items):
            for choice in item.noise:
                less = item.noise[now[index]] - item.noise[choice]
                more = item.costs[choice][0] - item.costs[now[index]][0]
                if less > 0 and more >= 0:
                    found.append((less / max(more, 1), index, choice))
        return found

    def wider(self, mixture) -> tuple | None:
        """Returns a mixture with one item raised, that with the most noise; `None` at the end."""
        raises = self._raises(list(mixture))
        if not raises:
            return None
        _, index, choice = max(raises)
        return (*mixture[:index], choice, *mixture[index + 1 :])

    def _stepped_back(self, mixture):
        """Lowers what was raised, the most bytes for the least noise first, where that holds."""
        if not self._holds(mixture):
            return mixture
        tried = set()
        while True:
            lowered = []
            for index, item in enumerate(self.mixtures.items):
                for choice in item.noise:
                    saved = item.costs[mixture[index]][0] - item.costs[choice][0]
                    more = item.noise[choice] - item.noise[mixture[index]]
                    if saved > 0 and (index, choice) not in tried:
                        lowered.append((more / saved, index, choice))
            if not lowered:
                return mixture
            _, index, choice = min(lowered)
            tried.add((index, choice))
            other = (*mixture[:index], choice, *mixture[index + 1 :])
            if self._holds(other):
                mixture = other

"""What would help a layer, in words, with the number that backs them."""

import dataclasses
import math

import numpy as np

from tfquant.numerics.arrays import array_of
from tfquant.registry.recipe import FLOAT, Recipe, Rule

# Layers that advice is sought for, the worst ones, and what it must gain, in dB.
ADVISED, LEAST_GAIN = 6, 0.5

# A range is wide where it is so many times that of the rest.
WIDE = 8.0

# A weight is large where it is so many times the root mean square of its channel.
LARGE = 6.0

# Schemes that may help, beside those that were asked about.
REMEDIES = ("w8a8", "w8a16")


@dataclasses.dataclass(frozen=True)
class Advice:
    """What would help a layer.

    Attributes:
        layer: Name of the layer.
        choices: Dict from the names of layers to the schemes that they should have.
        reference: Name of the scheme of all other layers.
        gain: By how much the outputs come closer to the float model's, in dB, measured.
        words: All of it in words.
        with_them: Names of layers that stay float together with those that should.
    """

    layer: str
    choices: dict[str, str]
    reference: str
    gain: float
    words: str
    with_them: tuple[str, ...] = ()

    def apply(self, recipe) -> Recipe:
        """Returns a recipe (or that of a scheme) in which the advice is followed."""
        recipe, rules = Recipe.of(recipe), []
        for name, choice in self.choices.items():
            if choice == FLOAT:
                rules += Recipe().skip(name, *self.with_them).rules
            else:
                rules += Recipe(choice).where(name).rules
        return dataclasses.replace(recipe, rules=(*_distinct(rules), *recipe.rules))


def _distinct(rules) -> list[Rule]:
    return list({rule.selector: rule for rule in rules}.values())


def advise(board, stage, layers, reference: str) -> list[Advice]:
    """Returns what helps the worst layers, each piece measured with all others at a scheme.

    Args:
        board: `Board`.
        stage: `Stage`, which holds the float model.
        layers: Names of the layers, worst first.
        reference: Name of the scheme of all layers.
    """
    everywhere = board.everywhere(reference)
    whole = stage.sqnr(everywhere)
    found = [_advice(board, stage, name, reference, everywhere, whole) for name in layers[:ADVISED]]
    return sorted(filter(None, found), key=lambda x: -x.gain)


def _advice(board, stage, name, reference, everywhere, whole):
    alone = {**dict.fromkeys(board.units, FLOAT), name: everywhere[name]}
    noise = {
        part: 10 ** (-stage.sqnr(alone, {name: part}) / 10) for part in ("weights", "activations")
    }
    total = sum(noise.values())
    if not total or not math.isfinite(total):
        return None
    part = max(noise, key=noise.get)
    for choices in _remedies(board, name, reference, part):
        gain = stage.sqnr({**everywhere, **choices}) - whole
        if gain >= LEAST_GAIN:
            why = _weights_why if part == "weights" else _activations_why
            share = f"{part} make {noise[part] / total:.0%} of its noise at {reference}"
            evidence = why(board, stage, name, reference)
            words = f"`{name}`: {evidence}; {share}: {_in_words(name, choices)} gives the outputs "
            words += f"{gain:+.1f} dB"
            floating = [x for x, choice in choices.items() if choice == FLOAT]
            with_them = tuple(x for f in floating for x in board.units[f].with_it)
            return Advice(name, choices, reference, gain, words, with_them)
    return None


def _remedies(board, name, reference, part):
    """Yields choices of layers that may help, the cheapest first."""
    unit = board.units[name]
    bits, activations = unit.bits[unit.options.get(reference, FLOAT)]
    if part == "weights":
        wider = [x for x in unit.bits if unit.bits[x][0] > bits and unit.bits[x][1] == activations]
        for choice in sorted(wider, key=lambda x: unit.bits[x]):
            yield {name: choice}
        yield {name: FLOAT}
        return
    # What it computes is read in as many bits only by layers of as many.
    around = [name, *board.readers(name)]
    wider = [
        x
        for x, (weight_bits, activation_bits) in unit.bits.items()
        if activations < activation_bits < 32 and (weight_bits >= bits or not unit.has_weights)
    ]
    for choice in sorted(wider, key=lambda x: unit.bits[x][1]):
        if all(choice in board.units[x].options for x in around):
            yield {x: board.units[x].options[choice] for x in around}
    yield dict.fromkeys(around, FLOAT)


def _in_words(name, choices):
    *_, choice = choices.values()
    others = [f"`{x}`" for x in choices if x != name]
    return f"{choice} for it" + (f" and {', '.join(others)}" if others else "")


def _weights_why(board, stage, name, reference):
    """Says what the weights of a layer are like."""
    most, channels, large = 0.0, 0, 0
    for wrapper in board.wrappers(name):
        for variable, quantizer in wrapper.weight_quantizers:
            if getattr(quantizer, "grouped", False) or not hasattr(quantizer, "reduced_axes"):
                continue
            w = np.abs(array_of(variable.value)).astype(float)
            axes = quantizer.reduced_axes
            mean = np.sqrt(np.mean(w**2, axis=axes))
            ratio = np.divide(w.max(axis=axes), mean, out=np.zeros_like(mean), where=mean > 0)
            most, channels = max(most, ratio.max()), channels + ratio.size
            large += int((ratio >= LARGE).sum())
    if large:
        return (
            f"{large} of {channels} channels have a weight of over {LARGE:g} times their root mean "
            f"square, up to {most:.0f} times"
        )
    bits = board.units[name].bits[board.units[name].options.get(reference, FLOAT)][0]
    return f"its {board.units[name].parameters:,} weights have {bits} bits"


def _activations_why(board, stage, name, reference):
    """Says what the values that a layer computes are like."""
    best = None
    for y in stage.values_of(board.wrappers(name)):
        if y.ndim < 2 or not y.size:
            continue
        y = np.abs(y).reshape(-1, y.shape[-1]).astype(float)
        ranges = y.max(axis=0)
        usual = float(np.median(ranges))
        rare = float(np.percentile(y, 99.9))
        wide = int((ranges > WIDE * usual).sum())
        found = []
        if usual > 0 and wide:
            ratio = ranges.max() / usual
            verb = "has" if wide == 1 else "have"
            found.append(
                (
                    ratio,
                    f"{wide} of {len(ranges)} channels {verb} a range {ratio:.0f}x the median's",
                )
            )
        if rare > 0 and ranges.max() > WIDE * rare:
            ratio, count = ranges.max() / rare, int((ranges > WIDE * rare).sum())
            verb = "has" if count == 1 else "have"
            found.append(
                (
                    ratio,
                    f"{count} of {len(ranges)} channels {verb} a range {ratio:.0f}x the 99.9th "
                    "percentile",
                )
            )
        best = max([*found, best or (0.0, "")])
    if best and best[1]:
        return best[1]
    bits = board.units[name].bits[board.units[name].options.get(reference, FLOAT)][1]
    return f"what it computes has {bits} bits"

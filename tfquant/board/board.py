"""`Board`: a model whose layers are switched between schemes, without building it again.

The model is built once for each scheme; then each layer computes with the weights and grids that it
has in the model of one scheme or another, or in float. What comes out is what a mixed model
computes, but for single steps, in a fraction of the time that it takes to build one.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import tree

from tfquant.calibrate.judge import Judge, before_squashing
from tfquant.calibrate.norms import choose_norms
from tfquant.calibrate.ranges import choose_ranges
from tfquant.calibrate.real import RealCalls
from tfquant.calibrate.rows import split
from tfquant.configs.linear import LinearConfig
from tfquant.graph.graph import trace
from tfquant.graph.runner import Runner
from tfquant.graph.select import Place, unambiguous
from tfquant.graph.walk import all_layers, walk
from tfquant.numerics.arrays import array_of
from tfquant.optimize import EFFORTS, optimize
from tfquant.quantizers import RealScope, RecordingScope, Static, Watch
from tfquant.registry import Recipe, Scheme, schemes
from tfquant.registry.recipe import FLOAT
from tfquant.rewrite import quantize_model
from tfquant.wrappers import CallHook, Quantize, QuantizeWrapper
from tfquant.wrappers.annotate import inner
from tfquant.wrappers.norms import in_float, leave_in_float

# Rows whose means correct the biases of layers.
MEAN_ROWS = 64

# Bits of what is float: more than any grid has.
FLOAT_BITS = 32


@dataclasses.dataclass
class Unit:
    """A layer of the user's model that has one scheme, with what it was taken apart into.

    Attributes:
        name: What a recipe calls it.
        kind: Its type.
        parameters: Number of its quantized weights.
        wrappers: Names of its `QuantizeWrapper`s.
        with_it: Names of layers that its kernels compute as well: batch norms, activations.
        options: Dict from each choice that the device has for it to the choice that stands for
            it: one of several that give it the same widths.
        bits: Dict from those that stand for others to `(weight bits, activation bits)`, 32 where
            they are float.
    """

    name: str
    kind: str
    parameters: int = 0
    wrappers: list = dataclasses.field(default_factory=list)
    with_it: list = dataclasses.field(default_factory=list)
    options: dict = dataclasses.field(default_factory=dict)
    bits: dict = dataclasses.field(default_factory=dict)

    @property
    def has_weights(self) -> bool:
        """Whether weights are quantized, and not only what it computes."""
        return self.parameters > 0


def check_choices(choices) -> dict:
    """Returns the schemes that layers choose from by name, `None` for float.

    Raises:
        ValueError: If there is none but float, one is named twice, or one quantizes activations
            when the model runs.
    """
    if isinstance(choices, str | Scheme) or not all(isinstance(x, str | Scheme) for x in choices):
        raise ValueError(
            "`choices` must be a list of names of schemes, `Scheme`s and 'float'. Received: "
            f"{choices!r}."
        )
    found = {}
    for choice in choices:
        scheme = None if choice == FLOAT else schemes.get(choice)
        name = FLOAT if scheme is None else scheme.name
        if name in found:
            raise ValueError(f"`choices` must differ. Received: {name!r} twice.")
        if scheme is not None and scheme.dynamic:
            raise ValueError(
                "`choices` must have activations with grids, or in float. Received: "
                f"{name!r}, which quantizes them when the model runs."
            )
        found[name] = scheme and dataclasses.replace(scheme, edge_weight_bits=None)
    if not any(found.values()):
        raise ValueError(f"`choices` must have a scheme beside 'float'. Received: {choices!r}.")
    return found


class Board:
    """A model whose layers are switched between schemes.

    Args:
        model: Float model, functional.
        samples: Rows to calibrate on: one array for each input.
        choices: From `check_choices`.
        effort: A name of `EFFORTS`: what finds ranges, and integers.
        device: As of `quantize_model`.
        seed: Of what is drawn by chance.
        batch_size: Rows to compute at once.
        tell: Function of words that say what is being done.

    Attributes:
        units: The `Unit`s by name, in the order of the model.
        choices: As given, `"float"` added.
        values_per_row: Activations that the model computes for a row.
        runner: `Runner` of the model: what is in front of a softmax or sigmoid that ends it, and
            behind it its outputs.
        heads: Number of the former, and of the latter.
    """

    def __init__(
        self,
        model,
        samples,
        choices,
        *,
        effort="default",
        device=None,
        seed=0,
        batch_size=32,
        tell=lambda words: None,
    ):
        self.model, self.choices = model, {**choices, FLOAT: None}
        places = [Place(f"{inside}{inner(x).name}", inner(x), x) for inside, x in walk(model)]
        self._words = unambiguous(places)
        self._samples, self._batch_size, self._device = samples, batch_size, device
        widths = lambda scheme: (not scheme.static, scheme.activation_bits or FLOAT_BITS)  # noqa: E731
        given = {name: scheme for name, scheme in self.choices.items() if scheme is not None}
        structure = min(given.values(), key=widths)
        tell("Building")
        self._base, tags = self._build(structure)
        self._twins = {name: self._build(scheme)[0] for name, scheme in given.items()}
        self._wrappers = {x.name: x for x in all_layers(self._base) if _wraps(x)}
        self._peers = {
            name: {x.name: x for x in all_layers(twin) if _wraps(x) and not x.in_float}
            for name, twin in self._twins.items()
        }
        heads = [before_squashing(self._base, y) for y in self._base.outputs]
        self.heads = len(heads)
        self.runner = Runner(keras.Model(self._base.inputs, [*heads, *self._base.outputs]))
        self.values_per_row = self.runner.values_per_row
        self._keys, self._readers, self._makers = {}, {}, {}
        self._note_places()
        self._grids = {}
        self._calls = {name: RealCalls() for name in self.choices}
        self._ranges(EFFORTS[effort].observer, tell)
        self.units = self._find_units(tags)
        # What moves values and has no grid of its own.
        self._movers = {self._wrappers[w]: tag for w, tag in tags.items() if tag not in self.units}
        self._unit_of = {w: unit.name for unit in self.units.values() for w in unit.wrappers}
        if EFFORTS[effort].algorithm:
            for name, twin in self._twins.items():
                if any(x.weight_quantizers for x in self._peers[name].values()):
                    tell(f"Integers of {name}")
                    settings = {"seed": seed, "batch_size": batch_size, "progress": False}
                    optimize(twin, samples, EFFORTS[effort].algorithm, **settings)
        if EFFORTS[effort].bias_correction:
            tell("Means")
            self._correct_means()

    def _build(self, scheme):
        """Returns the model under one scheme, and of each wrapper's name the layer it came from.

        The name of an algorithm is what a recipe hands through to the wrapper of a layer: on the
        way it stands for the layer.
        """
        recipe = Recipe(FLOAT)
        for layer, word in self._words.items():
            if not isinstance(layer, keras.Model):
                recipe = recipe.where(word, scheme, algorithm=word)
        q = quantize_model(self.model, recipe, device=self._device)
        tags = {}
        for wrapper in filter(_wraps, all_layers(q)):
            tags[wrapper.name], wrapper.algorithm = wrapper.algorithm, None
        return q, tags

    def _note_places(self):
        """Notes whose quantizer each is, and who reads what a `Quantize` rounds."""
        self._owners = {}
        for layer in all_layers(self._base):
            for key, quantizer in _quantizers(layer):
                self._keys.setdefault(quantizer, key)
                self._owners[key] = layer
        made = {x: call.layer for call in self.runner.calls for x in call.flat_outputs}
        for call in self.runner.calls:
            self._makers.setdefault(call.layer, [])
            for x in call.inputs:
                maker = made.get(x)
                self._makers[call.layer].append(maker)
                self._readers.setdefault(maker, []).append(call.layer)

    def _ranges(self, observer, tell):
        """Sets the grids of all models, on what the float model computes."""
        told = {}
        for name in self._twins:
            scheme = self.choices[name]
            if scheme.static:
                told.setdefault((scheme.activations, scheme.norms), []).append(name)
        self._grids = {name: {} for name in self._twins}
        watches = {}
        for names in told.values():
            peers = dict(pair for x in all_layers(self._twins[names[0]]) for pair in _quantizers(x))
            watches[names[0]] = Watch(observer), peers
        if not watches:
            return
        tell("Ranges")

        def see(quantizer, x):
            for watch, peers in watches.values():
                key = self._keys.get(quantizer)
                if key in peers:
                    watch.see(peers[key], x)

        size = self.model.inputs[0].shape[0]
        for arrays in self.cut(self._samples):
            with RecordingScope(quantize_weights=False, see=see):
                self.runner(arrays)
        for names in told.values():
            (watch, peers), twin = watches[names[0]], self._twins[names[0]]
            watch.set_params()
            calls = RealCalls()
            rows = split(self._samples, size, self.values_per_row, keep_out=True)
            judge = Judge(twin, rows, calls, deviation=False)
            with CallHook(calls):
                choose_ranges(watch.choices(), judge, self.values_per_row)
            choose_norms(twin, judge)
            for name in names:
                leave_in_float(self._twins[name], in_float(twin))
                found = [p for x in all_layers(self._twins[name]) for p in _quantizers(x)]
                for key, quantizer in found:
                    source = peers.get(key)
                    if source is None or not source.calibrated:
                        continue
                    params = source.numbers()
                    if isinstance(quantizer, Static) and quantizer is not source:
                        quantizer.set_params(params)
                    self._grids[name][key] = params, quantizer.spec
        first = next(iter(told.values()))[0]
        leave_in_float(self._base, in_float(self._twins[first]))
        for name, twin in self._twins.items():
            self._peers[name] = {
                x.name: x for x in all_layers(twin) if _wraps(x) and not x.in_float
            }

    def _find_units(self, tags) -> dict:
        units = {}
        kinds = {word: type(layer).__name__ for layer, word in self._words.items()}
        for name, wrapper in self._wrappers.items():
            tag = tags[name]
            has_grid = any(q is not None for site in wrapper.output_quantizers for q in site)
            if tag is None or not (wrapper.weight_quantizers or has_grid):
                continue
            unit = units.setdefault(tag, Unit(tag, kinds[tag]))
            unit.wrappers.append(name)
            unit.parameters += sum(math.prod(v.shape) for v, _ in wrapper.weight_quantizers)
        for unit in units.values():
            self._note_options(unit)
        graph, owner = trace(self.model), {}
        for node in graph.nodes:
            word = self._words.get(inner(node.origin))
            if word in units:
                owner.update(dict.fromkeys(tree.flatten(node.outputs), units[word]))
            elif word is not None and word not in tags.values() and node.inputs:
                unit = owner.get(node.inputs[0])
                if unit is not None and word not in unit.with_it:
                    unit.with_it.append(word)
                    owner.update(dict.fromkeys(tree.flatten(node.outputs), unit))
        order = list(self._words.values())
        return dict(sorted(units.items(), key=lambda pair: order.index(pair[0])))

    def _note_options(self, unit):
        """Notes which choices a layer has, and which of them are the same to it."""
        stands = {}
        for choice, scheme in self.choices.items():
            bits = (FLOAT_BITS, FLOAT_BITS)
            if scheme is not None:
                peers = self._peers[choice]
                found = [peers[name] for name in unit.wrappers if name in peers]
                narrow = [_bits(q) for w in found for _, q in w.weight_quantizers]
                if unit.parameters and not narrow:
                    continue  # The device computes it in float.
                activations = scheme.activation_bits if scheme.static else FLOAT_BITS
                grids = [
                    q.spec.num_bits
                    for w in found
                    for site in w.output_quantizers
                    for q in site
                    if q is not None
                ]
                if not unit.parameters and not grids:
                    continue
                bits = max(narrow, default=FLOAT_BITS), activations or FLOAT_BITS
            unit.options[choice] = stands.setdefault(bits, choice)
            unit.bits.setdefault(unit.options[choice], bits)

    def cut(self, arrays):
        """Yields rows in batches."""
        size = self.model.inputs[0].shape[0] or self._batch_size
        stop = len(arrays[0])
        if self.model.inputs[0].shape[0] is not None:
            stop -= stop % size
        for start in range(0, stop, size):
            yield [x[start : min(start + size, stop)] for x in arrays]

    def _correct_means(self):
        """Gives each channel the mean that it has in the float model, on what that computes.

        shift = mean(float output) - mean(output of quantized weights)
        """
        count, moved = {}, {}

        def look(wrapper, args, kwargs):
            y = self._in_float(wrapper, args, kwargs)
            config = wrapper.quantize_config
            if not isinstance(config, LinearConfig) or not _has_bias(wrapper):
                return y
            axes = tuple(range(len(y.shape) - 1))
            mean = np.mean(array_of(y), axes)
            count[wrapper] = count.get(wrapper, 0) + 1
            for choice, peers in self._peers.items():
                twin = peers.get(wrapper.name)
                if twin is None:
                    continue
                with RealScope():
                    found = self._calls[choice](twin, args, kwargs)
                if found is not None:
                    shift = mean - np.mean(array_of(found), axes)
                    moved[twin, choice] = moved.get((twin, choice), 0) + shift
            return y

        rows = [x[:MEAN_ROWS] for x in self._samples]
        for arrays in self.cut(rows):
            with RecordingScope(quantize_weights=False, see=lambda *_: None), CallHook(look):
                self.runner(arrays)
        for (twin, choice), shift in moved.items():
            shift = shift / count[self._wrappers[twin.name]]
            if np.isfinite(shift).all():
                self._calls[choice].rescale(twin, None, shift)

    def _in_float(self, wrapper, args, kwargs):
        with RecordingScope(quantize_weights=False):
            y = self._calls[FLOAT](wrapper, args, kwargs)
            return wrapper.quantize_config.real_call(wrapper, args, kwargs) if y is None else y

    def everywhere(self, choice: str) -> dict:
        """Returns the choices of all layers where each has one, or the widest where it cannot."""
        return {
            unit.name: unit.options.get(choice) or unit.options.get(FLOAT)
            for unit in self.units.values()
        }

    def follow(self, chosen: dict) -> dict:
        """Returns choices of all layers, those without weights with those of what they read.

        Args:
            chosen: Dict from the names of layers with weights to choices.

        Returns:
            `chosen`, and for each other layer, in order, the choice of the narrowest activations
            among what it reads.
        """
        full = dict(chosen)
        for call in self.runner.calls:
            unit = self._unit(call.layer)
            if unit is None or unit.name in full:
                continue
            read = [full[name] for name in self._sources(call.layer) if name in full]
            read = [x for x in read if x in unit.options] or list(unit.options)[:1]
            narrow = min(read, key=lambda x: unit.bits[unit.options[x]][1])
            full[unit.name] = unit.options[narrow]
        return full

    def _unit(self, layer):
        return self.units.get(self._unit_of.get(getattr(layer, "name", None)))

    def _sources(self, layer, seen=()):
        """Returns the names of the nearest units that a layer reads."""
        found = []
        for maker in self._makers.get(layer, ()):
            if maker is None or maker in seen:
                continue
            unit = self._unit(maker)
            if unit is not None:
                found.append(unit.name)
            else:
                found += self._sources(maker, (*seen, maker))
        return found

    def readers(self, name: str) -> list[str]:
        """Returns the layers with weights that read a layer, or what moves its values."""
        found, waiting, seen = [], [self._wrappers[x] for x in self.units[name].wrappers], set()
        while waiting:
            for reader in self._readers.get(waiting.pop(), ()):
                unit = self._unit(reader)
                if reader in seen or (unit is not None and unit.name == name):
                    continue
                seen.add(reader)
                if unit is not None and unit.has_weights:
                    if unit.name not in found:
                        found.append(unit.name)
                else:
                    waiting.append(reader)
        return found

    def settings(self, chosen: dict) -> dict:
        """Returns what each wrapper and `Quantize` of the model is switched to.

        Args:
            chosen: Dict from the names of all layers to choices.
        """
        found = {}
        for wrapper in self._wrappers.values():
            unit = self._unit(wrapper)
            if unit is not None:
                found[wrapper] = chosen.get(unit.name, FLOAT)
        for call in self.runner.calls:
            layer = call.layer
            if not _wraps(layer) or layer in found:
                continue
            read = [found.get(maker, FLOAT) for maker in self._makers.get(layer, ()) if maker]
            found[layer] = read[0] if read else FLOAT
        for call in reversed(self.runner.calls):
            layer = call.layer
            if isinstance(layer, Quantize):
                # They enter the device as the widest integers that are read.
                read = [found.get(x, FLOAT) for x in self._readers.get(layer, ()) if _wraps(x)]
                static = [x for x in read if self.choices[x] is not None and self._grids.get(x)]
                width = lambda x: self.choices[x].activation_bits  # noqa: E731
                found[layer] = max(static, key=width, default=FLOAT)
        return found

    def recipe(self, chosen: dict) -> Recipe:
        """Returns the recipe of choices of all layers."""
        used = [x for x in self.choices if x in chosen.values() and self.choices[x] is not None]
        base = min(used, key=lambda x: self.choices[x].activation_bits or FLOAT_BITS, default=FLOAT)
        recipe = Recipe(self.choices[base] or FLOAT)
        for unit in self.units.values():
            choice = chosen[unit.name]
            if choice == FLOAT:
                recipe = recipe.skip(unit.name, *unit.with_it)
            elif unit.has_weights or choice != base:
                recipe = recipe.where(unit.name, self.choices[choice])
        settings = self.settings(chosen)
        for wrapper, name in self._movers.items():
            choice = settings[wrapper]
            if choice == FLOAT and recipe.scheme is not None:
                recipe = recipe.skip(name)
            elif choice not in (FLOAT, base):
                recipe = recipe.where(name, self.choices[choice])
        return recipe

    def grid(self, choice: str, key):
        """Returns `(params, spec)` of a grid under a choice, `None` where it has none.

        Args:
            choice: Name.
            key: Which grid; see `key_of`.
        """
        return self._grids.get(choice, {}).get(key)

    def key_of(self, quantizer):
        """Returns what calls a quantizer of the model by one name under all choices."""
        return self._keys.get(quantizer)

    def owner(self, key):
        """Returns the wrapper or `Quantize` that a grid is of."""
        return self._owners.get(key)

    def call(self, wrapper, choice, args, kwargs, weights: bool = True):
        """Computes a wrapper in front of its clamp, in real arithmetic.

        Args:
            wrapper: `QuantizeWrapper`.
            choice: Name of the choice whose weights it has.
            args: Positional arguments.
            kwargs: Keyword arguments.
            weights: Whether it has them; else those of the float model.
        """
        twin = self._peers.get(choice, {}).get(wrapper.name)
        if twin is None or not weights:
            return self._in_float(wrapper, args, kwargs)
        y = self._calls[choice](twin, args, kwargs)
        return twin.quantize_config.real_call(twin, args, kwargs) if y is None else y

    def twin_model(self, choice: str):
        """Returns the model of a choice: its grids are set, its biases are not corrected."""
        return self._twins[choice]

    def unit_name(self, wrapper) -> str | None:
        """Returns the name of the layer that a wrapper is of, `None` where it has no choice."""
        return self._unit_of.get(wrapper.name)

    def casts(self, chosen: dict) -> int:
        """Returns how often values go from one width to another between layers.

        Args:
            chosen: Dict from the names of all layers to choices.
        """
        settings, found = self.settings(chosen), set()
        width = lambda layer: self._width(settings.get(layer, FLOAT))  # noqa: E731
        for call in self.runner.calls:
            if not _wraps(call.layer):
                continue
            for maker in filter(_wraps, self._makers.get(call.layer, ())):
                if width(maker) != width(call.layer):
                    found.add((maker.name, width(call.layer)))
        return len(found)

    def _width(self, choice):
        scheme = self.choices[choice]
        return scheme.activation_bits or FLOAT_BITS if scheme is not None else FLOAT_BITS

    def wrappers(self, name: str) -> list:
        """Returns the wrappers of a layer."""
        return [self._wrappers[x] for x in self.units[name].wrappers]

    def twin(self, wrapper, choice: str):
        """Returns what a wrapper is in the model of a choice, `None` where it is float there."""
        return self._peers.get(choice, {}).get(wrapper.name)


def _wraps(layer):
    return isinstance(layer, QuantizeWrapper)


def _quantizers(layer):
    """Yields the quantizers of activations of a layer, each with a name that all models share."""
    if isinstance(layer, Quantize):
        yield (layer.name, 0, 0), layer.quantizer
    elif _wraps(layer):
        for number, site in enumerate(layer.output_quantizers):
            for index, quantizer in enumerate(site):
                if quantizer is not None:
                    yield (layer.name, number, index), quantizer


def _bits(quantizer):
    return 16 if quantizer.spec is None else quantizer.spec.num_bits


def _has_bias(wrapper):
    """Whether a bias, of the layer or its batch norm, can move the mean of each channel."""
    norm = wrapper.batch_norm
    return norm.center if norm is not None else wrapper.layer.use_bias

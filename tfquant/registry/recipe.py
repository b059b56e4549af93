"""`Recipe`: which scheme, quantizers and algorithm each layer of a model has, as data."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping

import keras

from tfquant.graph.select import Place, class_name, class_of, select, unambiguous
from tfquant.graph.walk import walk
from tfquant.registry import schemes
from tfquant.registry.schemes import Scheme
from tfquant.wrappers import QuantizeConfig
from tfquant.wrappers.annotate import inner

VERSION = 1

# The word for layers that stay float, where a scheme could stand.
FLOAT = "float"

# What a rule may set beside its scheme: fields of `Scheme`, and the recipe's own.
SETTINGS = frozenset(f.name for f in dataclasses.fields(Scheme)) - {"name", "summary", "device"}


@dataclasses.dataclass(frozen=True)
class Row:
    """What one layer has.

    Attributes:
        scheme: `Scheme`, with the families of quantizers in it; `None` for a layer that stays
            float.
        config: `QuantizeConfig` to use in place of the registry's, or `None`.
        algorithm: Name of the algorithm that chooses the layer's integers; `None` for rounding to
            the nearest.
        edges: Whether the first and the last layer of a model have the width that the scheme has
            for them. Not where a rule names a layer.
    """

    scheme: Scheme | None
    config: QuantizeConfig | None = None
    algorithm: str | None = None
    edges: bool = False


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which layers have a row.

    Attributes:
        selector: Name or regular expression, class of layers, or function of a layer.
        row: `Row`.
    """

    selector: str | type | Callable
    row: Row

    def __post_init__(self):
        if isinstance(self.selector, str):
            try:
                re.compile(self.selector)
            except re.error as error:
                raise ValueError(
                    "A selector must be the name of a layer or a regular expression. Received: "
                    f"{self.selector!r} ({error})."
                ) from error
        elif not callable(self.selector):
            raise TypeError(
                "A selector must be a name, a regular expression, a class of layers, or a "
                f"function of a layer. Received: {self.selector!r}."
            )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which scheme, quantizers and algorithm each layer of a model has.

    Frozen: `where` and `skip` return new recipes. The first rule that selects a layer wins; a
    layer that none selects has the recipe's own scheme. What a layer is taken apart into, and what
    is inside a nested model that was selected, has the row of the whole.

    A selector is

    * a name of a layer, or `"outer/inner"` for one of a nested model (`"/name"` for one of none);
      if there is none of that name, a regular expression that must match the whole of either;
    * a class of layers;
    * a function of a layer.

    One that selects nothing is an error when the recipe meets a model.

    Example:

    ```python
    recipe = (
        tfq.Recipe("w8a8")
        .where("block_[3-5]/.*", "w4a8")
        .where(keras.layers.Dense, "w8a16", weight_quantizer="learned_step")
        .skip("head")
    )
    q = tfq.quantize_model(model, recipe)
    recipe.save("recipe.yaml")
    ```

    Args:
        scheme: Name of a scheme or a `Scheme`; `"float"` leaves what no rule selects alone.
        rules: `Rule`s, in order.
        algorithm: Name of the algorithm that chooses integers, or `None`.

    Raises:
        ValueError: If the scheme is unknown.
    """

    scheme: Scheme | str | None = "w8a8"
    rules: tuple[Rule, ...] = ()
    algorithm: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "scheme", _scheme(self.scheme))
        object.__setattr__(self, "rules", tuple(self.rules))
        _check_algorithm(self.algorithm)

    @classmethod
    def of(cls, recipe_or_scheme) -> "Recipe":
        """Returns a recipe as it is, and the recipe of a scheme."""
        return recipe_or_scheme if isinstance(recipe_or_scheme, cls) else cls(recipe_or_scheme)

    @property
    def base(self) -> Row:
        """What layers have that no rule selects."""
        return Row(self.scheme, algorithm=self.algorithm, edges=True)

    @property
    def static(self) -> bool:
        """Whether activations of some layer have grids that calibration sets."""
        found = [self.scheme, *(rule.row.scheme for rule in self.rules)]
        return any(scheme is not None and scheme.static for scheme in found)

    @property
    def names_algorithms(self) -> bool:
        """Whether it names an algorithm for some layer."""
        return any((self.algorithm, *(rule.row.algorithm for rule in self.rules)))

    def where(self, selector, what=None, /, **settings) -> "Recipe":
        """Returns a recipe with one rule more, behind those there are.

        Args:
            selector: Which layers; see the class.
            what: Name of a scheme, a `Scheme`, `"float"`, a `QuantizeConfig`, or a dict of
                settings; `None` for the recipe's own scheme.
            **settings: Fields of `Scheme` that differ, such as `weight_bits` or
                `weight_quantizer`; and `algorithm`.

        Raises:
            ValueError: If a scheme or a setting is unknown.
            TypeError: If the selector is none, or `what` is nothing of the above.
        """
        if isinstance(what, Mapping):
            what, settings = None, {**what, **settings}
        algorithm = settings.pop("algorithm", self.algorithm)
        _check_algorithm(algorithm)
        config = what if isinstance(what, QuantizeConfig) else None
        scheme = self.scheme if what is None or config is not None else _scheme(what)
        return self._with(Rule(selector, Row(_changed(scheme, settings), config, algorithm)))

    def skip(self, *selectors) -> "Recipe":
        """Returns a recipe in which the layers that `selectors` select stay float.

        It comes behind the rules there are, as every rule does.
        """
        return self._with(*(Rule(selector, Row(None)) for selector in selectors))

    def with_settings(self, **chosen) -> "Recipe":
        """Returns a recipe with other settings of schemes throughout, `None` for each row's."""
        change = lambda scheme: None if scheme is None else dataclasses.replace(scheme, **chosen)  # noqa: E731
        rules = [
            Rule(rule.selector, dataclasses.replace(rule.row, scheme=change(rule.row.scheme)))
            for rule in self.rules
        ]
        return dataclasses.replace(self, scheme=change(self.scheme), rules=tuple(rules))

    def rows(self, model) -> dict:
        """Returns the `Row` of each layer of `model`, nested models and what is in them included.

        Raises:
            ValueError: If a selector selects nothing.
        """
        return self.meet(model)[0]

    def meet(self, model) -> tuple[dict, "Recipe"]:
        """Returns the rows of `model`, and the recipe of names and registered classes alone.

        Functions, and classes that are registered nowhere, become the names of what they select.

        Raises:
            ValueError: If a selector selects nothing.
        """
        places = [Place(f"{inside}{inner(x).name}", inner(x), x) for inside, x in walk(model)]
        words, rows, rules = unambiguous(places), {}, []
        for rule in self.rules:
            selector, found = rule.selector, select(rule.selector, places, model.name)
            for place in found:
                rows.setdefault(place.holder, rule.row)
            if not (isinstance(selector, str) or class_name(selector)):
                names = sorted({words[place.layer] for place in found})
                selector = names[0] if len(names) == 1 else "|".join(map(re.escape, names))
            rules.append(Rule(selector, rule.row))
        rows = {place.holder: rows.get(place.holder, self.base) for place in places}
        return rows, dataclasses.replace(self, rules=tuple(rules))

    def _with(self, *rules):
        return dataclasses.replace(self, rules=(*self.rules, *rules))

    def get_config(self) -> dict:
        """Returns plain values that `from_config` reads back.

        Raises:
            ValueError: If a selector is a function, or a class that is registered nowhere.
        """
        rules = [{"where": _write_selector(x.selector), **_write_row(x.row)} for x in self.rules]
        config = {"version": VERSION, "scheme": _write_scheme(self.scheme)}
        return {**config, "algorithm": self.algorithm, "rules": rules}

    @classmethod
    def from_config(cls, config: dict) -> "Recipe":
        """Returns the recipe that `get_config` described.

        Raises:
            ValueError: If the version or a key is unknown.
        """
        if not isinstance(config, Mapping) or config.get("version") != VERSION:
            version = config.get("version") if isinstance(config, Mapping) else config
            raise ValueError(
                f"A recipe of version {VERSION} is expected. Received: version {version!r}."
            )
        _check_keys(config, ("version", "scheme", "algorithm", "rules"), "A recipe")
        rules = [_read_rule(rule) for rule in config.get("rules", ())]
        scheme = _read_scheme(config.get("scheme", "w8a8"))
        return cls(scheme, tuple(rules), config.get("algorithm"))

    def to_json(self) -> str:
        """Returns the recipe as JSON; `from_json` reads it."""
        return json.dumps(self.get_config(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Returns the recipe that `to_json` wrote.

        Raises:
            ValueError: If it is no JSON, or no recipe.
        """
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"A recipe in JSON is expected. Received: {error}.") from error
        return cls.from_config(config)

    def save(self, path) -> None:
        """Writes the recipe to a `.json`, `.yaml` or `.yml` file."""
        path = pathlib.Path(path)
        text = self.to_json() + "\n"
        if _is_yaml(path):
            # By way of JSON, in which tuples are lists: YAML has tags of its own for them.
            text = _yaml().safe_dump(json.loads(text), sort_keys=False)
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path) -> "Recipe":
        """Returns the recipe in a `.json`, `.yaml` or `.yml` file.

        Raises:
            ValueError: If it holds no recipe.
        """
        path = pathlib.Path(path)
        is_yaml = _is_yaml(path)
        yaml = _yaml() if is_yaml else None
        try:
            text = path.read_text(encoding="utf-8")
            return cls.from_config(yaml.safe_load(text)) if is_yaml else cls.from_json(text)
        except UnicodeDecodeError as error:
            raise ValueError(f"A recipe is expected. Received: '{path}', no text.") from error
        except Exception as error:  # A file may hold any config, of anybody's class.
            if isinstance(error, OSError):
                raise
            raise ValueError(f"A recipe is expected in '{path}'. {error}") from error


def _scheme(x) -> Scheme | None:
    return None if x is None or x == FLOAT else schemes.get(x)


def _changed(scheme, settings):
    """Returns `scheme` with some fields changed."""
    if not settings:
        return scheme
    _check_keys(settings, sorted(SETTINGS), "A rule")
    if scheme is None:
        raise ValueError(
            f"A float layer has no settings. Received: {', '.join(sorted(settings))}; name a "
            "scheme as well."
        )
    return dataclasses.replace(scheme, **settings)


def _check_algorithm(algorithm):
    if algorithm is not None and not isinstance(algorithm, str):
        raise TypeError(f"`algorithm` must be a name or None. Received: {algorithm!r}.")


def _check_keys(found, known, what):
    unknown = [key for key in found if key not in known]
    if unknown:
        raise ValueError(
            f"{what} has the keys {', '.join(known)}. Received: {', '.join(map(repr, unknown))}."
        )


def _write_selector(selector):
    if isinstance(selector, str):
        return selector
    name = class_name(selector)
    if name is None:
        what = getattr(selector, "__name__", repr(selector))
        kind = "a class that is registered nowhere" if isinstance(selector, type) else "a function"
        raise ValueError(
            f"A recipe that is saved must select layers by name or by class. Received: {what!r}, "
            f"{kind}."
        )
    return {"type": name}


def _read_selector(x):
    if isinstance(x, str):
        return x
    _check_keys(x, ("type",), "A selector")
    return class_of(x["type"])


def _write_row(row) -> dict:
    fields = {"scheme": _write_scheme(row.scheme)}
    if row.config is not None:
        fields["config"] = keras.saving.serialize_keras_object(row.config)
    if row.algorithm is not None:
        fields["algorithm"] = row.algorithm
    if row.edges:
        fields["edges"] = True
    return fields


def _read_rule(fields) -> Rule:
    _check_keys(fields, ("where", "scheme", "config", "algorithm", "edges"), "A rule")
    if "where" not in fields or "scheme" not in fields:
        raise ValueError(f"A rule needs `where` and `scheme`. Received: {', '.join(fields)}.")
    config = fields.get("config")
    if config is not None:
        config = keras.saving.deserialize_keras_object(config)
    scheme, edges = _read_scheme(fields["scheme"]), bool(fields.get("edges", False))
    row = Row(scheme, config, fields.get("algorithm"), edges)
    _check_algorithm(row.algorithm)
    return Rule(_read_selector(fields["where"]), row)


def _write_scheme(scheme):
    """Returns the name of a scheme, or its fields if they are not those of the table."""
    if scheme is None:
        return FLOAT
    if schemes.SCHEMES.get(scheme.name) == scheme:
        return scheme.name
    fields = dataclasses.asdict(scheme)
    return {name: x for name, x in fields.items() if name not in ("summary", "device")}


def _read_scheme(x) -> Scheme | None:
    if not isinstance(x, Mapping):
        return _scheme(x)
    _check_keys(x, [f.name for f in dataclasses.fields(Scheme)], "A scheme")
    return Scheme(**x)


def _is_yaml(path):
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(
            f"A file named .json, .yaml or .yml is expected for a recipe. Received: '{path}'."
        )
    return path.suffix != ".json"


def _yaml():
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "Recipes in YAML need PyYAML: pip install pyyaml. A .json file needs nothing."
        ) from error
    return yaml

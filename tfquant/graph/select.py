"""Choosing layers of a model: by name, by regular expression, by class, by function."""

import collections
import dataclasses
import difflib
import re

import keras


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer stands in a model.

    Attributes:
        path: Names of the models around it and its own, such as `"conv"` or `"encoder/conv"`.
        layer: The layer.
        holder: What the model holds there: the layer, or a mark on it.
    """

    path: str
    layer: object
    holder: object

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.path.rpartition("/")[2]

    @property
    def words(self) -> tuple[str, ...]:
        """What a selector may call it."""
        return self.path, self.name, f"/{self.path}"


def select(selector, places: list[Place], model: str) -> list[Place]:
    """Returns the places that `selector` selects, and those inside the models among them.

    Args:
        selector: One of the `words` of a layer, or, where there is none of that name, a regular
            expression that matches the whole of one; a class of layers; or a function of a layer.
        places: Places of a model.
        model: Its name.

    Raises:
        ValueError: If there are none.
    """
    hits = [place for place in places if _hits(selector, place)]
    if isinstance(selector, str):
        hits = [place for place in hits if selector in place.words] or hits
    inside = tuple(f"{place.path}/" for place in hits)
    found = [place for place in places if place in hits or place.path.startswith(inside)]
    if not found:
        of_class = isinstance(selector, type)
        known = [type(x.layer).__name__ if of_class else x.name for x in places]
        word = selector if isinstance(selector, str) else getattr(selector, "__name__", "")
        close = difflib.get_close_matches(word, known, 3) or list(dict.fromkeys(known))[:8]
        raise ValueError(
            f"A recipe must name layers that the model has. It names one that '{model}' does not "
            f"have. Received: {word if of_class else selector!r}. Did you mean one of {close}?"
        )
    return found


def unambiguous(places: list[Place]) -> dict:
    """Returns for each layer a selector that selects it and no other."""
    count, words = collections.Counter(place.name for place in places), {}
    for place in places:
        words.setdefault(place.layer, place.path if count[place.name] == 1 else f"/{place.path}")
    return words


def class_name(selector) -> str | None:
    """Returns the name by which a class of layers is found again, `None` where there is none."""
    if not isinstance(selector, type):
        return None
    if vars(keras.layers).get(selector.__name__) is selector:
        return selector.__name__
    name = keras.saving.get_registered_name(selector)
    return name if keras.saving.get_registered_object(name) is selector else None


def class_of(name: str) -> type:
    """Returns the class of layers that `class_name` calls `name`.

    Raises:
        ValueError: If there is none.
    """
    found = vars(keras.layers).get(name) or keras.saving.get_registered_object(name)
    if not isinstance(found, type):
        raise ValueError(
            "A selector must name a class of `keras.layers`, or one that is registered with "
            f"Keras. Received: {name!r}."
        )
    return found


def _hits(selector, place):
    if isinstance(selector, str):
        return any(selector == word or re.fullmatch(selector, word) for word in place.words)
    if isinstance(selector, type):
        return isinstance(place.layer, selector)
    return bool(selector(place.layer))

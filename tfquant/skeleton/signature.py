"""What inputs and outputs of a file are called."""

from keras import tree

from tfquant.rewrite.lower import Lowered
from tfquant.wrappers import Quantize


def input_names(lowered: Lowered) -> list[str]:
    """Returns the names of a model's inputs: keys of a dict, else those of the tensors."""
    model = lowered.model
    return _unique(_keys(model.input) or [x.name for x in model.inputs])


def output_names(lowered: Lowered) -> list[str]:
    """Returns the names of a model's outputs: keys of a dict, else those of the user's layers."""
    model = lowered.model
    units = {x: unit for unit in lowered.units for x in unit.outputs}
    ends = zip(model.outputs, model.output_names, strict=True)
    return _unique(_keys(model.output) or [_layer_name(x, name, units) for x, name in ends])


def _keys(structure):
    """Returns the keys of a dict, one for each of its flat values; `None` of anything else."""
    if not isinstance(structure, dict):
        return None
    named = {}
    for key, value in structure.items():
        count = len(tree.flatten(value))
        names = [f"{key}_{number}" for number in range(count)] if count > 1 else [str(key)]
        named[key] = tree.pack_sequence_as(value, names)
    return tree.flatten(named)


def _layer_name(x, name, units):
    """Returns the name of the user's layer that computes `x`, which Keras calls `name`."""
    unit = units.get(x)
    while unit is not None and isinstance(unit.layer, Quantize) and unit.inputs[0] is not x:
        x = unit.inputs[0]
        unit = units.get(x)
    name = name if unit is None else unit.name
    # An activation that was taken out of its layer is called `layer_activation`.
    wholes = [u.name for u in units.values() if name.startswith(f"{u.name}_") and u is not unit]
    return max(wholes, key=len, default=name)


def _unique(names):
    """Returns names of which each is another."""
    found = []
    for name in names:
        taken, number = name, 0
        while taken in found:
            number += 1
            taken = f"{name}_{number}"
        found.append(taken)
    return found

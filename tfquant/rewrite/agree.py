"""Which tensors of a model lie on one grid."""

import collections

from keras import tree

from tfquant.graph.graph import real
from tfquant.registry.elementwise import OutputConfig, SameGridConfig
from tfquant.rewrite.choose import Choices
from tfquant.wrappers import QuantizeAnnotate


class Agreement:
    """Groups tensors whose grids agree: steps of an unrolled layer, branches of a concatenation.

    Args:
        choices: `Choices`.

    Attributes:
        groups: Dict from the id of a tensor to the name of its group.
    """

    def __init__(self, choices: Choices):
        self.units, self.configs = choices.units, choices.configs
        self.unit_of = {id(x): u for u in self.units for x in tree.flatten(u.outputs)}
        self.groups = {}
        self._group_steps(choices.graph.unfolded)
        self._group_concatenations()

    def _group_steps(self, unfolded):
        """Gives what an unrolled layer computes again and again one grid."""
        parts = {
            id(x.layer): x
            for model in unfolded
            for x in model.layers
            if isinstance(x, QuantizeAnnotate)
        }
        units = [u for u in self.units if id(u.node.layer) in parts and not self.keeps_grid(u)]
        count = collections.Counter(id(unit.node.layer) for unit in units)
        for unit in units:
            if count[id(unit.node.layer)] > 1:
                for x in tree.flatten(unit.outputs):
                    self.groups[id(x)] = unit.node.clone.name

    def _group_concatenations(self):
        """Gives the branches of each concatenation one grid: it moves integers as they are."""
        for number, unit in enumerate(self.units):
            branches = real(unit.node.inputs)
            if not self.keeps_grid(unit) or len(branches) < 2:
                continue
            sources = [id(self.source(x)) for x in branches]
            names = {self.groups[key] for key in sources if key in self.groups}
            group = min(names, default=f"{unit.node.layer.name}#{number}")
            for key, name in list(self.groups.items()):
                if name in names:
                    self.groups[key] = group
            self.groups.update(dict.fromkeys(sources, group))

    def keeps_grid(self, unit) -> bool:
        """Whether the output of a unit lies on the grid of its inputs."""
        return isinstance(self.configs[id(unit.node)], SameGridConfig)

    def source(self, tensor):
        """Returns the tensor that `tensor`'s grid comes from."""
        unit = self.unit_of.get(id(tensor))
        while unit is not None and self.keeps_grid(unit) and real(unit.node.inputs):
            tensor = real(unit.node.inputs)[0]
            unit = self.unit_of.get(id(tensor))
        return tensor

    def is_fixed(self, tensor) -> bool:
        """Whether the device dictates the grid of `tensor`, so that no group can change it."""
        unit = self.unit_of.get(id(self.source(tensor)))
        config = self.configs[id(unit.node)] if unit else None
        return isinstance(config, OutputConfig) and config.fixed is not None

"""Which tensors of a model lie on a grid, which share one, and where one is brought to another."""

import collections
import dataclasses
import math

import keras
from keras import tree

from tfquant.configs.elementwise import OutputConfig, SameGridConfig
from tfquant.configs.parts import ConstantConfig
from tfquant.graph.graph import Graph, Node, UniqueNames, put_in_place, real
from tfquant.numerics import QuantSpec
from tfquant.quantizers import Fixed, Static
from tfquant.quantizers.families import activation_quantizer
from tfquant.wrappers import Quantize


def place_grids(graph: Graph) -> None:
    """Puts a call of `Quantize` in front of whoever reads integers that are not there.

    They are not there behind a float layer, at an input of the model, and where the integers that
    are there have another width, or another grid than the other branches of a concatenation.

    Args:
        graph: `Graph`, changed in place; `group` of its nodes is set.
    """
    widths = _Widths(graph)
    groups = _Groups(graph, widths)
    for node in graph.nodes:
        node.group = groups.names.get(tree.flatten(node.outputs)[0])
    _Placement(graph, widths, groups).place()


class _Widths:
    """How wide the integers are that the values of each tensor lie on.

    Attributes:
        of: Dict from a tensor to 8 or 16; `None` for a float tensor, which may be missing.
        wanted: Dict from a node to the `QuantSpec` that it brings its inputs to, whatever their
            width; `None` where it takes integers as they come.
    """

    def __init__(self, graph):
        self.graph, self.of, self.wanted = graph, {}, {}
        self._note_all()
        # What only moves an input has the width with which it enters, whoever asks for that.
        entering = {x: self.of_input(x) for x in real(tree.flatten(graph.inputs))}
        widths = {x: found[0].stored_bits for x, found in entering.items() if found}
        said = {
            (x, node.scheme.activations.stored_bits) for x in widths for node in self._readers(x)
        }
        if said != set(widths.items()):
            self.of = widths
            self._note_all()

    def _readers(self, x):
        return [node for node in self.graph.consumers(x) if node.reads_grids]

    def _note_all(self):
        for node in self.graph.nodes:
            self.wanted[node] = self._wanted(node) if node.reads_grids else None
            self._note_outputs(node)

    def _wanted(self, node) -> QuantSpec | None:
        spec = getattr(node.config, "activations", None)
        inputs = node.real_inputs
        if spec is not None or not _keeps_grid(node) or len(inputs) < 2:
            return spec
        # Branches are of one width: that of those which have one, if it is one.
        found = {self.of.get(x) for x in inputs} - {None}
        if len(found) == 1 and node.scheme.activations.stored_bits not in found:
            (width,) = found
            return dataclasses.replace(node.scheme, activation_bits=width).activations
        return node.scheme.activations

    def _note_outputs(self, node):
        config, outputs = node.config, tree.flatten(node.outputs)
        if config is None:
            return
        if isinstance(config, SameGridConfig):
            width = self._width_inside(node)
            self.of.update(dict.fromkeys(outputs, width))
        elif isinstance(config, ConstantConfig):
            self.of.update(dict.fromkeys(outputs, config.activations.stored_bits))
        else:
            for x, spec in zip(outputs, config.output_specs(node.layer), strict=False):
                self.of[x] = spec and spec.stored_bits

    def of_input(self, x) -> tuple | None:
        """Returns the `QuantSpec` that an input of the model enters with, and whose scheme says so.

        They enter the device as the widest integers that are read, whoever reads them. `None` where
        nobody reads integers.
        """
        if x in self.graph.looked_up:
            return None
        readers = self._readers(x)
        found = [(self.wanted[node] or node.scheme.activations, node.scheme) for node in readers]
        return max(found, key=lambda pair: pair[0].stored_bits, default=None)

    def _width_inside(self, node):
        """Returns the width of what a call that keeps its grid reads."""
        first = next(iter(node.real_inputs), None)
        if not node.reads_grids or first is None:
            return self.of.get(first)
        spec = self.wanted[node]
        if spec is None and self.of.get(first) is None:
            spec = node.scheme.activations
        return self.of[first] if spec is None else spec.stored_bits


class _Groups:
    """Tensors whose grids agree: steps of an unrolled layer, branches of a concatenation.

    Attributes:
        names: Dict from a tensor to the name of its group, and from a call that joins tensors to
            that of its branches.
        agrees: Dict from a call that joins tensors and one of them to whether that is on the
            group's grid where it is computed, and not brought to it in front of the call.
        states: Dict from an input of the model that is a state to the `_State` of it.
        outputs: Dict from the tensor that is that state in the next call, likewise.
    """

    def __init__(self, graph, widths):
        self.graph, self.widths = graph, widths
        self.names, self.agrees = {}, {}
        self._group_steps()
        self._group_concatenations()
        self.states, self.outputs = {}, {}
        self._group_states()

    def _group_steps(self):
        """Gives what one call of an unrolled layer computes again and again one grid."""
        nodes = [node for node in self.graph.nodes if node.unrolled and not _keeps_grid(node)]
        count = collections.Counter((node.layer, node.call) for node in nodes)
        for node in nodes:
            if count[node.layer, node.call] > 1:
                group = f"{node.clone.name}@{node.call}"
                self.names.update(dict.fromkeys(tree.flatten(node.outputs), group))

    def _group_concatenations(self):
        """Gives the branches of each concatenation one grid: it moves integers as they are."""
        for number, node in enumerate(self.graph.nodes):
            if not _joins(node):
                continue
            self.agrees.update({(node, x): self._can_agree(node, x) for x in node.real_inputs})
            sources = [self.source(x) for x in node.real_inputs if self.agrees[node, x]]
            names = {self.names[x] for x in sources if x in self.names}
            group = min(names, default=f"{node.layer.name}#{number}")
            for x, name in list(self.names.items()):
                if name in names:
                    self.names[x] = group
            self.names.update(dict.fromkeys([node, *sources], group))

    def _group_states(self):
        """Gives a state one grid, and one width, where it enters the model and where it leaves."""
        inputs, outputs = tree.flatten(self.graph.inputs), tree.flatten(self.graph.outputs)
        for start, end in self.graph.states:
            x, y = inputs[start], outputs[end]
            wanted, width = self.widths.of_input(x), self.widths.of.get(y)
            if wanted is None or width is None or x in self.states or y in self.outputs:
                continue
            spec, scheme = wanted
            source = self.source(y)
            group = self.names.setdefault(source, f"{x.name}#state")
            same = width == spec.stored_bits
            fixed = self._fixed(source) if same else None
            state = _State(group if same else f"{group}:{spec.num_bits}", spec, scheme, fixed)
            self.states[x] = self.outputs[y] = state
            self.names[x] = state.group
            for node in filter(_keeps_grid, self.graph.consumers(y)):
                self._join_state(node, y, state)

    def _join_state(self, node, y, state):
        """Has a sequence of states, which the file may hold once with the last, their grid."""
        (z, *_), width, spec = tree.flatten(node.outputs), self.widths.of[y], state.spec
        if _joins(node):
            old, wanted = self.names[node], self.widths.wanted[node]
            if not self.agrees[node, y] and wanted.stored_bits == spec.stored_bits:
                self.names.update({x: state.group for x, name in self.names.items() if name == old})
        elif width == spec.stored_bits and self.graph.is_output(z) and not self.graph.consumers(z):
            self.widths.wanted[node], self.widths.of[z] = None, width
            self.outputs[z] = state

    def _fixed(self, source):
        """Returns the grid that the device dictates for a tensor, `None` if it does not."""
        producer = None if isinstance(source, Node) else self.graph.producer(source)
        config = producer.config if producer else None
        return config.fixed if isinstance(config, OutputConfig) else None

    def _can_agree(self, node, tensor):
        """Whether what `tensor`'s grid comes from can have the grid of the other branches."""
        width, wanted = self.widths.of.get(tensor), self.widths.wanted[node]
        fixed = self._fixed(self.source(tensor)) is not None
        return not fixed and (width is None or wanted is None or width == wanted.stored_bits)

    def source(self, tensor):
        """Returns the tensor, or the call that brings its branches to it, which a grid is of."""
        node = self.graph.producer(tensor)
        while node is not None and _keeps_grid(node) and node.real_inputs:
            tensor = node.real_inputs[0]
            if not self.agrees.get((node, tensor), True):
                return node
            node = self.graph.producer(tensor)
        return tensor


@dataclasses.dataclass(frozen=True, eq=False)
class _State:
    """A state that enters a model and leaves it.

    Attributes:
        group: Name of the group of its grid.
        spec: `QuantSpec` that it has at both ends.
        scheme: `Scheme` of what reads it.
        fixed: `(scale, zero_point)` where the device dictates the grid, else `None`.
    """

    group: str
    spec: QuantSpec
    scheme: object
    fixed: tuple | None


class _Placement:
    """Puts `Quantize` where it is needed, once for all that need the same."""

    def __init__(self, graph, widths, groups):
        self.graph, self.widths, self.groups = graph, widths, groups
        self.unique = UniqueNames()
        self.made, self.layers, self.nodes = {}, {}, []
        self.inside_norm = {}  # What `_behind_norm` returned, and what it was given.

    def place(self) -> None:
        """Writes the calls into the graph."""
        self._place_inputs()
        for node in self.graph.nodes:
            if node.reads_grids:
                node.read_instead({x: self._argument(node, x) for x in node.real_inputs})
            self.nodes.append(node)
        self.graph.outputs = tree.map_structure(self._output, self.graph.outputs)
        self.graph.nodes[:] = self.nodes
        self.graph.forget_order()
        self._note_norms()

    def _note_norms(self):
        """Notes which norms each `Quantize` is for, if it is for nothing else."""
        made = [node for node in self.nodes if isinstance(node.layer, Quantize)]
        for layer in dict.fromkeys(node.layer for node in made if not node.layer.behind_norm):
            outputs = [node.outputs for node in made if node.layer is layer]
            readers = [reader for x in outputs for reader in self.graph.consumers(x)]
            if all(reader.norms for reader in readers) and not any(
                self.graph.is_output(x) for x in outputs
            ):
                layer.norms = tuple(dict.fromkeys(p for reader in readers for p in reader.norms))

    def _behind_norm(self, x, norms=()):
        """Returns what a call for `norms` is to read in the place of the output of a norm."""
        node = self.graph.producer(x)
        if node is None or not node.norms or (norms and {*norms} <= {*node.norms}):
            return x
        key = x, "behind_norm"
        if key not in self.made:
            scheme, group = node.scheme, self.groups.names.get(x)
            static = Static(node.config.activations)
            quantizer = activation_quantizer(scheme.activation_quantizer, static, group)
            layer = Quantize(
                quantizer,
                device=scheme.device,
                norms=node.norms,
                behind_norm=True,
                name=self.unique(f"quantize_{node.layer.name}"),
            )
            y = keras.KerasTensor(x.shape, x.dtype, name=x.name)
            self.nodes.append(Node(layer, layer, (x,), {}, y))
            self.widths.of[y] = self.widths.of.get(x)
            self.made[key], self.inside_norm[y] = y, x
        return self.made[key]

    def _place_inputs(self):
        """Quantizes the inputs of the model of which any call reads the integers."""
        replaced = {}
        for x in real(tree.flatten(self.graph.inputs)):
            wanted = self.widths.of_input(x)
            if wanted is not None:
                state = self.groups.states.get(x)
                fixed = state and state.fixed
                replaced[x] = self._quantize(x, self.groups.names.get(x), *wanted, fixed)
        for node in self.graph.nodes:
            node.read_instead(replaced)
        self.graph.outputs = put_in_place(self.graph.outputs, replaced)

    def _argument(self, node, x):
        """Returns what `node` is to read in the place of `x`."""
        if x in self.graph.looked_up:
            return x
        width, wanted = self.widths.of.get(x), self.widths.wanted[node]
        if not self.groups.agrees.get((node, x), True):
            return self._quantize(x, self.groups.names[node], wanted, node.scheme)
        # A kernel reads and writes integers of one width.
        if width is None or (wanted is not None and width != wanted.stored_bits):
            spec, group = wanted or node.scheme.activations, self.groups.names.get(x)
            if width is not None:
                group = group and f"{group}:{spec.num_bits}"
            if width is not None and group is None and self._moves_for(node, x):
                return self._narrowed(x, spec, node.scheme)
            return self._quantize(x, group, spec, node.scheme)
        return self._behind_norm(x, node.norms)

    def _moves_for(self, node, x):
        """Whether `x` is another order of a tensor's values, for one call alone."""
        mover = self.graph.producer(x)
        if mover is None or mover.norms or not _keeps_grid(mover) or len(mover.real_inputs) != 1:
            return False
        same_size = math.prod(x.shape[1:]) == math.prod(mover.real_inputs[0].shape[1:])
        alone = self.graph.consumers(x) == [node] and not self.graph.is_output(x)
        return None not in x.shape[1:] and same_size and alone

    def _narrowed(self, x, spec, scheme):
        """Returns `x`, of which the values are brought to another width before they move.

        A converter draws a permutation into the product behind it, and would lose what is between.
        """
        mover = self.graph.producer(x)
        self.nodes.remove(mover)
        (z,) = mover.real_inputs
        mover.read_instead({z: self._quantize(self.inside_norm.get(z, z), None, spec, scheme)})
        self.nodes.append(mover)
        self.widths.of[x] = spec.stored_bits
        return x

    def _output(self, x):
        """Returns an output of the model, in the width of the scheme that it was computed under.

        A state has that in which it enters the model.
        """
        width, node = self.widths.of.get(x), self.graph.producer(x)
        if width is None or node is None or not node.scheme.static:
            return x
        state, spec, scheme = self.groups.outputs.get(x), node.scheme.activations, node.scheme
        if state is not None:
            spec, scheme = state.spec, state.scheme
        if width == spec.stored_bits:
            return self._behind_norm(x)
        return self._quantize(x, state and state.group, spec, scheme)

    def _quantize(self, x, group, spec, scheme, fixed=None):
        """Returns `x` on a grid of its own, on that of a group, or on one that is `fixed`."""
        key = x, group, spec.num_bits
        if key not in self.made:
            producer, width = self.graph.producer(x), self.widths.of.get(x)
            name = f"quantize_{producer.layer.name if producer else x.name}"
            name = name if width is None else f"{name}_to_{spec.num_bits}"
            layer = self._layer(name, group, spec, scheme, fixed)
            y = keras.KerasTensor(x.shape, x.dtype, name=x.name)
            self.nodes.append(Node(layer, layer, (x,), {}, y))
            self.widths.of[y] = spec.stored_bits
            self.made[key] = y
        return self.made[key]

    def _layer(self, name, group, spec, scheme, fixed):
        if fixed is not None:
            return Quantize(Fixed(spec, *fixed), device=scheme.device, name=self.unique(name))
        if group is None or group not in self.layers:
            quantizer = activation_quantizer(scheme.activation_quantizer, Static(spec), group)
            layer = Quantize(quantizer, device=scheme.device, name=self.unique(name))
            self.layers[group] = layer
        return self.layers[group]


def _keeps_grid(node):
    """Whether the outputs of a call lie on the grid of its inputs."""
    return isinstance(node.config, SameGridConfig)


def _joins(node):
    """Whether a call brings several tensors to one grid."""
    return node.reads_grids and _keeps_grid(node) and len(node.real_inputs) > 1

"""`Pair`: a layer and those that read what it computes, between which channels can be scaled."""

import dataclasses
import math

import numpy as np
from keras import activations, layers, ops, tree

from tfquant.configs.linear import LinearConfig
from tfquant.graph.runner import Runner
from tfquant.numerics import QuantSpec
from tfquant.quantizers import AbsMax, LearnedStep, RecordingScope
from tfquant.wrappers import Quantize, QuantizeWrapper

# Layers that scaled channels go through: f(x / s) = f(x) / s for s > 0, channel by channel.
PASSING = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.LeakyReLU,
    layers.Dropout,
    layers.Identity,
    layers.Flatten,
)
ACTIVATIONS = (activations.linear, activations.relu, activations.leaky_relu)

# Bounds that a positive factor leaves alone: a device has none for each channel.
BOUNDS = (None, (None, None), (0, None))

MIXING = (layers.Dense, layers.Conv1D, layers.Conv2D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)

# Weights that are all as near to whole numbers of steps were given to their layer.
WHOLE = 1e-3

# What is less than this share of the largest channel carries nothing.
DUST = 1e-3

# Values that are looked at where a layer reads.
VALUES = 2**22


@dataclasses.dataclass(eq=False)
class Pair:
    """A layer whose channels are divided by factors, and the readers that take them back.

    Attributes:
        maker: `QuantizeWrapper` of the layer that computes the channels.
        readers: Those of the layers that read them, behind what they go through.
        seen: What each reader reads in the float model, from `look`.
    """

    maker: QuantizeWrapper
    readers: list
    seen: dict = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the layer that computes the channels."""
        return self.maker.layer.name

    @property
    def channels(self) -> int:
        """Number of channels."""
        kernel = kernel_of(self.maker)
        depthwise = isinstance(self.maker.layer, DEPTHWISE)
        return kernel.shape[-2] * kernel.shape[-1] if depthwise else kernel.shape[-1]

    def made(self) -> np.ndarray:
        """Returns what makes each channel, its weights with the batch norm, `[k, channels]`."""
        kernel, norm = ops.convert_to_numpy(kernel_of(self.maker)), self.maker.batch_norm
        kernel = kernel.reshape(-1, self.channels)
        if norm is None:
            return kernel
        deviation = np.sqrt(ops.convert_to_numpy(norm.moving_variance) + norm.epsilon)
        return kernel * (ops.convert_to_numpy(norm.gamma) if norm.scale else 1.0) / deviation

    def read(self) -> np.ndarray:
        """Returns the weights that all readers multiply each channel by, `[channels, k]`."""
        views = [self._view(ops.convert_to_numpy(kernel_of(reader))) for reader in self.readers]
        flat = [np.moveaxis(view, -2, 0).reshape(self.channels, -1) for view in views]
        return np.concatenate(flat, axis=1)

    @property
    def made_by_channel(self) -> bool:
        """Whether each channel has steps of its own where it is made."""
        return _steps_by_channel(self.maker)

    @property
    def by_channel(self) -> bool:
        """Whether each channel has steps of its own on both sides: weights share no range."""
        depthwise = all(isinstance(reader.layer, DEPTHWISE) for reader in self.readers)
        return depthwise and all(map(_steps_by_channel, (self.maker, *self.readers)))

    def magnitudes(self) -> np.ndarray:
        """Returns what was seen of each channel, without its signs, `[k, channels]`."""
        return np.abs(np.concatenate([x.reshape(-1, self.channels) for x in self.seen.values()]))

    def scaled(self, kernel, factors) -> np.ndarray:
        """Returns the kernel of a reader, for channels that are divided by factors."""
        view = self._view(kernel) * factors[:, None]
        return view.reshape(kernel.shape).astype(kernel.dtype)

    def _view(self, kernel):
        """Returns a reader's kernel, channels on the last axis but one: flat, they come last."""
        return kernel.reshape(*kernel.shape[:-2], -1, self.channels, kernel.shape[-1])


def pairs_of(graph) -> tuple[list[Pair], dict[str, str]]:
    """Finds the layers whose channels can be scaled.

    Args:
        graph: `Graph` of a quantized model.

    Returns:
        `(pairs, left)`: in order, and by name why the channels of other linear layers stay.
    """
    pairs, left = [], {}
    for node in graph.nodes:
        if not _is_linear(node.layer) or len(graph.calls(node.layer)) > 1:
            continue
        readers = []
        why = _why_not_made(node.layer) or _why_not_read(graph, node, readers)
        if why:
            left[node.layer.layer.name] = why
        else:
            pairs.append(Pair(node.layer, readers))
    return pairs, left


def _why_not_made(wrapper) -> str:
    norm, (low, high) = wrapper.batch_norm, wrapper.call_sites[0].clamp or (None, None)
    if norm is not None and not norm.scale:
        return "its batch norm has no scale"
    if (low, high) not in BOUNDS:
        return f"its output is bounded by {high if high is not None else low:g}"
    if wrapper.layer.activation not in ACTIVATIONS[:2]:
        return f"its activation is {wrapper.layer.activation.__name__}"
    return _why_not_plain(wrapper)


def _steps_by_channel(wrapper) -> bool:
    """Whether each output channel of a layer has a step of its own."""
    ((_, quantizer),) = wrapper.weight_quantizers
    kernel = kernel_of(wrapper)
    outputs = kernel.shape[-2:] if isinstance(wrapper.layer, DEPTHWISE) else kernel.shape[-1:]
    return math.prod(quantizer.scale_shape) >= math.prod(outputs)


def _why_not_plain(wrapper) -> str:
    ((variable, quantizer),) = wrapper.weight_quantizers
    if not isinstance(quantizer, AbsMax | LearnedStep):
        return f"'{wrapper.layer.name}' finds its steps by {type(quantizer).__name__}"
    steps = ops.convert_to_numpy(quantizer.spread(quantizer.steps(variable.value)))
    q = ops.convert_to_numpy(variable) / steps
    if np.abs(q - np.rint(q)).max(initial=0) < WHOLE:
        return f"'{wrapper.layer.name}' has integers already"
    if getattr(wrapper.layer, "data_format", "channels_last") != "channels_last":
        return f"the channels of '{wrapper.layer.name}' come first"
    return ""


def _why_not_read(graph, maker, readers) -> str:
    """Appends the readers of what a call computes; returns why one of them cannot be scaled."""
    waiting = tree.flatten(maker.outputs)
    while waiting:
        x = waiting.pop()
        if graph.is_output(x):
            return "the model puts out what it computes"
        for node in graph.consumers(x):
            if _goes_through(node):
                waiting += tree.flatten(node.outputs)
                continue
            name = getattr(getattr(node.layer, "layer", node.layer), "name", "an operation")
            if not _mixes(node.layer) or len(graph.calls(node.layer)) > 1:
                return f"'{name}' reads it"
            why = _why_not_plain(node.layer)
            if why:
                return why
            readers.append(node.layer)
    return "" if readers else "nobody reads it"


def _is_linear(layer) -> bool:
    return (
        isinstance(layer, QuantizeWrapper)
        and isinstance(layer.quantize_config, LinearConfig)
        and isinstance(layer.quantize_config.weights, QuantSpec)
        and type(layer.layer) in (*MIXING, *DEPTHWISE)
    )


def _mixes(layer) -> bool:
    """Whether the kernel of a layer has the inputs on the last axis but one."""
    return _is_linear(layer) and getattr(layer.layer, "groups", 1) == 1


def _goes_through(node) -> bool:
    if isinstance(node.layer, Quantize):
        return True
    inner = node.layer.layer if isinstance(node.layer, QuantizeWrapper) else node.layer
    if isinstance(inner, layers.ReLU):
        return inner.max_value is None and not inner.threshold
    if isinstance(inner, layers.Activation):
        return inner.activation in ACTIVATIONS
    return type(inner) in PASSING


def look(model, pairs, arrays) -> None:
    """Gives pairs what their readers read in the float model.

    Args:
        model: The quantized model.
        pairs: `Pair`s.
        arrays: Some rows of its inputs, a list.
    """
    of = {reader: pair for pair in pairs for reader in pair.readers}

    def see(layer, args, kwargs, outputs):
        del kwargs, outputs
        if layer in of:
            x = ops.convert_to_numpy(args[0])
            of[layer].seen[layer] = x[: max(1, VALUES * len(x) // max(x.size, 1))]

    with RecordingScope(quantize_weights=False, see=lambda *_: None):
        Runner(model)(arrays, see)


def rescale(pair: Pair, factors) -> None:
    """Divides the channels of a pair by factors, where they are made and where they are read.

        y = act(x W + b),   z = y V    becomes    y / f = act(x (W / f) + b / f),   z = (y / f) f V

    Where batch norm stands behind the layer, it is divided instead.

    Args:
        pair: `Pair`.
        factors: Positive, one for each channel.
    """
    wrapper, factors = pair.maker, np.asarray(factors, np.float32)
    layer, norm = wrapper.layer, wrapper.batch_norm
    if norm is not None:
        divided = [norm.gamma, *([norm.beta] if norm.center else [])]
    else:
        kernel = kernel_of(wrapper)
        values = ops.convert_to_numpy(kernel).reshape(-1, pair.channels) / factors
        kernel.assign(values.reshape(kernel.shape))
        divided = [layer.bias] if layer.use_bias else []
    for variable in divided:
        variable.assign(variable / factors)
    for reader in pair.readers:
        kernel = kernel_of(reader)
        kernel.assign(pair.scaled(ops.convert_to_numpy(kernel), factors))
    for reader, x in pair.seen.items():
        pair.seen[reader] = x / np.tile(factors, x.shape[-1] // len(factors))
    for changed in (wrapper, *pair.readers):
        ((variable, quantizer),) = changed.weight_quantizers
        quantizer.fit(variable.value)


def kernel_of(wrapper):
    """Returns the kernel of a wrapped linear layer, a variable."""
    ((variable, _),) = wrapper.weight_quantizers
    return variable


def carrying(*sizes) -> np.ndarray:
    """Returns which channels carry something: all of some sizes are more than dust.

    Training lets channels die: weights of 1e-20 behind a bias would ask for factors of 1e10.
    """
    tops = [np.max(size, initial=0.0, where=np.isfinite(size)) for size in sizes]
    found = [np.isfinite(size) & (size > DUST * top) for size, top in zip(sizes, tops, strict=True)]
    return np.all(found, axis=0)


def settled(factors, known) -> np.ndarray:
    """Returns factors about 1: the mean of the logarithms of those that are known is 0.

    Args:
        factors: One for each channel.
        known: Which channels these are right for. The others get the least of these, with which
            their weights take the least of the readers' range.
    """
    if not known.any():
        return np.ones(len(factors))
    factors = np.where(known, factors, factors[known].min())
    return factors / np.exp(np.log(factors[known]).mean())

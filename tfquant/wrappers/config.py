"""Which weights and outputs of a layer are quantized, and how the device computes it."""

import abc
import inspect

import keras

from tfquant.wrappers.lowering import LoweredKernel, Lowering


class QuantizeConfig(abc.ABC):
    """Says how one layer is quantized. Subclass it to quantize a layer of your own.

    Only `get_weights_and_quantizers` and `get_output_quantizers` must be written. A config holds
    settings, no state: it may serve several layers, and is saved with the model. Register it with
    `keras.saving.register_keras_serializable`, as any Keras object that is to be loaded again.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my")
    class ScaleConfig(tfq.QuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.factor, tfq.quantizers.AbsMax(tfq.QuantSpec(8, symmetric=True)))]

        def get_output_quantizers(self, layer):
            return [tfq.quantizers.Static(tfq.QuantSpec(8))]

    q = tfq.quantize_annotate_layer(Scale(), ScaleConfig())
    ```
    """

    @abc.abstractmethod
    def get_weights_and_quantizers(self, layer) -> list:
        """Returns pairs of a variable of `layer` (which is built) and a new `Quantizer` for it."""

    @abc.abstractmethod
    def get_output_quantizers(self, layer) -> list:
        """Returns one new `Quantizer` for each output of `layer`, or `None` to leave it."""

    @property
    def reads_floats(self) -> bool:
        """Whether the layer takes its inputs as they come, and not on a grid."""
        return False

    def device_call(self, call):
        """Computes at inference what the device computes, to the last integer.

        The default returns `None`: the layer then runs in real arithmetic on quantized weights
        and its outputs are rounded, which is what a device does to within one step.

        Args:
            call: `Call`.

        Returns:
            The structure of outputs, each on its grid, or `None`.
        """
        del call
        return None

    def real_call(self, wrapper, args, kwargs):
        """Computes at inference in real arithmetic, with quantized weights.

        Args:
            wrapper: The `QuantizeWrapper`.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The structure of outputs, not yet clamped or quantized.
        """
        return wrapper.float_call(*args, training=False, **kwargs)

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name) -> Lowering:
        """Calls float layers that a converter understands, with weights on the integer grid.

        The default calls a copy of the layer whose quantized weights are dequantized ones, and
        says which integers they are.

        Args:
            wrapper: The `QuantizeWrapper`.
            call_site: Index of the call site.
            args: Positional arguments; tensors are KerasTensors of the float model.
            kwargs: Keyword arguments, likewise.
            input_grids: `Grid` or `None` for each tensor among `args`.
            name: Name for the copy; names are unique within the float model.

        Returns:
            `Lowering`.
        """
        del call_site, input_grids
        layer = copy_layer(wrapper.layer, name=name)
        outputs = layer(*args, **kwargs)
        transfer_weights(wrapper.layer, layer)
        kernels = []
        of = {id(variable): quantizer for variable, quantizer in wrapper.weight_quantizers}
        for new, old in zip(layer.weights, wrapper.layer.weights, strict=True):
            quantizer = of.get(id(old))
            if quantizer is not None:
                new.assign(quantizer.call(old.value))
                kernels.append(lowered_kernel(quantizer, old.value, new.numpy()))
        return Lowering(outputs, tuple(kernels))

    def get_config(self) -> dict:
        """Returns the arguments of the constructor. The default is for one without arguments."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Returns the config that `get_config` described."""
        return cls(**config)


def lowered_kernel(quantizer, weight, values) -> LoweredKernel:
    """Describes the quantized `values` of a `weight`."""
    if quantizer.spec is None:
        return LoweredKernel(values)
    scale = keras.ops.convert_to_numpy(quantizer.params(weight).scale)
    return LoweredKernel(values, scale.reshape(-1), quantizer.spec)


def copy_layer(layer, /, **changes):
    """Returns a new layer of the same type and settings, without its weights.

    Args:
        layer: Keras layer, or `keras.Operation`.
        **changes: Settings that differ.

    Raises:
        ValueError: If the layer cannot be made again from its settings.
    """
    try:
        config = {**layer.get_config(), **changes}
        with keras.saving.custom_object_scope(_own_types(layer)):
            if not isinstance(layer, (keras.layers.Lambda, keras.layers.TFSMLayer)):
                return layer.__class__.from_config(config)
            # Its code is here already: there is nothing to be afraid of in loading it.
            serialized = {**keras.saving.serialize_keras_object(layer), "config": config}
            copy = keras.saving.deserialize_keras_object(serialized, safe_mode=False)
        if isinstance(layer, keras.layers.Lambda):
            copy.function = layer.function  # What was loaded does not know the names around it.
        return copy
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        settings = _settings(layer)
        if settings is None:
            raise ValueError(
                f"Layer '{layer.name}' ({type(layer).__name__}) cannot be copied: its `get_config` "
                f"must return the arguments of its constructor. It raised: {error}"
            ) from error
        return type(layer)(**{**settings, **changes})


def _settings(layer):
    """Returns the arguments of a constructor that kept each as an attribute, or `None`.

    Layers whose `get_config` is wrong are made again so; Keras cannot load them either.
    """
    parameters = inspect.signature(type(layer)).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_base = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if not takes_base or not all(hasattr(layer, name) for name in names):
        return None
    base = {"name": layer.name, "dtype": layer.dtype_policy, "trainable": layer.trainable}
    return {**base, **{name: getattr(layer, name) for name in names}}


def _own_types(layer):
    """Returns the user's classes of layers in `layer`, by name: they may not be registered."""
    found, waiting, seen = {}, [layer], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if type(one).__module__.partition(".")[0] not in ("keras", "tfquant"):
            found[type(one).__name__] = type(one)
        inside = keras.tree.flatten([x for x in vars(one).values() if _may_hold_layers(x)])
        waiting += [x for x in inside if isinstance(x, keras.layers.Layer)]
    return found


def _may_hold_layers(x):
    return isinstance(x, (keras.layers.Layer, list, tuple, dict))


def transfer_weights(source, target) -> None:
    """Gives `target`, built, the weights of `source`, a layer of the same settings."""
    target.set_weights(source.get_weights())
    if isinstance(target, keras.layers.Normalization):
        target.finalize_state()  # It computes with what it derived from its weights.

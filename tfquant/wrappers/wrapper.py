"""`QuantizeWrapper`: any Keras layer, with quantized weights and outputs."""

import dataclasses
import inspect
import math

import keras
from keras import ops, tree

from tfquant import devices
from tfquant.graph.runner import Inferring
from tfquant.quantizers import MovingAverage, RecordingScope
from tfquant.quantizers.families import activation_quantizer as make_activation_quantizer
from tfquant.quantizers.families import weight_quantizer as make_weight_quantizer
from tfquant.wrappers.call import Call
from tfquant.wrappers.config import QuantizeConfig
from tfquant.wrappers.hook import CallHook
from tfquant.wrappers.norms import as_pairs
from tfquant.wrappers.originals import Originals
from tfquant.wrappers.quantize import check_ranges
from tfquant.wrappers.straight_through import straight_through


@dataclasses.dataclass(frozen=True)
class CallSite:
    """One place of a model where a layer is called.

    Attributes:
        clamp: `(low, high)` of the activation behind the layer, or `None`. `(0, None)` is ReLU.
        group: Name of the group of grids that must agree which the output belongs to, or `None`.
        settings: Keyword arguments of the call that are no tensors, where others are.
    """

    clamp: tuple[float | None, float | None] | None = None
    group: str | None = None
    settings: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.clamp is not None:
            object.__setattr__(self, "clamp", tuple(self.clamp))


@keras.saving.register_keras_serializable(package="tfquant")
class QuantizeWrapper(Inferring, keras.layers.Layer):
    """Runs `layer` with the weights and outputs that `quantize_config` names quantized.

    Weights are swapped by `keras.StatelessScope`: inside it every read of a variable returns the
    quantized value, gradients flow to the variable, and the layer's own `call` is used unchanged.

    A wrapper stands for one kernel of the device. A batch norm and a clamp (ReLU, ReLU6) that the
    device computes together with the layer belong to the wrapper: the output is quantized behind
    them.

    Args:
        layer: A built Keras layer.
        quantize_config: `QuantizeConfig`.
        batch_norm: A built `keras.layers.BatchNormalization` behind the layer, or `None`.
        call_sites: `CallSite` of each place of the model where the layer is called. Weights and
            batch norm are shared, output quantizers and clamps are not.
        weight_quantizer: Family that takes the place of `AbsMax`: `"abs_max"`, `"learned_step"`,
            `"learned_threshold"` or `"dorefa"`.
        activation_quantizer: Family that takes the place of `Static`: `"static"`,
            `"moving_average"`, `"learned_step"`, `"learned_threshold"` or `"learned_clip"`.
        device: Name of the device that inference simulates, a key of `tfquant.devices.DEVICES`;
            `None` for that of the processor at hand.
        norms: Pairs of the name of a norm that it is a part of, or in front of, and of the form
            that its scheme asks for.
        in_float: Whether those norms compute in float: then it is the layer alone.
        algorithm: Name of the algorithm that `tfq.optimize` chooses the integers of the weights
            with where it is told none; `None` for the nearest.

    Attributes:
        batch_norm_frozen: Whether training normalizes by the moving statistics and leaves them.
        dampening: Function without arguments that returns the strength of the loss which pulls
            weights to the middle of their step, or `None`. All three shape the graph.
        originals: `Originals` of what calibration changed.

    Call arguments:
        *args, **kwargs: Those of `layer`.
        call_site: Index into `call_sites`.

    Raises:
        ValueError: If `layer` has no weights yet because it is not built.
    """

    def __init__(
        self,
        layer,
        quantize_config: QuantizeConfig,
        *,
        batch_norm=None,
        call_sites: tuple[CallSite, ...] = (CallSite(),),
        weight_quantizer: str = "abs_max",
        activation_quantizer: str = "static",
        device: str | None = None,
        algorithm: str | None = None,
        norms=(),
        in_float: bool = False,
        **kwargs,
    ):
        kwargs.setdefault("name", f"quant_{layer.name}")
        kwargs.setdefault("trainable", layer.trainable)
        # Integers and grids are float32; the layer keeps its own policy.
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        if not layer.built:
            raise ValueError(
                f"QuantizeWrapper expects a built layer. Received: '{layer.name}', which has not "
                "been called on an input yet."
            )
        self.layer = layer
        self.quantize_config = quantize_config
        self.batch_norm = batch_norm
        self.call_sites = tuple(call_sites)
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer
        self.device = devices.get(device)
        self.algorithm = algorithm
        self.norms, self.in_float = as_pairs(norms), in_float
        self.batch_norm_frozen = False
        self.dampening = None
        self.originals = Originals(self)
        pairs = quantize_config.get_weights_and_quantizers(layer)
        self._weights_quantized = [variable for variable, _ in pairs]
        self._weight_quantizers = [make_weight_quantizer(weight_quantizer, q) for _, q in pairs]
        for variable, quantizer in self.weight_quantizers:
            quantizer.build(variable.shape)
        self.output_quantizers = self._quantizers_of_sites(quantize_config)
        # Keras before 3.11 or so saves nothing of lists in lists.
        flat = [q for site in self.output_quantizers for q in site if q is not None]
        self._output_quantizers = list(dict.fromkeys(flat))
        for quantizers, site in zip(self.output_quantizers, self.call_sites, strict=True):
            for quantizer in quantizers:
                if quantizer is not None and not quantizer.built:
                    quantizer.build(())
                if isinstance(quantizer, MovingAverage):
                    quantizer.clamp = site.clamp
        self.supports_masking = layer.supports_masking
        parameters = inspect.signature(layer.call).parameters
        self._layer_takes_training = "training" in parameters
        self.layer_takes_mask = "mask" in parameters
        self.built = True

    def _quantizers_of_sites(self, quantize_config):
        """Returns the output quantizers of each call site; sites of one group share them."""
        shared, found = {}, []
        for number, site in enumerate(self.call_sites):
            key = number if site.group is None else site.group
            if key not in shared:
                shared[key] = [
                    make_activation_quantizer(self.activation_quantizer, quantizer, site.group)
                    for quantizer in quantize_config.get_output_quantizers(self.layer)
                ]
            found.append(shared[key])
        return found

    @property
    def weight_quantizers(self):
        """Pairs of a variable of the layer and its quantizer."""
        return list(zip(self._weights_quantized, self._weight_quantizers, strict=True))

    @property
    def quantizes(self) -> bool:
        """Whether it quantizes anything: not as a part of norms that compute in float."""
        return not self.in_float

    def build(self, *args, **kwargs):
        """Does nothing: the layer arrives built."""

    def give_integers(self, integers, scale, index: int = 0) -> None:
        """Replaces a weight of the layer by given integers and their steps.

            w = scale * q

        What is computed, trained from here, packed and converted are these integers. A batch norm
        of the wrapper stays: integers and steps are those of the weight in front of it. (A channel
        whose step a device cannot multiply by, because the batch norm all but removes it, is
        rounded again when that batch norm is folded.)

        Args:
            integers: Array of whole numbers, of the shape of the weight.
            scale: Steps: one, one for each channel or one for each group, as the wrapper's config
                says.
            index: Which of `weight_quantizers`.

        Raises:
            ValueError: If there is no such weight, or integers or steps do not fit it.
        """
        grids = [q.spec for q in self._weight_quantizers]
        if not 0 <= index < len(grids) or grids[index] is None:
            raise ValueError(
                f"`index` must be that of a weight of '{self.layer.name}' which becomes integers. "
                f"Received: index={index}, of {len(grids)} quantized weights."
            )
        variable, quantizer = self.weight_quantizers[index]
        q, steps = quantizer.checked_integers(integers, scale)
        quantizer.set_steps(steps)
        variable.assign(q * ops.convert_to_numpy(quantizer.spread(steps)))

    def call(self, *args, training=None, call_site=0, mask=None, **kwargs):
        """Runs the layer; see the class."""
        if self.layer_takes_mask and any(m is not None for m in tree.flatten(mask)):
            # Keras collects the masks of all that came by position.
            kwargs["mask"] = mask[0] if isinstance(mask, tuple) and len(mask) == 1 else mask
        kwargs = {**self.call_sites[call_site].settings, **kwargs}
        if self.in_float:
            return self.call_layer(*args, weights=[], training=training, **kwargs)
        if training:
            if self.dampening is not None:
                self._dampen()
            check_ranges(self.output_quantizers[call_site], self.layer.name)
            outputs = self.float_call(*args, training=True, **kwargs)
            return self._bounded(outputs, call_site, lambda q, x: q.call(x, training=True), True)
        if RecordingScope.current() is not None or CallHook.current() is not None:
            return self._infer(call_site, args, kwargs)
        exact = lambda given: self._infer(call_site, *given)  # noqa: E731
        real = lambda given: self._real(call_site, *given)  # noqa: E731
        read = self._read_variables(call_site)
        trained = [v for v in read if v.trainable]
        # TensorFlow would have a gradient for what Keras froze after it was made.
        frozen = [v for v in read if not v.trainable and v.value.trainable]
        outputs, losses = straight_through(exact, real, (args, kwargs), trained, frozen)
        for loss in losses:
            self.add_loss(loss)
        return outputs

    def infer(self, *args, call_site=0, mask=None, **kwargs):
        """Returns what its call returns at inference, without gradients; see `Inferring`."""
        del mask  # None.
        kwargs = {**self.call_sites[call_site].settings, **kwargs}
        if self.in_float:
            return self.call_layer(*args, weights=[], training=False, **kwargs)
        return self._infer(call_site, args, kwargs)

    def _read_variables(self, call_site):
        """Returns the variables of layer, batch norm and grids."""
        outputs = [q for q in self.output_quantizers[call_site] if q is not None]
        norm = [] if self.batch_norm is None else [self.batch_norm]
        parts = [self.layer, *norm, *self._weight_quantizers, *outputs]
        return [v for part in parts for v in part.variables]

    def _infer(self, call_site, args, kwargs):
        """Computes what the device computes; looked at by a hook or a scope, in real arithmetic."""
        hook, outputs = CallHook.current(), None
        if hook is not None:
            outputs = hook.function(self, args, kwargs)
        if outputs is None and RecordingScope.current() is None:
            computed = self.quantize_config.device_call(Call(self, call_site, args, kwargs))
            if computed is not None:
                return computed
        held = [outputs]
        del outputs  # Nobody is to hold it while its successors are made.
        if held[0] is None:
            held[0] = self.quantize_config.real_call(self, args, kwargs)
        return self._bounded(held.pop(), call_site, lambda q, x: q.call(x))

    def _real(self, call_site, args, kwargs):
        """Computes as a training step does, by the moving statistics and ranges as they are."""
        outputs = self.float_call(*args, training=False, trains=True, **kwargs)
        return self._bounded(outputs, call_site, lambda q, x: q.still(x))

    def _bounded(self, outputs, call_site, quantize, training=False):
        """Clamps and quantizes the outputs of the layer and its batch norm."""
        quantizers = self.output_quantizers[call_site]
        if not (training and quantizers and all(q is not None and q.clamps for q in quantizers)):
            outputs = clamp(outputs, self.call_sites[call_site].clamp)
        if not quantizers:
            return outputs
        if len(quantizers) == 1 and hasattr(outputs, "shape"):
            (quantizer,) = quantizers
            return outputs if quantizer is None else quantize(quantizer, outputs)
        flat = [
            x if q is None else quantize(q, x)
            for x, q in zip(self._checked(outputs, quantizers), quantizers, strict=True)
        ]
        return tree.pack_sequence_as(outputs, flat)

    def compute_output_spec(self, *args, training=None, call_site=0, mask=None, **kwargs):
        """Returns KerasTensors like the layer's: quicker than to trace the arithmetic."""
        if self.layer.compute_dtype != "float32":
            kwargs = {**kwargs, "call_site": call_site}
            return super().compute_output_spec(*args, training=training, mask=mask, **kwargs)
        del training, mask
        outputs = self.layer.compute_output_spec(*args, **kwargs)
        if self.output_quantizers[call_site]:
            self._checked(outputs, self.output_quantizers[call_site])
        return outputs

    def _checked(self, outputs, quantizers):
        """Returns the outputs as a list, one for each quantizer."""
        flat = tree.flatten(outputs)
        if len(flat) != len(quantizers):
            raise ValueError(
                f"{type(self.quantize_config).__name__}.get_output_quantizers must return one "
                f"quantizer for each output of '{self.layer.name}', or None. Expected: "
                f"{len(flat)}. Received: {len(quantizers)}."
            )
        return flat

    def float_call(self, *args, training=None, trains=None, **kwargs):
        """Runs layer and batch norm in real arithmetic with quantized weights.

        Args:
            *args: Arguments of the layer.
            training: Of the layer and the batch norm.
            trains: Whether the grids of the weights get gradients; `training` if `None`.
            **kwargs: Arguments of the layer.
        """
        trains = training if trains is None else trains
        outputs = self.call_layer(
            *args,
            weights=[(v, q.call(v.value, training=trains)) for v, q in self.weight_quantizers],
            training=training,
            **kwargs,
        )
        if self.batch_norm is not None:
            outputs = self.batch_norm(outputs, training=training and not self.batch_norm_frozen)
        return outputs

    def _dampen(self):
        """Adds the distance of each weight to the integer that it rounds to."""
        for variable, quantizer in self.weight_quantizers:
            w = quantizer.latent(ops.cast(variable.value, "float32"))
            scale, spec = ops.stop_gradient(quantizer.params(w).scale), quantizer.spec
            bounded = ops.minimum(ops.maximum(w, scale * spec.qmin), scale * spec.qmax)
            nearest = ops.stop_gradient(ops.round(bounded / scale) * scale)
            self.add_loss(self.dampening() * ops.sum(ops.square(nearest - bounded)))

    def call_exactly(self, *args, **kwargs):
        """Calls the layer on integers, past the casts of a mixed-precision policy."""
        if self._layer_takes_training:
            kwargs["training"] = False
        return self.layer.call(*args, **kwargs)

    def call_layer(self, *args, weights, training=None, **kwargs):
        """Calls the wrapped layer with some of its variables read as other values.

        Args:
            *args: Arguments of the layer.
            weights: Pairs of a variable of the layer and the value to read.
            training: Passed on where the layer takes it.
            **kwargs: Arguments of the layer.
        """
        if self._layer_takes_training:
            kwargs["training"] = training
        if not weights:
            return self.layer(*args, **kwargs)
        is_swapped = lambda variable: any(variable is v for v, _ in weights)  # noqa: E731
        # A scope does not ask the one around it.
        others = [(v, v.value) for v in self.layer.trainable_variables if not is_swapped(v)]
        with keras.StatelessScope(
            state_mapping=[*weights, *others], collect_losses=True, initialize_variables=False
        ) as scope:
            outputs = self.layer(*args, **kwargs)
        # What the layer assigned or added inside the scope was only captured.
        for variable in self.layer.non_trainable_variables:
            value = scope.get_current_value(variable)
            if value is not None and not is_swapped(variable):
                variable.assign(value)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def compute_mask(self, inputs, previous_mask=None):
        """Returns the layer's own mask."""
        if all(mask is None for mask in tree.flatten(previous_mask)):
            previous_mask = None  # An embedding makes one of its own.
        if isinstance(inputs, tuple) and len(inputs) == 1:
            (inputs,) = inputs
            if isinstance(previous_mask, tuple) and len(previous_mask) == 1:
                (previous_mask,) = previous_mask
        return self.layer.compute_mask(inputs, previous_mask)

    def save_own_variables(self, store):
        """Saves what calibration changed, too."""
        super().save_own_variables(store)
        self.originals.save(store)

    def load_own_variables(self, store):
        """Loads what `save_own_variables` saved."""
        super().load_own_variables(self.originals.load(store))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "layer": serialize(self.layer),
            "quantize_config": serialize(self.quantize_config),
            "batch_norm": serialize(self.batch_norm),
            "call_sites": [dataclasses.asdict(site) for site in self.call_sites],
            "weight_quantizer": self.weight_quantizer,
            "activation_quantizer": self.activation_quantizer,
            "device": self.device.name,
            "algorithm": self.algorithm,
            "norms": self.norms,
            "in_float": self.in_float,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for key in ("layer", "quantize_config", "batch_norm"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        config["call_sites"] = [CallSite(**site) for site in config["call_sites"]]
        config.pop("autocast", None)
        return cls(**config)


def clamp(x, bounds):
    """Clips `x` to `bounds`, `(low, high)` with `None` for no bound."""
    if bounds is None:
        return x
    low, high = bounds
    if low == 0 and high is None:
        return ops.relu(x)
    if (low, high) == (0, 6):
        return ops.relu6(x)  # Several times faster than `clip`.
    return ops.clip(x, -math.inf if low is None else low, math.inf if high is None else high)

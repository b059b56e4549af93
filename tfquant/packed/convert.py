"""`to_packed`: a quantized Keras model to a Keras model whose weights are packed bits."""

import os

import keras
import numpy as np
import tensorflow as tf
from keras import layers, tree

from tfquant import lowbit
from tfquant.configs.linear import LinearConfig, unit_product
from tfquant.data.files import check_file, check_new_folder, new_folder, replacing
from tfquant.graph.graph import UniqueNames, clone_graph
from tfquant.graph.runner import flattened
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.lowbit.layers import PackedEmbedding, PackedLayer
from tfquant.numerics import QuantSpec
from tfquant.packed.archive import compress
from tfquant.packed.layers import make, store, why_not
from tfquant.quantizers import Static, grid_of
from tfquant.report import PackedLayerReport, PackingReport
from tfquant.rewrite.lower import lower
from tfquant.rewrite.validate import check_is_model
from tfquant.wrappers import DynamicKernel, IntegerKernel, KernelSite, Quantize, QuantizeWrapper
from tfquant.wrappers.lowering import clamp_layer

# Static activations enter the packed matmul as integers of step 1, and its sums leave it as they
# are: what they mean is the business of the `IntegerKernel` around it.
INTEGERS = {"activations": "static", "x_scale": 1.0, "group_size": 0, "dtype": "float32"}

# Layers of packed models.
PACKED = (DynamicKernel, IntegerKernel, PackedLayer, PackedEmbedding)


def to_packed(model, path=None) -> keras.Model:
    """Returns a Keras model whose weights are packed bits, multiplied as they are.

    Batch norm is folded. Dense, Conv1D, Conv2D, EinsumDense (where it multiplies by a matrix) and
    Embedding are packed; so are the parts of attention and recurrent layers. The weights of other
    layers stay float, and the report lists them.

    What the packed model returns, beside what `model` returns on the same machine:

    * static activations (`w8a8`, `w4a8`, `w2a8`, `w8a16`): the same, to the last bit. Integers are
      multiplied by integers, summed exactly up to 2**24, and scaled by the same operations.
    * real activations (`w8`, `w4`, `w4_g32`): the same products, summed in another order. A layer
      of K inputs is off by at most `(K + 4) * 2**-24` of the sum of its terms' magnitudes.
    * activations quantized at run time (`w8a8_dynamic`, `w4a8_g32`): likewise, of integers in dense
      layers; off by at most `(K + 8) * 2**-24` of the range of the layer's input (at least from 0)
      times the sum of the weights' magnitudes.
    * static activations and weights in groups (a `Scheme` of your own): likewise, then rounded to
      the output's grid: one step apart where a sum lies between two.

    Weights of which groups share a scale stay so. Layers that groups do not divide have a scale for
    each channel; the report names them.

    Args:
        model: Model from `quantize_model` or `quantize_apply`, calibrated if its scheme quantizes
            activations. It is not changed.
        path: Where to write the packed model, or `None`. A name that ends in `.keras` becomes a
            Keras file, for `keras.saving.load_model`; any other a SavedModel, for
            `tf.saved_model.load`, whose `serve` takes the inputs one by one. To load either,
            `import tfquant` first. It appears when it is complete.

    Returns:
        `keras.Model` for inference. Its attribute `packing_report` is a `PackingReport`; print it.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not quantized or not calibrated.
        RuntimeError: If a SavedModel is asked for where the low-bit ops are not compiled.
        OSError: If `path` cannot be written, or is a SavedModel's and exists.

    Example:

    ```python
    q = tfq.quantize_model(model, "w4a8")
    tfq.calibrate(q, images)
    packed = tfq.to_packed(q, "packed.keras")
    print(packed.packing_report)
    ```
    """
    path = None if path is None else os.path.normpath(path)
    if path is not None:
        _check(path)
    check_is_model(model)
    model = flattened(model)
    if any(isinstance(x, PACKED) for x in model.layers):
        raise ValueError(
            f"A model from tfq.quantize_model is expected. Received: '{model.name}', which is "
            "packed already."
        )
    packer = _Packer(lower(model))
    packed = clone_graph(model, lambda layer: layer, packer.call)
    packed.trainable = False
    packed.packing_report = PackingReport(model.name, packer.reports)
    if path is not None:
        _write(packed, path)
    return packed


class _Packer:
    """Calls in a copy of a quantized model what takes the place of each of its layers."""

    def __init__(self, lowered):
        self.model = lowered.model
        self.units = iter(lowered.units)  # In the order of the calls, as they come by here.
        self.units_of = {}
        for unit in lowered.units:
            self.units_of.setdefault(unit.layer, []).append(unit)
        self.made, self.reports = {}, []
        self.unique = UniqueNames()

    def call(self, layer, *args, **kwargs):
        """Calls what takes the place of `layer`."""
        kwargs.pop("training", None)  # Keras fills it in at each call by itself.
        if isinstance(layer, (Quantize, QuantizeWrapper)) and not layer.quantizes:
            return self._copy(layer, args, kwargs, "it is part of a norm that is float")
        if isinstance(layer, Quantize):
            next(self.units)
            return self._copy(layer, args, kwargs)
        if isinstance(layer, QuantizeWrapper):
            return self._wrapped(next(self.units), args, kwargs)
        if isinstance(layer, keras.layers.Layer):
            return self._copy(layer, args, kwargs, "it is not quantized")
        return copy_layer(layer)(*args, **kwargs)

    def _wrapped(self, unit, args, kwargs):
        wrapper = unit.layer
        inner, config = wrapper.layer, wrapper.quantize_config
        units = self.units_of[wrapper]
        if type(inner) is layers.Embedding and _grid(unit.outputs) is not None:
            if _grid(unit.outputs).spec.num_bits <= 8:
                return self._embedding(unit, *args)
            return self._copy(wrapper, args, kwargs, "its integers have more than 8 bits")
        if type(inner) is layers.Embedding and any(kernel.spec for kernel in unit.kernels):
            return self._real_embedding(unit, *args)
        if type(config) is not LinearConfig:
            return self._copy(wrapper, args, kwargs, why_not(inner))
        if not isinstance(config.weights, QuantSpec):
            return self._real(unit, *args, "its weights are no integers")
        if unit.kernels[0].group_size:
            return self._real(unit, *args, why_not(inner))
        if all(_grid(u.inputs) for u in units):
            return self._integer(unit, *args)
        if not any(_grid(u.inputs) or _grid(u.outputs) for u in units):
            return self._real(unit, *args, why_not(inner))
        return self._copy(wrapper, args, kwargs, "its input is on no grid")

    def _copy(self, layer, args, kwargs, reason=""):
        """Calls a copy of a layer of the quantized model."""
        new = layer not in self.made
        if new:
            self.made[layer] = copy_layer(layer, name=self.unique(layer.name))
        copy = self.made[layer]
        outputs = copy(*args, **kwargs)
        if new:
            transfer_weights(layer, copy)
            inner = layer.layer if isinstance(layer, QuantizeWrapper) else layer
            size = _num_bytes(_float_weights(inner))
            if size and not isinstance(layer, Quantize):
                self._report(layer.name, inner, size, size, reason=reason)
        return outputs

    def _integer(self, unit, x):
        """Calls a kernel on integers."""
        if unit.layer not in self.made:
            self.made[unit.layer] = self._integer_kernels(unit.layer)
        kernel, site = self.made[unit.layer][unit]
        return kernel(x, call_site=site) if site else kernel(x)

    def _integer_kernels(self, wrapper):
        """Returns, for each call of `wrapper`, an `IntegerKernel` and a call site.

        There is one kernel, unless a channel's step had to be floored at one site and not at
        another, which changes its integers.
        """
        alike, found = [], {}
        for unit in self.units_of[wrapper]:
            q = _integers(unit)
            units = next((units for other, units in alike if np.array_equal(other, q)), None)
            if units is None:
                alike.append((q, [unit]))
            else:
                units.append(unit)
        for q, units in alike:
            kernel, numbers = self._integer_kernel(wrapper, q, units)
            found |= {unit: (kernel, numbers[unit]) for unit in units}
        return found

    def _integer_kernel(self, wrapper, q, units):
        """Returns an `IntegerKernel` for calls with the same integers, and their sites."""
        inner, (unit, *_) = wrapper.layer, units
        sites, numbers = {}, {}
        for u in units:
            scale = np.broadcast_to(u.kernels[0].scale, u.bias.shape)
            key = _site(u), u.bias.tobytes(), scale.tobytes()
            sites.setdefault(key, (u.bias, scale))
            numbers[u] = list(sites).index(key)
        reason, width, sign = why_not(inner), None, None
        if reason:
            layer = copy_layer(inner, use_bias=False, name=inner.name, dtype="float32")
            layer.build(unit.inputs[0].shape)
            layer.set_weights([q])
        else:
            q, width, sign = store(q, unit.kernels[0].spec.num_bits)
            settings = {**INTEGERS, "num_bits": width, "name": inner.name}
            layer = make(inner, q, np.ones(unit.bias.shape), **settings)
            layer.build(unit.inputs[0].shape)
        kernel = IntegerKernel(
            layer,
            unit.bias.size,
            [site for site, *_ in sites],
            signed=sign is not None,
            name=self.unique(unit.name),
        )
        kernel.set_parameters(*zip(*sites.values(), strict=True), sign)
        self._report(
            unit.name,
            inner,
            4 * (q.size + unit.bias.size),
            _num_bytes(kernel.weights),
            weight_bits=width,
            activation_bits=_grid(unit.inputs).spec.num_bits,
            reason=reason,
            note="" if reason else wrapper.quantize_config.why_not_grouped(inner),
        )
        return kernel, numbers

    def _real(self, unit, x, reason):
        """Calls a kernel on real activations."""
        wrapper = unit.layer
        new = wrapper not in self.made
        if new:
            self.made[wrapper] = self._real_kernel(unit, reason)
        kernel, rounded = self.made[wrapper]
        y = kernel(x if rounded is None else rounded(x))
        if new and reason:
            transfer_weights(self.model.get_layer(unit.name), kernel)
        clamp = wrapper.call_sites[unit.kwargs.get("call_site", 0)].clamp
        y = clamp_layer(y, clamp, self.unique(unit.name))
        return y if _grid(unit.outputs) is None else self._point(unit)(y)

    def _real_kernel(self, unit, reason):
        """Returns a layer on real activations, and one that rounds them at run time or `None`."""
        inner, config, name = unit.layer.layer, unit.layer.quantize_config, self.unique(unit.name)
        lowered = self.model.get_layer(unit.name)
        rounded = config.input_quantizer(unit.layer)
        size, fields = _num_bytes(lowered.weights), {"reason": reason}
        if reason:
            kernel, packed_size = copy_layer(lowered, name=name), size
        else:
            kernel, fields["activation_bits"] = self._packed_kernel(unit, name, rounded)
            packed_size = _num_bytes(kernel.weights)
            packed = kernel.layer if isinstance(kernel, DynamicKernel) else kernel
            fields |= {"weight_bits": packed.num_bits, "group_size": packed.group_size}
            fields["note"] = config.why_not_grouped(inner)
        self._report(unit.name, inner, size, packed_size, **fields)
        if rounded is None or isinstance(kernel, DynamicKernel):
            return kernel, None
        return kernel, copy_layer(rounded, name=self.unique(f"{name}_input"))

    def _packed_kernel(self, unit, name, rounded):
        """Returns a layer on packed weights, and the width of the integers that it multiplies.

        Args:
            unit: `LoweredUnit`.
            name: Name for the layer.
            rounded: `Dynamic` of its input, or `None`.
        """
        inner, lowered = unit.layer.layer, unit.kernels[0]
        q, width, _ = store(_integers(unit), lowered.spec.num_bits, negate=False)
        scale = lowered.scale
        if not lowered.group_size:
            scale = np.broadcast_to(scale, unit.bias.shape)
        settings = {"num_bits": width, "group_size": lowered.group_size, "dtype": "float32"}
        if rounded is not None and len(lowered.variable.shape) == 2:
            settings |= {"activations": "static", "x_scale": 1.0}
            packed = make(inner, q, scale, name=inner.name, **settings)
            kernel = DynamicKernel(packed, rounded, name=name)
            real = lowered.variable.numpy().astype(np.float64)
            kernel.set_parameters(real.sum(axis=tuple(range(real.ndim - 1))), unit.bias)
            return kernel, rounded.spec.num_bits
        grids = [_grid(u.inputs) for u in self.units_of[unit.layer]]
        grid, settings["activations"] = grids[0], "float"
        if all(_is_grid_of_bytes(g) and g.params == grid.params for g in grids):
            settings |= {"activations": "static", "x_scale": float(grid.params.scale)}
            settings["zero_point"] = int(grid.params.zero_point)
        kernel = make(inner, q, scale, unit.bias, name=name, **settings)
        return kernel, None if kernel.activations == "float" else grid.spec.num_bits

    def _embedding(self, unit, x):
        """Calls a table of integers."""
        inner, grid = unit.layer.layer, _grid(unit.outputs)
        key = unit.layer, float(grid.params.scale), int(grid.params.zero_point)
        if key not in self.made:
            self.made[key] = self._table(unit, inner, grid)
        table, point = self.made[key]
        return point(table(x))

    def _table(self, unit, inner, grid):
        """Returns an embedding of integers, and a layer that notes the grid of what it returns."""
        (scale, zero_point), spec = grid.params, grid.spec
        real = inner.embeddings.numpy().astype(np.float32)
        q = np.clip(np.rint(real / scale) + np.float32(zero_point), spec.qmin, spec.qmax)
        table = PackedEmbedding.from_integers(
            q.astype(np.int16),
            [[scale]],
            num_bits=8,
            shared_scale=True,
            zero_point=int(zero_point),
            mask_zero=inner.mask_zero,
            dtype="float32",
            name=self.unique(unit.name),
        )
        size = _num_bytes(table.weights)
        self._report(unit.name, inner, 4 * real.size, size, weight_bits=8)
        return table, self._point(unit)

    def _real_embedding(self, unit, x):
        """Calls a table of integers with a scale for each column, which returns real values."""
        inner, key = unit.layer.layer, unit.layer
        if key not in self.made:
            (kernel,) = unit.kernels
            self.made[key] = PackedEmbedding.from_integers(
                _integers(unit),
                kernel.scale[None],
                num_bits=8,
                group_size=1,
                shared_scale=True,
                mask_zero=inner.mask_zero,
                dtype="float32",
                name=self.unique(unit.name),
            )
            sizes = 4 * kernel.integers.size, _num_bytes(self.made[key].weights)
            self._report(unit.name, inner, *sizes, weight_bits=8)
        return self.made[key](x)

    def _point(self, unit):
        """Returns a layer that rounds to the grid of a unit's output."""
        grid = _grid(unit.outputs)
        quantizer = Static(grid.spec, group=unit.output_quantizers[0].group)
        name = self.unique(f"{unit.name}_grid")
        point = Quantize(quantizer, device=unit.layer.device.name, name=name)
        quantizer.set_params(grid.params)
        return point

    def _report(self, name, layer, float_bytes, packed_bytes, **fields):
        kind = type(layer).__name__
        self.reports.append(PackedLayerReport(name, kind, float_bytes, packed_bytes, **fields))


def _site(unit) -> KernelSite:
    wrapper, quantizer = unit.layer, unit.output_quantizers[0]
    return KernelSite.between(
        _grid(unit.inputs),
        _grid(unit.outputs),
        group=quantizer and quantizer.group,
        clamp=wrapper.call_sites[unit.kwargs.get("call_site", 0)].clamp,
        rounding=wrapper.device.rounding(unit_product(unit)),
    )


def _grid(tensors):
    """Returns the grid of the first of some KerasTensors of the float model."""
    return grid_of(tensors[0])


def _integers(unit) -> np.ndarray:
    """Returns the integers of a unit's kernel, in its shape: files have sequences as images."""
    integers, rank = unit.kernels[0].integers, len(unit.layer.weight_quantizers[0][0].shape)
    lifted = integers.ndim - rank
    return (integers[0] if lifted == 1 else integers).astype(np.int16)


def _is_grid_of_bytes(grid) -> bool:
    """Whether values lie on a grid of at most 8 bits, signed, as the packed matmul reads them."""
    return grid is not None and grid.spec.signed and grid.spec.num_bits <= 8


def _float_weights(layer):
    return [v for v in layer.weights if keras.backend.is_float_dtype(v.dtype)]


def _num_bytes(variables):
    return sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in variables)


def _check(path):
    """Raises if a packed model cannot be written at `path`."""
    if path.endswith(".keras"):
        check_file(path)
        return
    if path.endswith((".h5", ".hdf5", ".tflite")):
        raise ValueError(
            "`path` must end in .keras, or name the folder of a SavedModel. "
            f"Received: path={path!r}."
        )
    check_new_folder(path)
    found = lowbit.doctor()
    if not found.built:
        raise RuntimeError(
            f"A SavedModel names the low-bit ops, and these are not compiled. {found.problem} "
            f"{found.remedy} Or write a .keras file: it runs without them, slowly."
        )


def _write(packed, path):
    if path.endswith(".keras"):
        with replacing(path, suffix=".keras") as temporary:
            packed.save(temporary)
            compress(temporary)
    else:
        with new_folder(path) as temporary:
            _save_model(packed, temporary)


def _save_model(packed, path):
    """Writes a SavedModel; `model.export` of Keras 3.15 stores each variable twice."""
    specs = [tf.TensorSpec(x.shape, x.dtype, name=x.name) for x in packed.inputs]

    @tf.function(input_signature=specs, autograph=False)
    def serve(*arrays):
        return packed(tree.pack_sequence_as(packed.input, arrays), training=False)

    module = tf.Module()
    module.weights = [variable.value for variable in packed.variables]
    module.serve = serve
    tf.saved_model.save(module, path, signatures={"serving_default": serve})

"""Which layer is quantized how: the tables, and layers that users add."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant import PerAxis, PerTensor, QuantSpec
from tfquant.quantizers import AbsMax, Float16, Quantizer, Static
from tfquant.registry import KERAS_LAYERS, SCHEMES, schemes

ROWS = KERAS_LAYERS.layer_types()

# Arguments of layers that cannot be made without any.
ARGUMENTS = {
    layers.Activation: {"activation": "tanh"},
    layers.AdaptiveAveragePooling1D: {"output_size": 2},
    layers.AdaptiveAveragePooling2D: {"output_size": 2},
    layers.AdaptiveMaxPooling1D: {"output_size": 2},
    layers.AdaptiveMaxPooling2D: {"output_size": 2},
    layers.AlphaDropout: {"rate": 0.5},
    layers.AveragePooling1D: {"pool_size": 2},
    layers.AveragePooling2D: {"pool_size": 2},
    layers.CenterCrop: {"height": 2, "width": 2},
    layers.Conv1D: {"filters": 4, "kernel_size": 3},
    layers.Conv1DTranspose: {"filters": 4, "kernel_size": 3},
    layers.Conv2D: {"filters": 4, "kernel_size": 3},
    layers.Conv2DTranspose: {"filters": 4, "kernel_size": 3},
    layers.Dense: {"units": 4},
    layers.DepthwiseConv1D: {"kernel_size": 3, "depth_multiplier": 2},
    layers.DepthwiseConv2D: {"kernel_size": 3, "depth_multiplier": 2},
    layers.Dropout: {"rate": 0.5},
    layers.Embedding: {"input_dim": 4, "output_dim": 3},
    layers.GaussianDropout: {"rate": 0.5},
    layers.GaussianNoise: {"stddev": 0.1},
    layers.Permute: {"dims": (2, 1)},
    layers.RepeatVector: {"n": 2},
    layers.Reshape: {"target_shape": (-1,)},
    layers.Resizing: {"height": 2, "width": 2},
    layers.ReversibleEmbedding: {"input_dim": 4, "output_dim": 3},
    layers.SpatialDropout1D: {"rate": 0.5},
    layers.SpatialDropout2D: {"rate": 0.5},
    layers.SpatialDropout3D: {"rate": 0.5},
}

# A layer with a kernel: shape of its input, its output channels, bits of its weights under w4a8.
LINEAR = {
    layers.Dense: ((6,), 4, 4),
    layers.Conv1D: ((6, 3), 4, 4),
    layers.Conv2D: ((6, 6, 3), 4, 4),
    layers.DepthwiseConv1D: ((6, 3), 6, 8),
    layers.DepthwiseConv2D: ((6, 6, 3), 6, 8),
    layers.Conv1DTranspose: ((6, 3), 4, 8),
    layers.Conv2DTranspose: ((6, 6, 3), 4, 8),
}


# Layers whose weights are looked up.
TABLES = (layers.Embedding, layers.ReversibleEmbedding)


def make(layer_type, **kwargs):
    return layer_type(**ARGUMENTS.get(layer_type, {}), **kwargs)


def built(layer_type, **kwargs):
    layer = make(layer_type, **kwargs)
    layer.build((None, *LINEAR[layer_type][0]))
    return layer


def config_of(layer, scheme="w8a8", registry=KERAS_LAYERS):
    return registry.get_quantize_config(layer, SCHEMES[scheme])


class TestEveryRow:
    @pytest.mark.parametrize("layer_type", ROWS, ids=lambda t: t.__name__)
    def test_it_has_a_config_exactly_where_the_scheme_touches_it(self, layer_type):
        layer = make(layer_type)
        touched = [name for name in SCHEMES if config_of(layer, name) is not None]
        without = (layers.ELU, layers.PReLU, layers.UnitNormalization)  # No kernel of 16 bits.
        wide = layer_type not in without
        static = [
            name
            for name, scheme in SCHEMES.items()
            if scheme.static and (wide or scheme.activation_bits == 8)
        ]
        weights = layer_type in LINEAR or layer_type in TABLES
        assert touched == (list(SCHEMES) if weights else static)

    @pytest.mark.parametrize("layer_type", ROWS, ids=lambda t: t.__name__)
    def test_its_configs_survive_serialization(self, layer_type):
        layer = make(layer_type)
        for name in SCHEMES:
            config = config_of(layer, name)
            described = json.loads(json.dumps(keras.saving.serialize_keras_object(config)))
            again = keras.saving.deserialize_keras_object(described)
            assert type(again) is type(config)
            if config is not None:
                assert again.get_config() == config.get_config()

    @pytest.mark.parametrize("layer_type", ROWS, ids=lambda t: t.__name__)
    def test_its_outputs_have_the_activations_of_the_scheme(self, layer_type):
        layer = make(layer_type)
        for name, bits in (("w8a8", 8), ("w8a16", 16), ("w4a8", 8)):
            config = config_of(layer, name)
            if config is None:  # No kernel of that width, says the test above.
                continue
            quantizers = config.get_output_quantizers(layer)
            assert config.output_specs(layer) == [q.spec for q in quantizers]
            for quantizer in quantizers:
                assert isinstance(quantizer, Quantizer)
                assert quantizer.spec.num_bits == bits

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("layer_type", LINEAR, ids=lambda t: t.__name__)
    def test_its_weights_have_a_scale_for_each_output_channel(self, layer_type, scheme):
        layer = built(layer_type)
        ((variable, quantizer),) = config_of(layer, scheme).get_weights_and_quantizers(layer)
        assert variable is layer.kernel
        if scheme == "f16":
            assert isinstance(quantizer, Float16)
            return
        asked = int(scheme[1])
        bits = asked if LINEAR[layer_type][2] == 4 else 8
        assert quantizer.spec == QuantSpec(
            bits, symmetric=True, narrow_range=bits > 2, granularity=quantizer.spec.granularity
        )
        quantizer.build(variable.shape)
        assert np.prod(quantizer.scale_shape) == LINEAR[layer_type][1]

    @pytest.mark.parametrize("layer_type", LINEAR, ids=lambda t: t.__name__)
    def test_two_layers_have_two_quantizers(self, layer_type):
        layer = built(layer_type)
        config = config_of(layer)
        first, second = (config.get_weights_and_quantizers(layer)[0][1] for _ in range(2))
        assert first is not second

    @pytest.mark.parametrize(
        "layer_type",
        [layers.Conv1D, layers.Conv2D, layers.DepthwiseConv2D, layers.Conv2DTranspose],
    )
    def test_channels_first_stays_float(self, layer_type):
        assert config_of(make(layer_type, data_format="channels_first")) is None

    @pytest.mark.parametrize(
        "layer",
        [
            layers.Activation("softplus"),
            layers.Activation(lambda x: x * x),
            layers.ELU(alpha=0.5),
            layers.UpSampling2D(interpolation="bicubic"),
        ],
        ids=["softplus", "lambda", "elu of 0.5", "bicubic"],
    )
    def test_what_no_integer_kernel_computes_stays_float(self, layer):
        assert config_of(layer) is None

    @pytest.mark.parametrize(
        ("activation", "scale", "zero_point"),
        [("sigmoid", 1 / 256, -128), ("softmax", 1 / 256, -128), ("tanh", 1 / 128, 0)],
    )
    def test_grids_that_the_specification_fixes_are_fixed(self, activation, scale, zero_point):
        (quantizer,) = config_of(layers.Activation(activation)).get_output_quantizers(None)
        assert (quantizer.scale, quantizer.zero_point) == (scale, zero_point)


class TestRegister:
    def test_a_second_registration_is_an_error(self):
        registry = tfq.QuantizeRegistry()
        registry.register(Factor, lambda layer, scheme: FactorConfig())
        with pytest.raises(ValueError, match=r"registered once\. Received: Factor"):
            registry.register(Factor, lambda layer, scheme: None)
        assert isinstance(config_of(Factor(), registry=registry), FactorConfig)

    def test_what_is_not_registered_is_looked_up_in_the_parent(self):
        parent = tfq.QuantizeRegistry(parent=None)
        parent.register(Factor, lambda layer, scheme: FactorConfig())
        registry = tfq.QuantizeRegistry(parent=parent)
        assert registry.supports(Factor())
        assert isinstance(config_of(Factor(), registry=registry), FactorConfig)
        assert not registry.supports(layers.Dense(2))
        assert registry.layer_types() == [Factor]

    def test_a_registry_comes_before_its_parent(self):
        registry = tfq.QuantizeRegistry()
        registry.register(layers.Dense, lambda layer, scheme: None)
        assert config_of(layers.Dense(2), registry=registry) is None
        assert config_of(layers.Dense(2)) is not None
        assert len(registry.layer_types()) == len(ROWS)

    def test_keras_layers_are_known_unless_told_otherwise(self):
        assert tfq.QuantizeRegistry().supports(layers.Dense(2))
        assert not tfq.QuantizeRegistry(parent=None).supports(layers.Dense(2))
        assert tfq.QuantizeRegistry(parent=None).layer_types() == []

    def test_a_subclass_is_not_taken_for_the_class_it_extends(self):
        assert not KERAS_LAYERS.supports(TwiceDense(2))
        assert config_of(TwiceDense(2)) is None

    def test_the_factory_sees_layer_and_scheme(self):
        seen = []
        registry = tfq.QuantizeRegistry(parent=None)
        registry.register(Factor, lambda *args: seen.append(args))
        layer = Factor()
        registry.get_quantize_config(layer, SCHEMES["w4"])
        assert seen == [(layer, SCHEMES["w4"])]


# Bits of weights and grid of activations, group size, whether calibration sets the grids.
WIDE = QuantSpec(16, symmetric=True)
SCHEME_ROWS = {
    "w8a8": (8, QuantSpec(8), 0, True),
    "w8a16": (8, WIDE, 0, True),
    "w4a8": (4, QuantSpec(8), 0, True),
    "w2a8": (2, QuantSpec(8), 0, True),
    "w8": (8, None, 0, False),
    "w4": (4, None, 0, False),
    "w4_g32": (4, None, 32, False),
    "w8a8_dynamic": (8, QuantSpec(8), 0, False),
    "w4a8_g32": (4, QuantSpec(8), 32, False),
    "f16": (None, None, 0, False),
}


class TestSchemes:
    @pytest.mark.parametrize("name", SCHEMES)
    def test_a_name_says_bits_and_groups(self, name):
        weight_bits, activations, group_size, static = SCHEME_ROWS[name]
        scheme = schemes.get(name)
        assert scheme.name == name
        assert scheme.activations == activations
        assert (scheme.group_size, scheme.static) == (group_size, static)
        for granularity in (PerTensor(), PerAxis((2, 3))):
            expected = weight_bits and QuantSpec(
                weight_bits,
                symmetric=True,
                narrow_range=weight_bits > 2,  # Of two bits every integer counts.
                granularity=granularity,
            )
            assert scheme.weights(granularity) == expected

    @pytest.mark.parametrize("size", [16, 33, -32, None, "32"])
    def test_a_size_of_groups_that_no_kernel_has_is_an_error(self, size):
        words = rf"`group_size` must be 32, 64, 128 or 0 .*Received: group_size={size!r}"
        with pytest.raises(ValueError, match=words):
            tfq.Scheme("own", 4, 8, group_size=size)

    @pytest.mark.parametrize(
        ("widths", "words"),
        [
            *(
                ({"weight_bits": bits}, "from 2 to 8, or None")
                for bits in (-4, 0, 1, 9, 16, True, 4.0, 4.5, "8")
            ),
            *(
                ({"activation_bits": bits}, "from 2 to 16, or None")
                for bits in (-3, 0, 1, 17, 32, True, 8.0, "8")
            ),
            ({"edge_weight_bits": 9}, "from 2 to 8, or None"),
            ({"activation_bits": 16, "dynamic": True}, "8 where it is dynamic"),
            ({"activation_bits": None, "dynamic": True}, "8 where it is dynamic"),
        ],
    )
    def test_a_width_that_no_kernel_has_is_an_error(self, widths, words):
        name, value = next(iter(widths.items()))
        with pytest.raises(ValueError, match=f"`{name}` must be .*{words}") as error:
            tfq.Scheme("own", **{"weight_bits": 8, "activation_bits": 8, **widths})
        assert str(error.value).endswith(f"Received: {name}={value!r}.")

    @pytest.mark.parametrize("bits", [2, 8])
    @pytest.mark.parametrize("activation_bits", [2, 8, 9, 16, None])
    def test_widths_at_the_ends_are_taken(self, bits, activation_bits):
        scheme = tfq.Scheme("own", bits, activation_bits, edge_weight_bits=bits)
        assert (scheme.weight_bits, scheme.activation_bits) == (bits, activation_bits)

    @pytest.mark.parametrize("argument", ["activation_bits", "edge_weight_bits"])
    def test_half_precision_stands_alone(self, argument):
        words = rf"`{argument}` must be None where .*Received: {argument}=8, weight_bits=None"
        with pytest.raises(ValueError, match=words):
            tfq.Scheme("own", **{"weight_bits": None, "activation_bits": None, argument: 8})

    def test_half_precision_has_no_groups(self):
        with pytest.raises(ValueError, match=r"no groups\. Received: group_size=32"):
            tfq.Scheme("own", None, None, group_size=32)

    @pytest.mark.parametrize("argument", ["weight_quantizer", "activation_quantizer"])
    def test_an_unknown_family_is_an_error(self, argument):
        with pytest.raises(ValueError, match=rf"`{argument}` must be one of .*'learned_step'"):
            tfq.Scheme("own", 8, 8, **{argument: "unheard_of"})

    def test_the_first_and_the_last_layer_may_be_wider(self):
        parts = [layers.Dense(4, name=f"dense{i}") for i in range(3)]
        model = keras.Sequential([keras.Input((6,)), *parts])
        quantized = tfq.quantize_model(model, "w2a8")
        wrappers = [x for x in quantized.layers if isinstance(x, tfq.QuantizeWrapper)]
        widths = [wrapper.weight_quantizers[0][1].spec.num_bits for wrapper in wrappers]
        assert widths == [8, 2, 8]

    def test_weights_are_as_wide_as_the_kernel_needs(self):
        assert schemes.get("w4a8").weights(PerTensor(), minimum_bits=8).num_bits == 8
        assert schemes.get("w8a8").weights(PerTensor(), minimum_bits=4).num_bits == 8

    def test_a_scheme_stands_for_itself(self):
        own = tfq.Scheme("w2a8", 2, 8)
        assert schemes.get(own) is own

    @pytest.mark.parametrize("unknown", ["int8", "", "W8A8", 8, None])
    def test_an_unknown_scheme_is_an_error_that_lists_the_known(self, unknown):
        with pytest.raises(ValueError, match=r"must be one of w8a8, .*f16.* Received: ") as error:
            schemes.get(unknown)
        assert repr(unknown) in str(error.value)

    def test_a_model_is_quantized_under_a_scheme_of_ones_own(self):
        model = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
        quantized = tfq.quantize_model(model, tfq.Scheme("w3a8", 3, 8))
        (wrapper,) = [x for x in quantized.layers if isinstance(x, tfq.QuantizeWrapper)]
        ((_, quantizer),) = wrapper.weight_quantizers
        assert quantizer.spec.num_bits == 3


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Factor(layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=shape[-1:], initializer="random_normal", name="factor")

    def call(self, x):
        return x * self.factor


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Unreadable(Factor):
    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("Expected: real numbers.")
        return x * self.factor

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class FactorConfig(tfq.QuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [(layer.factor, AbsMax(QuantSpec(8, symmetric=True, narrow_range=True)))]

    def get_output_quantizers(self, layer):
        return [Static(QuantSpec(8))]


@keras.saving.register_keras_serializable(package="tfquant_tests")
class TwiceDense(layers.Dense):
    def call(self, x):
        return 2.0 * super().call(x)


@pytest.fixture
def with_factor(rng):
    """A calibrated model with a layer of the user's, its float model and data."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(4, 3, activation="relu")(x)
    y = Factor(name="own")(y)
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))
    registry = tfq.QuantizeRegistry()
    registry.register(Factor, lambda layer, scheme: FactorConfig())
    data = rng.normal(size=(32, 6, 6, 3)).astype(np.float32)
    quantized = tfq.calibrate(tfq.quantize_model(model, registry=registry), data, progress=False)
    return quantized, model, data


def wrapper_of(quantized, name):
    found = [x for x in quantized.layers if isinstance(x, tfq.QuantizeWrapper)]
    return next(x for x in found if x.layer.name == name)


class TestALayerOfTheUsers:
    def test_it_is_quantized_as_its_config_says(self, with_factor, rng):
        quantized, model, _ = with_factor
        wrapper = wrapper_of(quantized, "own")
        factor = model.get_layer("own").factor.numpy()
        step = np.float32(np.abs(factor).max()) * np.float32(1 / 127)
        x = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
        params = wrapper.output_quantizers[0][0].params()
        exact = x * (np.rint(factor / step) * step)
        y = np.asarray(wrapper(x))
        inside = np.abs(y - exact) <= float(params.scale) / 2 * (1 + 1e-4)
        ends = (np.array([-128, 127]) - float(params.zero_point)) * float(params.scale)
        assert (inside | np.isclose(y, ends[0]) | np.isclose(y, ends[1])).all()
        assert inside.mean() > 0.5

    def test_it_converts_and_agrees_with_its_file(self, with_factor, tmp_path):
        quantized, _, data = with_factor
        report = tfq.to_tflite(quantized, tmp_path / "model.tflite", samples=data, progress=False)
        # A product in the file: its rounding may differ by a step, of which the layer behind
        # sums 64.
        assert report.end_to_end.largest <= 2

    def test_it_is_the_same_once_saved_and_loaded(self, with_factor, tmp_path):
        quantized, _, data = with_factor
        quantized.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded(data), quantized(data))

    def test_without_its_row_it_is_read_as_the_operations_it_consists_of(self, rng):
        model = keras.Sequential([keras.Input((6,)), layers.Dense(4), Factor(name="own")])
        quantized = tfq.quantize_model(model)
        assert not any(isinstance(x, Factor) for x in quantized.layers)
        x = rng.normal(size=(3, 6)).astype(np.float32)
        expected = np.asarray(model(x))
        # Weights of 8 bits: half a step of 127 for each of six, of like size, at the very most.
        atol = 0.02 * np.abs(expected).max()
        np.testing.assert_allclose(quantized(x), expected, atol=atol)

    def test_what_cannot_be_read_stays_float_and_is_named(self, rng, caplog):
        model = keras.Sequential([keras.Input((6,)), layers.Dense(4), Unreadable(name="own")])
        with caplog.at_level("WARNING", logger="tfquant"):
            quantized = tfq.quantize_model(model)
        assert "'own' (Unreadable)" in caplog.text
        assert any(isinstance(x, Unreadable) for x in quantized.layers)

    def test_a_subclass_of_dense_computes_its_own_thing(self, rng):
        model = keras.Sequential([keras.Input((6,)), TwiceDense(4)])
        x = rng.normal(size=(3, 6)).astype(np.float32)
        expected = np.asarray(model(x))
        atol = 0.02 * np.abs(expected).max()  # As above; a plain dense layer is half of it.
        np.testing.assert_allclose(tfq.quantize_model(model)(x), expected, atol=atol)


GROUPABLE = {
    "dense": (lambda: layers.Dense(5), 2),
    "conv1d": (lambda: layers.Conv1D(5, 3), 3),
    "conv2d": (lambda: layers.Conv2D(5, 3), 4),
    "grouped": (lambda: layers.Conv2D(4, 3, groups=2), 4),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), 4),
    "transposed": (lambda: layers.Conv2DTranspose(5, 3), 4),
}


class TestGroups:
    """Which kernels have a scale for each group of inputs."""

    def quantizer(self, kind, scheme, inputs):
        make, rank = GROUPABLE[kind]
        layer = make()
        layer.build((None,) * (rank - 1) + (inputs,))
        config = KERAS_LAYERS.get_quantize_config(layer, schemes.get(scheme))
        ((variable, quantizer),) = config.get_weights_and_quantizers(layer)
        quantizer.build(variable.shape)
        return config, layer, quantizer

    @pytest.mark.parametrize(
        ("scheme", "kinds"),
        [
            (tfq.Scheme("static", 4, 8, group_size=64), {"dense", "conv1d", "conv2d"}),
            (tfq.Scheme("weights", 4, None, group_size=64), {"dense", "conv1d", "conv2d"}),
            (tfq.Scheme("dynamic", 4, 8, dynamic=True, group_size=64), {"dense"}),
        ],
        ids=lambda x: getattr(x, "name", None),
    )
    def test_packed_kernels_have_them_and_litert_in_dense_layers_alone(self, scheme, kinds):
        for kind in GROUPABLE:
            config, layer, quantizer = self.quantizer(kind, scheme, 128)
            assert quantizer.grouped == (kind in kinds)
            if kind in kinds:
                assert quantizer.scale_shape == (*layer.kernel.shape[:-2], 2, 5)
            assert config.why_not_grouped(layer) == ""
            again = type(config).from_config(config.get_config())
            assert again.get_config() == config.get_config()

    @pytest.mark.parametrize("kind", ["dense", "conv1d", "conv2d"])
    @pytest.mark.parametrize(
        ("inputs", "grouped"), [(31, False), (32, True), (33, False), (96, True)]
    )
    def test_inputs_that_groups_do_not_divide_have_scales_per_channel(self, kind, inputs, grouped):
        config, layer, quantizer = self.quantizer(kind, "w4_g32", inputs)
        assert quantizer.grouped == grouped
        if not grouped:
            assert quantizer.spec.granularity == PerAxis(-1)
            words = f"groups of 32 do not divide its {inputs} inputs"
            assert config.why_not_grouped(layer) == words

"""Models that Keras quantized: its own integers and outputs are what comes out."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import tfquant as tfq

kq = pytest.importorskip("keras.quantizers")
if not hasattr(kq, "Int4QuantizationConfig"):
    pytest.skip("Keras before 3.14 has no blocks", allow_module_level=True)

# Keras names each layer that it does not quantize.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")

# float32 sums of a hundred products in another order.
ROUNDING = 1e-5

INT8_FLOAT = kq.Int8QuantizationConfig(activation_quantizer=None)
BY_CHANNEL = kq.Int4QuantizationConfig(block_size=-1)
BY_BLOCK = kq.Int4QuantizationConfig(block_size=16)
DIVIDES_NOTHING = kq.Int4QuantizationConfig(block_size=20)


def drawn(model, mean=0.1):
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        # Not about zero: blocks have zero points.
        variable.assign(0.3 * rng.normal(size=variable.shape) + mean)
    return model


def dense_network():
    x = inputs = keras.Input((48,))
    x = layers.Dense(64, activation="gelu", name="first")(x)
    x = layers.Dense(33, activation="relu", name="odd")(x)
    x = layers.Reshape((3, 11))(x)
    x = layers.EinsumDense("abc,cde->abde", (3, 4, 5), bias_axes="de", name="heads")(x)
    x = layers.EinsumDense("abcd,cde->abe", (3, 7), bias_axes="e", activation="relu", name="out")(x)
    x = layers.Flatten()(x)
    return drawn(keras.Model(inputs, layers.Dense(10, use_bias=False, name="last")(x)))


def vectors(rows=32, size=48):
    return np.random.default_rng(1).normal(size=(rows, size)).astype("float32")


def close(found, expected, tolerance=ROUNDING):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def snr(expected, found):
    expected = np.asarray(expected, "float64")
    return 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum())


def file_of(q, tmp_path, samples):
    path = tmp_path / "model.tflite"
    tfq.to_tflite(q, path, samples=samples)
    outputs = tfq.run(path, samples)
    return path, outputs if hasattr(outputs, "shape") else next(iter(outputs.values()))


def integer_constants(path):
    """The sets of integers in a file: 2D constants, outputs by inputs."""
    interpreter = Interpreter(str(path))
    found = []
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and len(detail["shape"]) == 2:
            try:
                found.append(interpreter.get_tensor(detail["index"]))
            except ValueError:
                continue  # No constant.
    return found


@pytest.mark.parametrize(
    "config", [INT8_FLOAT, BY_CHANNEL, BY_BLOCK, DIVIDES_NOTHING], ids=lambda c: str(c.mode)
)
def test_outputs_are_those_of_keras_to_a_rounding_error(config, tmp_path):
    model, x = dense_network(), vectors()
    model.quantize(config=config)
    expected = model.predict(x, verbose=0)
    q = tfq.from_keras_quantized(model)
    close(q.predict(x, verbose=0), expected)
    close(file_of(q, tmp_path, x)[1], expected)


def test_int8_outputs_lie_as_near_to_keras_as_keras_to_float(tmp_path):
    # Both round inputs to 8 bits when they run, on other grids: Keras without a zero point.
    model, x = dense_network(), vectors()
    floats = model.predict(x, verbose=0)
    model.quantize("int8")
    expected = model.predict(x, verbose=0)
    q = tfq.from_keras_quantized(model)
    assert snr(expected, q.predict(x, verbose=0)) > snr(floats, expected) - 3
    _, outputs = file_of(q, tmp_path, x)
    assert snr(expected, outputs) > snr(floats, expected) - 3


def test_each_integer_of_int8_stands_in_the_file(tmp_path):
    model, x = dense_network(), vectors()
    model.quantize("int8")
    path, _ = file_of(tfq.from_keras_quantized(model), tmp_path, x)
    constants = integer_constants(path)
    for name in ("first", "odd", "heads", "out", "last"):
        layer = model.get_layer(name)
        kernel = ops.convert_to_numpy(layer.kernel)
        columns = ops.convert_to_numpy(layer.kernel_scale).size
        matrix = kernel.reshape(-1, columns).T
        assert any(np.array_equal(matrix, constant) for constant in constants), name


def test_each_level_of_a_block_is_kept_and_each_step():
    model = keras.Sequential([keras.Input((40,)), layers.Dense(6, name="dense")])
    drawn(model).quantize(config=kq.Int4QuantizationConfig(block_size=16))
    layer = model.get_layer("dense")
    q = tfq.from_keras_quantized(model)
    kernel = ops.convert_to_numpy(layer.kernel).astype("int64")
    zero, scale = (ops.convert_to_numpy(v) for v in (layer.kernel_zero, layer.kernel_scale))
    wrappers = {x.layer.name: x for x in q.layers if isinstance(x, tfq.QuantizeWrapper)}
    for block, rows in enumerate((slice(0, 16), slice(16, 32), slice(32, 40))):
        wrapper = wrappers[f"dense_dense_{block}"]
        found, steps, _ = wrapper.quantize_config.integer_weights(wrapper, None)
        np.testing.assert_array_equal(found, kernel[rows] - zero[block])
        np.testing.assert_array_equal(steps, scale[block])


def test_int4_by_channel_takes_4_bits():
    model = drawn(keras.Sequential([keras.Input((40,)), layers.Dense(6, name="dense")]))
    model.quantize(config=BY_CHANNEL)
    q = tfq.from_keras_quantized(model)
    (wrapper,) = [x for x in q.layers if isinstance(x, tfq.QuantizeWrapper)]
    ((_, quantizer),) = wrapper.weight_quantizers
    assert quantizer.spec.num_bits == 4


def token_network(*body):
    inputs = keras.Input((8,), dtype="int32")
    x = layers.Embedding(50, 32, name="tokens")(inputs)
    for layer in body:
        x = layer(x, x) if isinstance(layer, layers.MultiHeadAttention) else layer(x)
    x = layers.GlobalAveragePooling1D()(x)
    return drawn(keras.Model(inputs, layers.Dense(5, name="head")(x)))


def tokens(rows=16):
    return np.random.default_rng(2).integers(0, 50, (rows, 8)).astype("int32")


@pytest.mark.parametrize("config", [BY_CHANNEL, BY_BLOCK], ids=["channel", "block"])
def test_embeddings_keep_their_integers(config, tmp_path):
    model, x = token_network(layers.Dense(16, activation="relu")), tokens()
    model.quantize(config=config)
    q = tfq.from_keras_quantized(model)
    close(file_of(q, tmp_path, x)[1], model.predict(x, verbose=0))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [BY_CHANNEL, "int8"], ids=["int4", "int8"])
def test_reversible_embeddings_keep_both_tables(tied, config, tmp_path):
    inputs = keras.Input((8,), dtype="int32")
    table = layers.ReversibleEmbedding(50, 32, tie_weights=tied, name="table")
    x = layers.Dense(32, activation="relu")(table(inputs))
    model, x = drawn(keras.Model(inputs, table(x, reverse=True))), tokens()
    model.quantize(config) if config == "int8" else model.quantize(config=config)
    expected = model.predict(x, verbose=0)
    _, outputs = file_of(tfq.from_keras_quantized(model), tmp_path, x)
    # The way back rounds its input in Keras, to 8 bits, and is float here.
    assert snr(expected, outputs) > 36
    found = tfq.from_keras_quantized(model)
    wrapper = next(
        x for x in found.layers if isinstance(x, tfq.QuantizeWrapper) and x.layer.name == "table"
    )
    variable, quantizer = wrapper.weight_quantizers[0]
    levels = np.rint(quantizer.call(variable.value) / quantizer.params(variable.value).scale)
    np.testing.assert_array_equal(levels, ops.convert_to_numpy(model.get_layer("table").embeddings))


@pytest.mark.parametrize("config", [BY_CHANNEL, INT8_FLOAT], ids=["int4", "int8"])
def test_attention_keeps_the_integers_inside(config, tmp_path):
    model = token_network(layers.MultiHeadAttention(4, 8, name="attention"))
    model.quantize(config=config)
    x = tokens()
    _, outputs = file_of(tfq.from_keras_quantized(model), tmp_path, x)
    close(outputs, model.predict(x, verbose=0))


def test_what_keras_left_float_stays_float():
    model = dense_network()
    model.quantize("int8", filters="first|heads")
    q = tfq.from_keras_quantized(model)
    wrapped = {x.layer.name for x in q.layers if isinstance(x, tfq.QuantizeWrapper)}
    assert wrapped == {"first", "heads_dense"}
    np.testing.assert_array_equal(
        ops.convert_to_numpy(q.get_layer("last").kernel),
        ops.convert_to_numpy(model.get_layer("last").kernel),
    )


def test_a_loaded_model_is_the_saved_one(tmp_path):
    model, x = dense_network(), vectors()
    model.quantize(config=BY_BLOCK)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    close(tfq.from_keras_quantized(loaded).predict(x, verbose=0), model.predict(x, verbose=0))


def test_nested_models_and_shared_layers_are_read(tmp_path):
    shared = layers.Dense(16, activation="tanh", name="shared")
    inner = keras.Sequential([keras.Input((16,)), layers.Dense(16, name="inside")], name="inner")
    inputs = keras.Input((16,))
    model = drawn(keras.Model(inputs, inner(shared(shared(inputs)))))
    model.quantize(config=BY_CHANNEL)
    x = vectors(size=16)
    q = tfq.from_keras_quantized(model)
    close(file_of(q, tmp_path, x)[1], model.predict(x, verbose=0))


def test_a_batch_norm_behind_keeps_the_integers(tmp_path):
    norm = layers.BatchNormalization()
    model = keras.Sequential([keras.Input((48,)), layers.Dense(8, name="dense"), norm])
    drawn(model)
    rng = np.random.default_rng(3)
    norm.set_weights([rng.normal(size=8), *rng.uniform(0.5, 2, (3, 8))])  # Gains of both signs.
    model.quantize(config=BY_CHANNEL)
    x = vectors()
    q = tfq.from_keras_quantized(model)
    close(file_of(q, tmp_path, x)[1], model.predict(x, verbose=0))


class Tokenizer:
    """Takes what are tokens already."""

    def tokenize(self, text):
        return np.asarray(text)


def chosen(kind, **settings):
    """Model with two dense layers whose integers GPTQ or AWQ chose."""
    block = keras.Sequential(
        [keras.Input((8, 32)), layers.Dense(24, activation="relu"), layers.Dense(32)], name="block"
    )
    # Keras keeps the zero point of a group without a negative weight modulo 256: none of those.
    model = drawn(token_network(block), mean=0.0)
    structure = {"pre_block_layers": [model.get_layer("tokens")], "sequential_blocks": [block]}
    data = np.random.default_rng(4).integers(0, 50, (4, 8)).astype("int32")
    config = kind(
        dataset=list(data),
        tokenizer=Tokenizer(),
        num_samples=4,
        sequence_length=8,
        quantization_layer_structure=structure,
        **settings,
    )
    model.quantize(config.mode, config=config, filters="dense.*")
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_bits": 4, "group_size": -1, "symmetric": True},
        {"weight_bits": 4, "group_size": 16},
        {"weight_bits": 4, "group_size": 20},
        {"weight_bits": 4, "group_size": 16, "activation_order": True},
        {"weight_bits": 3, "group_size": 8, "symmetric": True},
        {"weight_bits": 2, "group_size": 16},
        {"weight_bits": 8, "group_size": -1, "symmetric": True},
    ],
    ids=str,
)
def test_gptq_is_kept(settings, tmp_path):
    model, x = chosen(kq.GPTQConfig, **settings), tokens()
    expected = model.predict(x, verbose=0)
    q = tfq.from_keras_quantized(model)
    close(file_of(q, tmp_path, x)[1], expected)


@pytest.mark.parametrize("group_size", [-1, 8, 20])
def test_awq_is_kept(group_size, tmp_path):
    model, x = chosen(kq.AWQConfig, group_size=group_size), tokens()
    expected = model.predict(x, verbose=0)
    q = tfq.from_keras_quantized(model)
    close(file_of(q, tmp_path, x)[1], expected)
    q.save(tmp_path / "model.keras")
    close(keras.saving.load_model(tmp_path / "model.keras").predict(x, verbose=0), expected)


def test_onnx_and_packed_models_come_of_it(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = dense_network(), vectors()
    model.quantize(config=BY_CHANNEL)
    expected, q = model.predict(x, verbose=0), tfq.from_keras_quantized(model)
    tfq.to_onnx(q, tmp_path / "model.onnx")
    plain = onnxruntime.SessionOptions()  # Optimised, 4-bit products round their inputs to 8 bits.
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), plain)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x})
    close(outputs, expected)
    packed = tfq.to_packed(q)
    packed = packed[0] if isinstance(packed, tuple) else packed
    # Packed kernels round their inputs to 8 bits.
    assert snr(expected, packed.predict(x, verbose=0)) > 30


def test_float8_is_refused_by_name():
    model = dense_network()
    model.quantize("float8", filters="first")
    with pytest.raises(ValueError, match="Received: 'first' in mode 'float8'"):
        tfq.from_keras_quantized(model)


def test_lora_is_refused_by_name():
    model = dense_network()
    model.quantize("int8", filters="first")
    model.get_layer("first").enable_lora(2)
    with pytest.raises(ValueError, match="'first' has LoRA weights"):
        tfq.from_keras_quantized(model)


def test_blocks_inside_of_attention_are_refused_by_name():
    model = token_network(layers.MultiHeadAttention(4, 8, name="attention"))
    model.quantize(config=BY_BLOCK)
    with pytest.raises(ValueError, match=r"'attention/\w+' in mode 'int4'.*block_size=-1"):
        tfq.from_keras_quantized(model)


def test_an_einsum_of_other_axes_is_refused_by_name():
    inputs = keras.Input((4, 6))
    model = drawn(
        keras.Model(inputs, layers.EinsumDense("abc,bd->adc", (5, 6), name="mix")(inputs))
    )
    model.quantize("int8")
    with pytest.raises(ValueError, match="'mix' with equation 'abc,bd->adc'"):
        tfq.from_keras_quantized(model)


def test_levels_over_8_bits_are_refused():
    model = chosen(kq.GPTQConfig, weight_bits=8, group_size=-1, symmetric=False)
    with pytest.raises(ValueError, match="must fit 8 bits"):
        tfq.from_keras_quantized(model)


def test_a_zero_point_far_from_the_levels_is_refused():
    model = chosen(kq.GPTQConfig, weight_bits=4, group_size=-1)
    layer = model.get_layer("block").layers[0]
    layer.kernel_zero.assign(ops.full(layer.kernel_zero.shape, 253, "uint8"))  # -3
    with pytest.raises(ValueError, match=f"levels of '{layer.name}' must fit 8 bits"):
        tfq.from_keras_quantized(model)


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match=r"No layer of .* is quantized"):
        tfq.from_keras_quantized(dense_network())


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"must be a keras\.Model"):
        tfq.from_keras_quantized(np.zeros(3))


def test_the_users_model_is_not_changed():
    model, x = dense_network(), vectors()
    model.quantize("int8")
    before = model.predict(x, verbose=0)
    tfq.from_keras_quantized(model)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)

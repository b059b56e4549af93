"""Backbones of KerasHub, made from a config with random weights."""

import keras
import numpy as np
import pytest

import tfquant as tfq

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

keras_hub = pytest.importorskip("keras_hub", reason="needs keras-hub: pip install '.[hub]'")

STEPS, WORDS, LAYERS = 6, 20, 2
TEXT = {
    "vocabulary_size": WORDS,
    "num_layers": LAYERS,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}


def bert():
    return keras_hub.models.BertBackbone(**TEXT, num_heads=2, max_sequence_length=STEPS)


def gpt2():
    return keras_hub.models.GPT2Backbone(**TEXT, num_heads=2, max_sequence_length=STEPS)


def llama():
    return keras_hub.models.LlamaBackbone(**TEXT, num_query_heads=2, num_key_value_heads=1)


def vit():
    return keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=LAYERS,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )


def data_for(model, rng, count=32):
    arrays = {}
    for x in model.inputs:
        shape = (count, *(n or STEPS for n in x.shape[1:]))
        if keras.backend.is_float_dtype(x.dtype):
            arrays[x.name] = rng.uniform(size=shape).astype(np.float32)
        elif "mask" in x.name:
            arrays[x.name] = np.ones(shape, np.int32)
        elif "segment" in x.name:
            arrays[x.name] = np.zeros(shape, np.int32)
        else:
            arrays[x.name] = rng.integers(0, WORDS, shape).astype(np.int32)
    return arrays


@pytest.mark.parametrize("make", [bert, gpt2, llama, vit], ids=lambda f: f.__name__)
def test_a_backbone_is_quantized_and_converts(make, rng, tmp_path):
    keras.utils.set_random_seed(0)
    model = make()
    data = data_for(model, rng)
    feed = data if isinstance(model.input, dict) else next(iter(data.values()))
    quantized = tfq.quantize_model(model)
    tfq.calibrate(quantized, data, progress=False)
    outputs = [keras.tree.flatten(m(feed, training=False)) for m in (model, quantized)]
    for expected, received in zip(*outputs, strict=True):
        expected = np.asarray(expected)
        np.testing.assert_allclose(received, expected, atol=0.15 * np.abs(expected).max())
    report = tfq.to_tflite(quantized, tmp_path / "model.tflite", progress=False)
    kernels = [layer for layer in report.layers if layer.operator == "FULLY_CONNECTED"]
    assert kernels and all(layer.weight_bits == 8 for layer in kernels)
    products = [layer for layer in report.layers if layer.operator == "BATCH_MATMUL"]
    products = [layer for layer in products if "_squares" not in layer.name]  # Of norms.
    assert len(products) == 2 * LAYERS
    multiply = {"BATCH_MATMUL", "FULLY_CONNECTED", "SOFTMAX"}
    assert not multiply & {operator.operator for operator in report.float_operators}
    # Products behind masks that the model computes are not compared one by one.
    compared = [layer.parity for layer in [*kernels, *products] if layer.parity is not None]
    assert len(compared) >= len(kernels) and max(parity.largest for parity in compared) <= 1

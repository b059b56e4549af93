"""Small models after real architectures: quantized whole, and no worse than others do it."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from architectures import MODELS, build, data_of
from architectures.measure import SCHEMES, measure

import tfquant as tfq
from tfquant.litert.flatbuffer import File
from tfquant.litert.interpreter import run, to_file_inputs

# Of every kind one, and those that take seconds.
DEFAULT = (
    "anomaly",
    "bert",
    "ds_cnn",
    "gat",
    "gcn",
    "mobilenet_v2",
    "super_resolution",
    "two_tower",
    "unet",
    "vision_transformer",
)

CASES = [
    pytest.param(
        name, scheme, marks=() if scheme == "w8a8" and name in DEFAULT else pytest.mark.long
    )
    for name in MODELS
    for scheme in SCHEMES
]


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_an_architecture_is_quantized_whole_and_no_worse_than_by_others(name, scheme, tmp_path):
    model = build(name)
    found = measure(model, data_of(model), scheme, tmp_path)
    assert found.apart == 0
    assert found.agrees
    if found.rival is not None and found.rival < 100:  # Or it quantized nothing.
        assert found.sqnr > found.rival - 1.0
        assert len(found.float_operators) <= len(found.rival_float), found.float_operators


# Dense layers on sequences, norms, constants; a transposed convolution.
FREE = ("autoencoder", "bert", "mlp_mixer")
FREE_CASES = [pytest.param(n, marks=() if n in FREE else pytest.mark.long) for n in MODELS]


@pytest.mark.parametrize("name", FREE_CASES)
def test_a_free_batch_makes_nothing_float_and_nothing_differ(name, tmp_path):
    model = build(name)
    data = data_of(model)
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    fixed, free = (
        tfq.to_tflite(q, tmp_path / "m.tflite", samples=data, batch_size=n, progress=False)
        for n in (1, None)
    )
    assert len(free.float_operators) == len(fixed.float_operators)
    assert free.broken_claims == []
    claims = {layer.arithmetic for layer in free.layers if layer.parity and layer.parity.differing}
    assert claims <= {"free size"}  # Which kernel it is, XNNPACK decides by it.
    assert claims or free.end_to_end.differing == 0
    few = [array[:3] for array in (data if isinstance(data, list) else [data])]
    file = File((tmp_path / "m.tflite").read_bytes())
    numbers = to_file_inputs(file, few)
    together, one_by_one = at_once(file, numbers), run(file.to_bytes(), numbers)
    for received, expected in zip(together, one_by_one, strict=True):
        np.testing.assert_array_equal(received, expected)


def at_once(file, rows):
    interpreter = Interpreter(model_content=file.to_bytes())
    inputs = interpreter.get_input_details()
    for detail, array in zip(inputs, rows, strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(inputs, rows, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]

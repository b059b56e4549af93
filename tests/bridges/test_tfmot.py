"""Models that tfmot trained: the integers and outputs of its own `.tflite`.

`record_tfmot.py` made what is read here.
"""

import json
import pathlib

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import tfquant as tfq

HERE = pathlib.Path(__file__).parent
NETWORKS = ["functional", "sequential"]


def recorded(network):
    """Description and weights of a network, and all that was recorded."""
    file = np.load(HERE / f"tfmot_{network}.npz")
    config, weights = json.loads(str(file["config"])), {}
    for key in file.files:
        if key.startswith("weight|"):
            _, layer, name = key.split("|")
            weights.setdefault(layer, {})[name] = file[key]
    return config, weights, file


def bridged(network):
    config, weights, file = recorded(network)
    return tfq.from_tfmot((config, weights)), file["x"].astype("float32"), file


def constants(path):
    interpreter, found = Interpreter(str(path)), []
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and len(detail["shape"]) in (2, 4):
            try:
                found.append(interpreter.get_tensor(detail["index"]))
            except ValueError:
                continue  # No constant.
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_the_file_has_the_integers_of_tfmots_own(network, tmp_path):
    q, x, file = bridged(network)
    tfq.to_tflite(q, tmp_path / "model.tflite", samples=x)
    ours = constants(tmp_path / "model.tflite")
    theirs = [file[key] for key in file.files if key.startswith("constant|")]
    assert theirs
    for constant in theirs:
        assert any(np.array_equal(constant, other) for other in ours)


# Behind a mean tfmot rounds once more, to a range of its own; here the mean's grid is its input's.
# On the second network that moves an output of 1/256 a step by three.
@pytest.mark.parametrize(("network", "tolerance"), [("functional", 0), ("sequential", 4 / 256)])
def test_outputs_are_those_of_tfmots_own_file(network, tolerance, tmp_path):
    q, x, file = bridged(network)
    tfq.to_tflite(q, tmp_path / "model.tflite", samples=x)
    outputs = tfq.run(tmp_path / "model.tflite", x)
    np.testing.assert_allclose(outputs, file["outputs"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(q.predict(x, verbose=0), outputs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_trains_on(network):
    q, x, file = bridged(network)
    q.compile("sgd", "mse")
    before = q.evaluate(x, 0 * file["outputs"], verbose=0)
    q.fit(x, 0 * file["outputs"], epochs=3, verbose=0)
    assert q.evaluate(x, 0 * file["outputs"], verbose=0) < before


def test_a_model_without_ranges_is_refused():
    config, weights, _ = recorded("functional")
    config["config"]["layers"] = [
        x for x in config["config"]["layers"] if x["class_name"] == "InputLayer"
    ]
    with pytest.raises(ValueError, match="'network' without ranges"):
        tfq.from_tfmot((config, weights))


def test_a_missing_range_is_named():
    config, weights, _ = recorded("functional")
    del weights["quant_add"]["output_min"]
    with pytest.raises(ValueError, match="no range for what 'add' gives"):
        tfq.from_tfmot((config, weights))


def test_another_scheme_is_refused_by_name():
    config, weights, _ = recorded("functional")
    config["config"]["layers"][2]["config"]["quantize_config"]["class_name"] = "MyConfig"
    with pytest.raises(ValueError, match="'conv' with a MyConfig"):
        tfq.from_tfmot((config, weights))


def test_what_only_trains_is_to_be_taken_off_first():
    config, weights, _ = recorded("functional")
    config["config"]["layers"][2]["class_name"] = "PruneLowMagnitude"
    with pytest.raises(ValueError, match=r"strip_pruning. Received: 'quant_conv'"):
        tfq.from_tfmot((config, weights))


def test_a_keras_3_model_is_refused():
    with pytest.raises(TypeError, match="A model of Keras 2 is expected"):
        tfq.from_tfmot(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))

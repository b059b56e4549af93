"""Models of Keras 2: what they computed is what comes out. `record_tfmot.py` recorded it."""

import json
import pathlib

import h5py
import numpy as np
import pytest

import tfquant as tfq

HERE = pathlib.Path(__file__).parent


def test_a_file_of_keras_2_computes_what_keras_2_computed():
    model, recorded = tfq.from_tf_keras(HERE / "keras_2.h5"), np.load(HERE / "keras_2.npz")
    np.testing.assert_allclose(
        model.predict(recorded["x"], verbose=0), recorded["outputs"], rtol=1e-5, atol=1e-6
    )
    assert [x.name for x in model.layers] == ["rows", "inner", "both", "gru", "dense"]


def test_a_model_in_memory_is_taken_without_its_file():
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Dense(4, input_shape=(3,)), layers.BatchNormalization()])
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    found = tfq.from_tf_keras(model).predict(x, verbose=0)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"An \.h5 file of a whole model of Keras 2"):
        tfq.from_tf_keras(path)
    with h5py.File(path, "w") as file:
        file.attrs["other"] = 1
    with pytest.raises(ValueError, match=r"An \.h5 file of a whole model of Keras 2"):
        tfq.from_tf_keras(path)


def test_operations_of_tensorflow_are_named():
    class Model:
        name, layers = "old", ()

        def to_json(self):
            entry = {"class_name": "TFOpLambda", "config": {"name": "tf.math.erf"}}
            config = {"name": "old", "layers": [entry]}
            return json.dumps({"class_name": "Functional", "config": config})

    with pytest.raises(ValueError, match=r"operations of TensorFlow: 'tf\.math\.erf'"):
        tfq.from_tf_keras(Model())


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="A model of Keras 2 is expected"):
        tfq.from_tf_keras(3)


def test_a_weight_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes((HERE / "keras_2.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]["dense"]
        name = group.attrs["weight_names"][0]
        del group[name]
        group[name] = np.zeros((2, 2), "float32")
    with pytest.raises(ValueError, match=r"The weights of 'dense' must have the shapes"):
        tfq.from_tf_keras(path)

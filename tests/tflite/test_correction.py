"""What calibration made of biases, in the report of the file."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def calibrated(rng, wanted):
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(4)(layers.Dense(16, activation="relu")(x)))
    rows = rng.normal(size=(60, 8)).astype("float32")
    return tfq.calibrate(
        tfq.quantize_model(model, "w4a8"), rows, bias_correction=wanted, progress=False
    )


@pytest.mark.parametrize("wanted", [False, "mean", "mean_deviation", True])
def test_the_report_says_which_correction_was_chosen(wanted, rng, tmp_path):
    q = calibrated(rng, wanted)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.correction == str(q.correction)
    names = {False: "none", True: q.correction.method}
    assert report.correction.startswith(names.get(wanted, wanted).replace("_", " and "))
    assert f"biases corrected: {report.correction}" in " ".join(str(report).split())
    assert report.to_dict()["correction"] == report.correction


def test_the_report_of_a_model_that_nobody_calibrated_says_nothing(rng, tmp_path):
    q = calibrated(rng, True)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    report = tfq.to_tflite(loaded, tmp_path / "m.tflite", progress=False)
    assert report.correction == "" and "biases corrected" not in str(report)
    assert np.isfinite(loaded.predict(np.ones((1, 8)), verbose=0)).all()

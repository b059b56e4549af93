"""Several models in one file, each with a signature."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfquant as tfq


def quantized(model, rows, scheme="w8a8"):
    return tfq.calibrate(tfq.quantize_model(model, scheme), rows, progress=False)


def halves(rng):
    """Returns an encoder and a decoder, quantized, and what each reads."""
    rows = rng.normal(size=(60, 8)).astype("float32")
    x = keras.Input((8,), name="signal")
    encoder = keras.Model(x, layers.Dense(3, name="code")(layers.Dense(64, activation="relu")(x)))
    codes = encoder.predict(rows, verbose=0)
    z = keras.Input((3,), name="code")
    y = layers.Dense(64, activation="relu")(z)
    heads = {"mean": layers.Dense(8)(y), "spread": layers.Dense(8, activation="sigmoid")(y)}
    decoder = keras.Model({"code": z}, heads)
    return quantized(encoder, rows), quantized(decoder, {"code": codes}), rows, codes


def runner(path, key):
    found = Interpreter(str(path)).get_signature_runner(key)
    return found, sorted(found.get_input_details()), sorted(found.get_output_details())


def test_each_signature_computes_its_model(rng, tmp_path):
    encoder, decoder, rows, codes = halves(rng)
    path = tmp_path / "m.tflite"
    signatures = {"decode": decoder}
    report = tfq.to_tflite(
        encoder, path, input_type="float32", signatures=signatures, progress=False
    )
    assert sorted(Interpreter(str(path)).get_signature_list()) == ["decode", "serving_default"]
    encode, ins, outs = runner(path, "serving_default")
    assert (ins, outs) == (["signal"], ["code"])
    decode, ins, outs = runner(path, "decode")
    assert (ins, outs) == (["code"], ["mean", "spread"])
    for row, code in zip(rows[:8], codes[:8], strict=True):
        np.testing.assert_array_equal(encode(signal=row[None])["code"], encoder(row[None]))
        for name, values in decoder({"code": code[None]}).items():
            np.testing.assert_array_equal(decode(code=code[None])[name], values)
    assert report.end_to_end.differing == report.signatures["decode"].end_to_end.differing == 0
    assert report.quantized_bytes == path.stat().st_size
    assert "signature 'decode'" in str(report) and '"decode"' in report.to_json()


@pytest.mark.parametrize("scheme", ["w8a8", "w8", "w4a8"])
def test_weights_that_signatures_share_are_stored_once(scheme, rng, tmp_path):
    rows = rng.normal(size=(40, 8)).astype("float32")
    x = keras.Input((8,), name="x")
    y = layers.Dense(512, activation="relu", name="trunk")(x)
    model = keras.Model(x, layers.Dense(256, name="head")(y))
    q = tfq.quantize_model(model, scheme)
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, rows, progress=False)
    features = keras.Model(q.input, q.layers[-1].input)
    alone, path = tmp_path / "alone.tflite", tmp_path / "m.tflite"
    tfq.to_tflite(q, alone, progress=False)
    tfq.to_tflite(q, path, signatures={"features": features}, samples=rows, progress=False)
    assert path.stat().st_size < alone.stat().st_size + 2500  # The trunk alone has 4096 weights.
    _, ins, outs = runner(path, "features")
    assert (ins, len(outs)) == (["x"], 1)
    assert tfq.compare(q, path, rows).differing == tfq.compare(q, alone, rows).differing


def test_signatures_of_different_widths_and_operators_are_one_file(rng, tmp_path):
    images = rng.normal(size=(20, 6, 6, 2)).astype("float32")
    x = keras.Input((6, 6, 2), name="image")
    small = keras.Model(x, layers.Flatten()(layers.Conv2D(3, 3, activation="relu")(x)))
    t = keras.Input((5, 4), name="series")
    wide = keras.Model(t, layers.LSTM(4, name="state")(t))
    series = rng.normal(size=(20, 5, 4)).astype("float32")
    q, lstm = quantized(small, images), quantized(wide, series, "w8a16")
    path = tmp_path / "m.tflite"
    report = tfq.to_tflite(q, path, signatures={"series": lstm}, progress=False)
    tfq.to_tflite(lstm, tmp_path / "alone.tflite", progress=False)
    one, _, (name,) = runner(path, "series")
    other, *_ = runner(tmp_path / "alone.tflite", "serving_default")
    for row in np.clip(np.rint(series[:8] * 5000), -32768, 32767).astype(np.int16):
        np.testing.assert_array_equal(one(series=row[None])[name], other(series=row[None])[name])
    assert report.signatures["series"].end_to_end is not None


@pytest.mark.parametrize(
    ("signatures", "said"),
    [
        (lambda q, model: {"serving_default": q}, "other than 'serving_default'"),
        (lambda q, model: {1: q}, "dict from keys"),
        (lambda q, model: [q], "dict from keys"),
        (lambda q, model: {"more": model}, "tfq.quantize_model"),
    ],
)
def test_what_is_no_signature_is_an_error_and_nothing_is_written(signatures, said, rng, tmp_path):
    rows = rng.normal(size=(20, 4)).astype("float32")
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(x))
    q = quantized(model, rows)
    with pytest.raises(ValueError, match=said):
        tfq.to_tflite(q, tmp_path / "m.tflite", signatures=signatures(q, model), progress=False)
    assert not list(tmp_path.iterdir())

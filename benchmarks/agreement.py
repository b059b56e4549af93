"""How often w8a8 files agree with the float model: ours, stock's and ai-edge-quantizer's.

python benchmarks/agreement.py --data FOLDER [--only ic_resnet8,kws_gru_s]

All three are calibrated on the same rows, at even strides, and run by LiteRT on all others. Models
without data are compared on random inputs. The exit code is 1 if ours agrees less often than one.
"""

import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from device import quiet, stock_int8
from sequence import run_file, tflite

import tfquant as tfq

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("only", [], "Names of models; all without.")

RECURRENT = (
    cases.Case("kws_lstm_s", "kws_rnn", lambda load: cases.split(*load.kws_rnn())),
    cases.Case("kws_gru_s", "kws_rnn", lambda load: cases.split(*load.kws_rnn25())),
)


def ours(model, calibration) -> bytes:
    """Returns our file."""
    q = tfq.quantize_model(model, "w8a8")
    tfq.calibrate(q, calibration, progress=False)
    print(f"  biases: {q.correction}")
    return tflite(q)


def ai_edge(model, calibration) -> bytes:
    """Returns the file of ai-edge-quantizer's static recipe."""
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder, quiet():
        model.export(f"{folder}/saved", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(f"{folder}/saved")
        path = pathlib.Path(folder, "float.tflite")
        path.write_bytes(converter.convert())
        tool = quantizer.Quantizer(str(path))
        tool.load_quantization_recipe(recipe.static_wi8_ai8())
        interpreter = tf.lite.Interpreter(str(path))
        (signature, names), *_ = interpreter.get_signature_list().items()
        rows = [{names["inputs"][0]: row[None]} for row in calibration]
        ranges = tool.calibrate({signature: rows})
        return bytes(tool.quantize(ranges).quantized_model)


def unrolled(model):
    """Returns a copy without loops, which stock's converter does not quantize."""

    def clone(layer):
        config = layer.get_config()
        if "unroll" in config:
            config["unroll"] = True
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def compare(case, load) -> bool:
    """Prints how far each file is from the float model; returns whether ours is no further."""
    calibration, rows, _ = case.rows(load)
    model = case.model(load)
    expected = model.predict(rows, batch_size=32, verbose=0)
    print(f"{case.name}, {len(rows)} rows{'' if case.has_data else ' at random'}", flush=True)
    agree = {}
    for name, make in (("ours", ours), ("stock", stock_int8), ("ai-edge-quantizer", ai_edge)):
        try:
            made = make(model if name == "ours" else unrolled(model), calibration)
            outputs = run_file(made, [rows])
        except Exception as error:  # The converter's own have no public base.
            if name == "ours":
                raise
            print(f"  {name:<18} fails: {str(error).splitlines()[0][:80]}", flush=True)
            continue
        agree[name] = np.mean(outputs.argmax(-1) == expected.argmax(-1))
        noise = np.mean((outputs - expected) ** 2) / np.var(expected, axis=0).mean()
        print(
            f"  {name:<18} same as float {agree[name]:.4f}  outputs {-10 * np.log10(noise):.1f} dB"
        )
    return agree["ours"] >= max(agree.values())


def main(_):
    load = cases.open_loader(FLAGS.data)
    chosen = [
        case for case in (*cases.CASES, *RECURRENT) if case.name in FLAGS.only or not FLAGS.only
    ]
    return 0 if all([compare(case, load) for case in chosen]) else 1


if __name__ == "__main__":
    app.run(main)

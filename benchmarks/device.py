"""LiteRT and the stock converter, used without tfquant: what ours is measured against."""

import contextlib
import os
import pathlib
import sys
import tempfile

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

OP_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
TYPE_NAMES = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}


def stock_int8(model, calibration) -> bytes:
    """Returns the file of TFLite's own full-integer quantization after training."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    with quiet():
        return converter.convert()


def ai_edge_int8(model, calibration, weight_bits=8, algorithm="MIN_MAX_UNIFORM_QUANT") -> bytes:
    """Returns the file of ai-edge-quantizer with 8-bit activations.

    Args:
        model: Keras model of one input.
        calibration: Its rows.
        weight_bits: Width of weights, one scale a channel.
        algorithm: Name of one of its algorithms.
    """
    import tensorflow as tf
    from ai_edge_quantizer import quantizer, recipe, recipe_manager

    with tempfile.TemporaryDirectory() as folder, quiet():
        model.export(f"{folder}/saved", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(f"{folder}/saved")
        path = pathlib.Path(folder, "float.tflite")
        path.write_bytes(converter.convert())
        manager = recipe_manager.RecipeManager()
        manager.add_static_config(
            ".*",
            recipe.TFLOperationName.ALL_SUPPORTED,
            activation_num_bits=8,
            weight_num_bits=weight_bits,
            algorithm_key=recipe.AlgorithmName[algorithm],
        )
        tool = quantizer.Quantizer(str(path))
        tool.load_quantization_recipe(manager.get_quantization_recipe())
        (signature, names), *_ = Interpreter(str(path)).get_signature_list().items()
        rows = [{names["inputs"][0]: row[None]} for row in calibration]
        return bytes(tool.quantize(tool.calibrate({signature: rows})).quantized_model)


def unrolled(model):
    """Returns a copy without loops, which stock's converter does not quantize."""
    import keras

    def clone(layer):
        config = layer.get_config()
        if "unroll" in config:
            config["unroll"] = True
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


@contextlib.contextmanager
def quiet():
    """Keeps what the converter prints, some of it from C++, off the terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as log:
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            yield
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            for target, copy in enumerate(saved, 1):
                os.dup2(copy, target)
                os.close(copy)


def read(content: bytes):
    """Returns the file as objects of the flatbuffer schema."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def op_name(model, operator) -> str:
    """Returns the name of an operator, such as `CONV_2D`."""
    code = model.operatorCodes[operator.opcodeIndex]
    return OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


def with_outputs(model, indices) -> bytes:
    """Returns a copy of the file that returns the tensors `indices`.

    Asking the interpreter to preserve all tensors would switch to other kernels.
    """
    graph = model.subgraphs[0]
    graph.outputs, model.signatureDefs = list(indices), None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class Runner:
    """A file in LiteRT, of one input and a batch of 1.

    Args:
        content: Bytes of the file.
        num_threads: Threads of the interpreter.
    """

    def __init__(self, content: bytes, num_threads: int = 2):
        self.interpreter = Interpreter(model_content=content, num_threads=num_threads)
        self.interpreter.allocate_tensors()
        (self.input,) = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()

    def integers(self, rows) -> np.ndarray:
        """Returns `rows` as the file takes them."""
        scale, zero_point = self.input["quantization"]
        if self.input["dtype"] == np.float32:
            return rows
        info = np.iinfo(self.input["dtype"])
        q = np.rint(rows / np.float32(scale)) + zero_point
        return np.clip(q, info.min, info.max).astype(self.input["dtype"])

    def __call__(self, rows, tick=lambda: None) -> list[np.ndarray]:
        """Runs real inputs row by row and returns each output as it is stored."""
        collected = [[] for _ in self.outputs]
        for row in self.integers(rows):
            self.interpreter.set_tensor(self.input["index"], row[None])
            self.interpreter.invoke()
            for values, detail in zip(collected, self.outputs, strict=True):
                values.append(self.interpreter.get_tensor(detail["index"]))
            tick()
        return [np.concatenate(values) for values in collected]


def scores_and_logits(content: bytes, rows, tick=lambda: None):
    """Runs a classifier that ends in a softmax.

    Returns:
        `(scores, logits)`: the output as it is stored, and the softmax's input as real numbers.
    """
    model = read(content)
    graph = model.subgraphs[0]
    (output,) = graph.outputs
    softmax = next(op for op in graph.operators if output in op.outputs)
    if op_name(model, softmax) != "SOFTMAX":
        raise ValueError(f"A softmax at the end is expected. Received: {op_name(model, softmax)}.")
    inner = int(softmax.inputs[0])
    quantization = graph.tensors[inner].quantization
    runner = Runner(with_outputs(model, [int(output), inner]))
    scores, logits = runner(rows, tick)
    real = (logits.astype(np.float64) - quantization.zeroPoint[0]) * quantization.scale[0]
    return scores, real.reshape(scores.shape)


def logit_error(float_scores, logits) -> float:
    """Returns the RMS difference of logits, relative to the RMS of the float ones.

    A softmax forgets a constant, so that both are centred: `log(softmax(z))` and `z` agree.
    """
    centred = lambda z: z - z.mean(axis=-1, keepdims=True)  # noqa: E731
    expected = centred(np.log(np.maximum(float_scores.astype(np.float64), 1e-37)))
    return float(np.sqrt(((centred(logits) - expected) ** 2).mean() / (expected**2).mean()))

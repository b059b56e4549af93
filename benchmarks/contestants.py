"""The contestants of lowbit_matmul.py: our kernels and ops, and what anyone would pick instead."""

import contextlib
import ctypes
import dataclasses
import functools
import io
import os
import pathlib
import subprocess
import tempfile

import numpy as np
from floor import ROOT


@dataclasses.dataclass
class Contestant:
    """`make(x)` returns a call that multiplies x, and one that gives the result as an array.

    A call of another process has a method `seconds(repeats)`, by the clock there.
    """

    name: str
    make: object
    kind: str  # what it is compared as
    tolerance: float  # of the relative error against the float product


def make_contestants(k, n, threads, only):
    """Ours, then the rivals that are installed; each with the weights it can hold."""
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(k, n)) / np.sqrt(k)).astype(np.float32)
    columns = min(n, 64)
    makers = [ours, tensorflow, onnxruntime, litert, ggml, faiss, larq]
    words = [word for word in only.split(",") if word]
    contestants = []
    for maker in makers:
        try:
            for contestant in maker(
                weight, threads, lambda name: not words or any(w in name for w in words)
            ):
                if contestant.kind == "sign":
                    signs = np.where(weight[:, :columns] < 0, -1.0, 1.0)
                    contestant.expected = lambda x, s=signs: np.where(x < 0, -1.0, 1.0) @ s
                else:
                    contestant.expected = lambda x: x.astype(np.float64) @ weight[:, :columns]
                contestants.append(contestant)
        except (ImportError, NotAvailable) as error:
            print(f"# without {maker.__name__}: {error}")
    return contestants


class NotAvailable(Exception):
    """A rival is not here."""


def quantize_weight(weight, num_bits, group_size):
    """Symmetric, to nearest, the whole range in use."""
    k, n = weight.shape
    depth = group_size or k
    padded = np.pad(weight, ((0, -k % depth), (0, 0))).reshape(-1, depth, n)
    qmax = 2 ** (num_bits - 1) - 1
    scale = np.abs(padded).max(axis=1) / (qmax + 0.5) + 1e-12
    if num_bits == 2:
        scale = np.abs(padded).mean(axis=1) * 1.2
    q = np.clip(np.rint(padded / scale[:, None]), -qmax - 1, qmax).astype(np.int8)
    return q.reshape(-1, n)[:k], scale.astype(np.float32)


def ours(weight, threads, wanted):
    import tensorflow as tf

    from tfquant import lowbit
    from tfquant.lowbit.core import Core

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    cores = {"": Core()}
    if "TFQUANT_BEFORE" in os.environ:
        cores["before "] = Core(os.environ["TFQUANT_BEFORE"])
    n = weight.shape[1]
    table = [
        ("w8a8", 8, 0, "per_row", 0.02),
        ("w8a8 g32", 8, 32, "per_group", 0.02),
        ("w4a8 g32", 4, 32, "per_row", 0.2),
        ("w4a8 g32x32", 4, 32, "per_group", 0.2),
        ("w4a8 channel", 4, 0, "per_row", 0.3),
        ("w2a8 g32", 2, 32, "per_group", 0.7),
        ("w2a8 channel", 2, 0, "per_row", 0.7),
        ("w4a16 g32", 4, 32, "float", 0.2),
        ("w8a16", 8, 0, "float", 0.02),
        ("w1a1", 1, 0, "per_row", 0.0),
    ]
    for name, num_bits, group_size, activations, tolerance in table:
        if not (wanted(name) or wanted(name + " tf")):
            continue
        if num_bits == 1:
            q, scale = np.where(weight < 0, -1, 1).astype(np.int8), np.ones((1, n), np.float32)
        else:
            q, scale = quantize_weight(weight, num_bits, group_size)
        packed = cores[""].pack(q, scale, num_bits=num_bits, group_size=group_size)
        form = {"num_bits": num_bits, "group_size": group_size}
        kind = "sign" if num_bits == 1 else "real"

        def by_core(x, packed=packed, form=form, activations=activations, core=cores[""]):
            more = {"units": n, "activations": activations, "threads": threads}
            call, out = core.bound_matmul(x, packed, **form, **more)
            return call, lambda: out

        def by_op(x, packed=packed, form=form, activations=activations):
            weights = lowbit.PackedWeights(tf.constant(packed), **form, depth=len(weight), units=n)
            x, bias, held = tf.constant(x), tf.zeros((0,)), []
            module = lowbit.library.ops()
            # A default that is an int would take TensorFlow's slow way through Python.
            more = form | {"units": n, "activations": activations, "x_scale": 1.0}

            def call():
                held[:] = [module.tfquant_lowbit_matmul(x, weights.data, bias, **more)]

            return call, lambda: held[0].numpy()

        if wanted(name):
            for which, core in cores.items():
                make = functools.partial(by_core, core=core)
                yield Contestant(which + name, make, kind, tolerance)
        if name in ("w4a8 g32", "w4a16 g32", "w1a1") and wanted(name + " tf"):
            yield Contestant(name + " tf", by_op, kind, tolerance)


def tensorflow(weight, threads, wanted):
    import tensorflow as tf

    if not wanted("tf.matmul"):
        return
    w = tf.constant(weight)

    def make(x):
        x, held = tf.constant(x), []

        def call():
            held[:] = [tf.matmul(x, w)]

        return call, lambda: held[0].numpy()

    yield Contestant("tf.matmul", make, "real", 1e-4)


def onnxruntime(weight, threads, wanted):
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    k, n = weight.shape
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3

    def contestant(name, nodes, initializers, tolerance):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, k])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n])
        constants = [numpy_helper.from_array(v, key) for key, v in initializers.items()]
        graph = helper.make_graph(nodes, "g", [x], [y], constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        session = ort.InferenceSession(
            onnx.shape_inference.infer_shapes(model).SerializeToString(), options
        )

        def make(x):
            binding = session.io_binding()
            out = np.empty((len(x), n), np.float32)
            binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
            binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
            return lambda: session.run_with_iobinding(binding), lambda: out

        return Contestant(name, make, "real", tolerance)

    for bits, accuracy, tolerance in ((4, 4, 0.2), (4, 0, 0.2), (8, 4, 0.02), (2, 4, 0.7)):
        name = f"ort {bits}b acc{accuracy}"
        if not wanted(name):
            continue
        q, scale = quantize_weight(weight, bits, 32)
        v = (q.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8).T.reshape(n, k // 32, 32)
        from tfquant.numerics import packing

        packed = packing.pack(v, bits)
        node = helper.make_node(
            "MatMulNBits",
            ["x", "q", "s"],
            ["y"],
            domain="com.microsoft",
            K=k,
            N=n,
            bits=bits,
            block_size=32,
            accuracy_level=accuracy,
        )
        try:
            yield contestant(
                name, [node], {"q": packed, "s": np.ascontiguousarray(scale.T)}, tolerance
            )
        except Exception as error:  # onnxruntime's exceptions have no common public base
            print(f"# without {name}: {str(error)[:150]}")
    if wanted("ort integer"):
        q, scale = quantize_weight(weight, 8, 0)
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
            helper.make_node("MatMulInteger", ["xq", "q", "xz"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["xs", "s"], ["xss"]),
            helper.make_node("Mul", ["real", "xss"], ["y"]),
        ]
        yield contestant("ort integer", nodes, {"q": q, "s": scale[0]}, 0.02)


def litert(weight, threads, wanted):
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    k, n = weight.shape
    table = [
        ("litert int8", recipe.dynamic_wi8c_afp32, 0.03),
        ("litert int4", recipe.dynamic_wi4c_afp32, 0.4),
        ("litert int4 b32", recipe.dynamic_wi4b32_afp32, 0.25),
        ("litert int2", recipe.dynamic_wi2c_afp32, 2.0),
    ]
    table = [line for line in table if wanted(line[0])]
    if not table:
        return
    folder = pathlib.Path(tempfile.mkdtemp())
    model = tf.keras.Sequential([tf.keras.Input((k,)), tf.keras.layers.Dense(n, use_bias=False)])
    model.set_weights([weight])
    with contextlib.redirect_stdout(io.StringIO()):
        converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (folder / "float.tflite").write_bytes(converted)
    for name, make_recipe, tolerance in table:
        file = str(folder / f"{name}.tflite")
        tool = quantizer.Quantizer(str(folder / "float.tflite"))
        tool.load_quantization_recipe(make_recipe())
        with contextlib.redirect_stdout(io.StringIO()):
            tool.quantize().export_model(file)

        def make(x, file=file):
            interpreter = Interpreter(file, num_threads=threads)
            position = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(position, x.shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(position, x)
            out = interpreter.get_output_details()[0]["index"]
            return interpreter.invoke, lambda: interpreter.get_tensor(out)

        yield Contestant(name, make, "real", tolerance)


def ggml(weight, threads, wanted):
    source, built = os.environ.get("TFQUANT_GGML_SOURCE"), os.environ.get("TFQUANT_GGML_BUILD")
    if not source or not built:
        raise NotAvailable("TFQUANT_GGML_SOURCE and TFQUANT_GGML_BUILD are not set")
    table = [("ggml q4_0", 0.2), ("ggml q4_k", 0.2), ("ggml q8_0", 0.02), ("ggml tq2_0", 0.95)]
    table = [line for line in table if wanted(line[0])]
    if not table:
        return
    out_file = f"{tempfile.mkdtemp()}/rival.so"
    libraries = [f"-L{built}", f"-Wl,-rpath,{built}", "-lggml", "-lggml-base", "-lggml-cpu"]
    command = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", f"-I{source}/include"]
    file = str(ROOT / "benchmarks" / "ggml_rival.cc")
    subprocess.run([*command, file, "-o", out_file, *libraries], check=True)
    c = ctypes.CDLL(out_file)
    c.rival_new.restype = ctypes.c_void_p
    k, n = weight.shape
    rows = np.ascontiguousarray(weight.T)
    for name, tolerance in table:

        def make(x, name=name):
            out = np.empty((len(x), n), np.float32)
            pointer = c.rival_new(
                name.removeprefix("ggml ").encode(),
                ctypes.c_void_p(rows.ctypes.data),
                k,
                n,
                len(x),
                ctypes.c_void_p(x.ctypes.data),
                threads,
            )
            if not pointer:
                raise NotAvailable(f"{name} does not run")
            handle = ctypes.c_void_p(pointer)

            def result():
                c.rival_result(handle, ctypes.c_void_p(out.ctypes.data))
                return out

            return lambda: c.rival_run(handle), result

        yield Contestant(name, make, "real", tolerance)


def faiss(weight, threads, wanted):
    if not wanted("faiss"):
        return
    import faiss as library

    library.omp_set_num_threads(threads)
    k, n = weight.shape
    codes = np.packbits(np.ascontiguousarray(weight.T) < 0, axis=1)

    def make(x):
        out = np.empty((len(x), n), np.int32)
        queries = np.empty((len(x), k // 8), np.uint8)

        def call():
            queries[:] = np.packbits(x < 0, axis=1)
            library.hammings(
                library.swig_ptr(queries),
                library.swig_ptr(codes),
                len(x),
                n,
                k // 8,
                library.swig_ptr(out),
            )

        return call, lambda: k - 2 * out

    yield Contestant("faiss", make, "sign", 0.0)


class OtherProcess:
    """A call in a process that reads how often, and prints the seconds."""

    def __init__(self, command):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, bufsize=1, **pipes)
        if self._process.stdout.readline() != "ready\n":
            raise NotAvailable(self._process.communicate()[1].strip()[-300:])

    def seconds(self, repeats):
        self._process.stdin.write(f"{repeats}\n")
        return float(self._process.stdout.readline())

    def __call__(self):
        self.seconds(1)


def larq(weight, threads, wanted):
    import tensorflow as tf

    if not wanted("larq"):
        return
    python = os.environ.get("TFQUANT_LARQ_PYTHON")
    if not python:
        raise NotAvailable("TFQUANT_LARQ_PYTHON is not set")
    k, n = weight.shape
    signs = tf.constant(np.where(weight < 0, -1, 1).astype(np.float32).reshape(1, 1, k, n))

    def make(x):
        folder, m = tempfile.mkdtemp(), len(x)
        signature = [tf.TensorSpec((1, m, 1, k), tf.float32)]
        module = tf.Module()
        module.convolve = tf.function(
            lambda x: tf.nn.conv2d(tf.where(x >= 0, 1.0, -1.0), signs, 1, "VALID"), signature
        )
        model, x_file, y_file = (f"{folder}/{name}" for name in ("model", "x.npy", "y.npy"))
        tf.saved_model.save(module, model, signatures=module.convolve)
        np.save(x_file, x.reshape(1, m, 1, k))
        worker = str(ROOT / "benchmarks" / "larq_rival.py")
        call = OtherProcess([python, worker, model, str(threads), x_file, y_file])
        return call, lambda: np.load(y_file).reshape(m, n)

    yield Contestant("larq", make, "sign", 0.0)

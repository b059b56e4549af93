"""Files of one operator, run by LiteRT: what a device's arithmetic is compared with."""

import dataclasses

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 3}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file: integers on a grid, or plain ones where it has no scale.

    Attributes:
        shape: Its shape.
        dtype: Its type, such as `"int8"`.
        scale: Its step, or one for each index of `axis`; `None` for plain integers.
        zero_point: Of all steps.
        data: Integers of a constant.
        axis: Axis that has several steps.
    """

    shape: tuple
    dtype: str
    scale: float | None = None
    zero_point: int = 0
    data: np.ndarray | None = None
    axis: int = 0


@dataclasses.dataclass(frozen=True)
class File:
    """One operator: tensors in the order in which it reads them, then its output.

    Attributes:
        operator: Name of the operator.
        inputs: `Tensor`s; those with data are constants, the others are fed.
        output: `Tensor`.
        options: Fields of the operator's options, of the class `<options_type>Options`.
        options_type: Name of that class without `Options`, `None` for an operator without any.
        fed: Integers for each input without data.
        version: Of the operator, as the file says.
    """

    operator: str
    inputs: tuple
    output: Tensor
    fed: tuple
    options_type: str | None = None
    options: dict = dataclasses.field(default_factory=dict)
    version: int = 1

    def content(self) -> bytes:
        """Returns the file."""
        tensors = [*self.inputs, self.output]
        graph, model = schema.SubGraphT(), schema.ModelT()
        model.buffers = [schema.BufferT()]
        graph.tensors = [_tensor(x, number, model.buffers) for number, x in enumerate(tensors)]
        operator, code = schema.OperatorT(), schema.OperatorCodeT()
        kind = getattr(schema.BuiltinOperator, self.operator)
        code.builtinCode, code.deprecatedBuiltinCode = kind, min(kind, 127)
        code.version = self.version
        operator.inputs = np.arange(len(self.inputs), dtype=np.int32)
        operator.outputs = np.array([len(self.inputs)], np.int32)
        if self.options_type:
            name = f"{self.options_type}Options"
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = getattr(schema, f"{name}T")()
            for key, value in self.options.items():
                setattr(operator.builtinOptions, key, value)
        graph.operators = [operator]
        fed = [i for i, x in enumerate(self.inputs) if x.data is None]
        graph.inputs, graph.outputs = np.array(fed, np.int32), operator.outputs
        model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def run(self, resolver: str = "AUTO", run=None) -> np.ndarray:
        """Returns what LiteRT computes: int64, in the shape of the output.

        Args:
            resolver: Which of LiteRT's kernels run, as the interpreter calls them.
            run: Function that runs the file elsewhere; see `tfq.to_tflite`.
        """
        if run is not None:
            types = [x.dtype for x in self.inputs if x.data is None]
            fed = [array.astype(kind) for array, kind in zip(self.fed, types, strict=True)]
            return run(self.content(), fed)[0].astype(np.int64)
        interpreter = Interpreter(
            model_content=self.content(),
            experimental_op_resolver_type=getattr(OpResolverType, resolver),
            num_threads=1,
        )
        interpreter.allocate_tensors()
        for detail, array in zip(interpreter.get_input_details(), self.fed, strict=True):
            interpreter.set_tensor(detail["index"], array.astype(detail["dtype"]))
        interpreter.invoke()
        (detail,) = interpreter.get_output_details()
        return interpreter.get_tensor(detail["index"]).astype(np.int64)


def _tensor(x, number, buffers):
    tensor = schema.TensorT()
    tensor.name, tensor.shape = f"t{number}", np.array(x.shape, np.int32)
    tensor.type = getattr(schema.TensorType, x.dtype.upper())
    tensor.buffer = 0
    if x.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(packed(x), np.uint8)
        buffers.append(buffer)
        tensor.buffer = len(buffers) - 1
    if x.scale is not None:
        scale = np.atleast_1d(np.asarray(x.scale, np.float32))
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = scale
        tensor.quantization.quantizedDimension = x.axis
        tensor.quantization.zeroPoint = np.full(scale.shape, x.zero_point, np.int64)
    return tensor


def packed(x) -> bytes:
    """Returns the bytes of a constant; two values of 4 bits in one."""
    if x.dtype != "int4":
        return np.ascontiguousarray(x.data).astype(x.dtype).tobytes()
    values = np.asarray(x.data).ravel().astype(np.int8)
    values = np.append(values, np.zeros(len(values) % 2, np.int8)) & 0xF
    return (values[::2] | (values[1::2] << 4)).astype(np.uint8).tobytes()

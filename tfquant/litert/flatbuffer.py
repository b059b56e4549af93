"""A `.tflite` file as operators and tensors; all knowledge of its schema is here."""

import dataclasses
import hashlib

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfquant.litert import rules

_OP_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
TYPE_NAMES = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}
_DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT16": np.int16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}

# Operators that say how their 16-bit kernels scale, and where.
_SCALED_INT16 = {
    "ADD": (schema.BuiltinOptions.AddOptions, schema.AddOptionsT),
    "SUB": (schema.BuiltinOptions.SubOptions, schema.SubOptionsT),
}


@dataclasses.dataclass(frozen=True)
class Op:
    """One operator.

    Attributes:
        index: Position in the subgraph.
        name: Name of the builtin operator, such as `CONV_2D`.
        inputs: Indices of its input tensors; absent optional inputs are left out.
        outputs: Indices of its output tensors.
    """

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def kernel_inputs(op: Op) -> tuple[int, int, int | None]:
    """Returns the indices of an operator's data, weights and (or `None`) bias tensors."""
    data, weights, bias = rules.KERNEL_INPUTS.get(op.name, rules.DEFAULT_KERNEL_INPUTS)
    return op.inputs[data], op.inputs[weights], op.inputs[bias] if len(op.inputs) > bias else None


class _SharingBuilder(flatbuffers.Builder):
    """Writes each vector once, however many tables point to it.

    Every scale comes with a zero point of 8 bytes, and those of weights and biases are all 0: by
    themselves they are a tenth of a small file.
    """

    def __init__(self, size):
        super().__init__(size)
        self._vectors = {}

    def CreateNumpyVector(self, x):
        """Returns the offset of the vector `x`, aligned as kernels like to read weights."""
        # The bytes themselves would hold every weight once more.
        key = x.dtype.str, x.nbytes, hashlib.sha256(np.ascontiguousarray(x)).digest()
        if key not in self._vectors:
            self.Prep(16, x.nbytes)
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


class File:
    """The main subgraph of a `.tflite` file.

    Args:
        content: Bytes of the file.

    Raises:
        ValueError: If the bytes are no `.tflite` file.
    """

    def __init__(self, content: bytes):
        if len(content) < 8 or bytes(content[4:8]) != b"TFL3":
            raise ValueError("A .tflite file is expected: its bytes 4 to 8 are 'TFL3'.")
        # Not copied if it is an array: what is stored is seen where it lies.
        content = content if isinstance(content, bytearray) else bytearray(content)
        self.model = flatbuffer_utils.read_model_from_bytearray(content)
        for buffer in self.model.buffers:
            if buffer.data is not None:
                # Arrays are written back at once, anything else byte by byte.
                buffer.data = np.asarray(buffer.data, np.uint8)
        self.subgraph = self.model.subgraphs[0]
        self._read_ops()

    def _read_ops(self):
        self.ops = [self._op(i, op) for i, op in enumerate(self.subgraph.operators)]
        # Of several operators that write one tensor, the first.
        self._made_by = {x: op.index for op in reversed(self.ops) for x in op.outputs}

    @property
    def inputs(self) -> list[int]:
        """Indices of the input tensors."""
        return [int(i) for i in self.subgraph.inputs]

    @property
    def outputs(self) -> list[int]:
        """Indices of the output tensors."""
        return [int(i) for i in self.subgraph.outputs]

    def name(self, index: int) -> str:
        """Returns the name of a tensor: empty if it has none, which is legal."""
        return (self.subgraph.tensors[index].name or b"").decode(errors="replace")

    def type(self, index: int) -> str:
        """Returns the type of a tensor, such as `INT8`."""
        return TYPE_NAMES[self.subgraph.tensors[index].type]

    def dtype(self, index: int) -> np.dtype:
        """Returns the numpy type of a tensor's values; those of 4 bits are unpacked to int8."""
        return np.dtype(_DTYPES.get(self.type(index), np.int8))

    def shape(self, index: int) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        shape = self.subgraph.tensors[index].shape
        return () if shape is None else tuple(int(n) for n in shape)

    def is_constant(self, index: int) -> bool:
        """Whether a tensor's values are stored in the file."""
        return self._data(index) is not None

    def is_float_data(self, index: int) -> bool:
        """Whether a tensor is computed and holds real numbers."""
        return self.type(index) == "FLOAT32" and not self.is_constant(index)

    def constant(self, index: int) -> np.ndarray:
        """Returns the values of a stored tensor; 4-bit integers are unpacked to int8."""
        data = self._data(index)
        kind, shape = self.type(index), self.shape(index)
        if kind == "INT4":
            nibbles = np.stack([data << 4, data & 0xF0], axis=-1).view(np.int8) >> 4
            return nibbles.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        return data.view(_DTYPES[kind]).reshape(shape)

    def num_bytes(self, index: int) -> int:
        """Returns the bytes that a stored tensor takes, 0 for a computed one."""
        data = self._data(index)
        return 0 if data is None else len(data)

    def scale(self, index: int) -> np.ndarray:
        """Returns the float32 scales of a tensor, empty when it is not quantized."""
        quantization = self.subgraph.tensors[index].quantization
        if quantization is None or quantization.scale is None:
            return np.zeros(0, np.float32)
        return np.asarray(quantization.scale, np.float32)

    def group_size(self, index: int) -> int:
        """Returns how many weights share a scale of a tensor of scales, 0 if none do."""
        quantization = self.subgraph.tensors[index].quantization
        details = None if quantization is None else quantization.details
        return details.blockSize if isinstance(details, schema.BlockwiseQuantizationT) else 0

    def zero_point(self, index: int) -> np.ndarray:
        """Returns the zero points of a tensor, empty when it is not quantized."""
        quantization = self.subgraph.tensors[index].quantization
        if quantization is None or quantization.zeroPoint is None:
            return np.zeros(0, np.int64)
        return np.asarray(quantization.zeroPoint, np.int64)

    def computed(self) -> list[int]:
        """Returns the indices of inputs and of all operators' outputs, in order."""
        outputs = [i for op in self.ops for i in op.outputs]
        return list(dict.fromkeys([*self.inputs, *outputs]))

    def producer(self, index: int) -> Op | None:
        """Returns the operator that computes a tensor."""
        return self.ops[self._made_by[index]] if index in self._made_by else None

    def consumers(self, index: int) -> list[Op]:
        """Returns the operators that read a tensor."""
        return [op for op in self.ops if index in op.inputs]

    def with_outputs(self, indices: list[int]) -> bytes:
        """Returns a copy of the file whose outputs are the tensors `indices`."""
        outputs, signatures = self.subgraph.outputs, self.model.signatureDefs
        self.subgraph.outputs, self.model.signatureDefs = list(indices), None
        try:
            return self.to_bytes()
        finally:
            self.subgraph.outputs, self.model.signatureDefs = outputs, signatures

    def sign(self, inputs: list[str], outputs: list[str], key: str) -> None:
        """Names inputs and outputs in a signature.

        Args:
            inputs: Names of the inputs, in their order.
            outputs: Names of the outputs, likewise.
            key: Of the signature.
        """
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key.encode(), 0
        signature.inputs = [_named(*pair) for pair in zip(inputs, self.inputs, strict=True)]
        signature.outputs = [_named(*pair) for pair in zip(outputs, self.outputs, strict=True)]
        self.model.signatureDefs = [signature]

    def join(self, other: "File") -> None:
        """Takes in the subgraphs and the signatures of another file; what is equal is stored once.

        Args:
            other: The file, which is of no use by itself from here on.
        """
        model, more = self.model, other.model
        graphs, codes = len(model.subgraphs), len(model.operatorCodes)
        buffers = self._take_buffers(more.buffers)
        model.operatorCodes = [*model.operatorCodes, *more.operatorCodes]
        model.subgraphs = [*model.subgraphs, *more.subgraphs]
        model.signatureDefs = [*model.signatureDefs, *more.signatureDefs]
        for signature in more.signatureDefs:
            signature.subgraphIndex += graphs
        for graph in more.subgraphs:
            for tensor in graph.tensors:
                tensor.buffer = buffers[tensor.buffer]
            for operator in graph.operators:
                operator.opcodeIndex += codes
                _shift_subgraphs(operator.builtinOptions, graphs)

    def _take_buffers(self, buffers):
        """Appends buffers, but for those of the same bytes; returns where each of them is."""
        key = lambda data: hashlib.sha256(np.ascontiguousarray(data)).digest()  # noqa: E731
        stored = [(n, b.data) for n, b in enumerate(self.model.buffers) if b.data is not None]
        known = {key(data): number for number, data in stored if len(data)}
        found = []
        for buffer in buffers:
            if buffer.data is None or not len(buffer.data):
                found.append(0)  # The first is empty, and that of all that is computed.
                continue
            number = known.setdefault(key(buffer.data), len(self.model.buffers))
            if number == len(self.model.buffers):
                self.model.buffers.append(buffer)
            found.append(number)
        return found

    def first_ops(self, count: int) -> bytes:
        """Returns a copy of the file that ends behind its first `count` operators."""
        operators = self.subgraph.operators
        self.subgraph.operators = operators[:count]
        try:
            return self.with_outputs(list(self.ops[count - 1].outputs))
        finally:
            self.subgraph.operators = operators

    def scale_int16_generally(self) -> None:
        """Has ADD and SUB of 16 bits take any scale.

        The schema's default says that scales are powers of two, and kernels believe it of all that
        come close, as 1 / 32767 does; then they refuse those of which neither is the larger.
        """
        for op, operator in zip(self.ops, self.subgraph.operators, strict=True):
            if op.name in _SCALED_INT16 and self.type(op.outputs[0]) == "INT16":
                kind, options = _SCALED_INT16[op.name]
                if operator.builtinOptions is None:
                    operator.builtinOptionsType, operator.builtinOptions = kind, options()
                operator.builtinOptions.potScaleInt16 = False

    def quantize_inputs_asymmetrically(self) -> None:
        """Has FULLY_CONNECTED find a zero point, too, when it quantizes what it reads in float.

        XNNPACK does so anyway; LiteRT's own kernels lose half of the levels without it.
        """
        for op, operator in zip(self.ops, self.subgraph.operators, strict=True):
            if op.name == "FULLY_CONNECTED":
                x, kernel = (self.type(i) for i in op.inputs[:2])
                if x == "FLOAT32" and kernel in ("INT8", "INT4"):
                    operator.builtinOptions.asymmetricQuantizeInputs = True

    def type_unread(self) -> None:
        """Gives parts that nobody reads, as of a split, the integers of the other parts."""
        for op in self.ops:
            read = [i for i in op.outputs if self.consumers(i) or i in self.outputs]
            if not read or self.type(read[0]) not in ("INT8", "INT16"):
                continue
            part = self.subgraph.tensors[read[0]]
            for index in op.outputs:
                if index not in read and self.type(index) == "FLOAT32":
                    tensor = self.subgraph.tensors[index]
                    tensor.type, tensor.quantization = part.type, part.quantization

    def to_bytes(self) -> bytes:
        """Returns the file; vectors of equal content are stored once."""
        # A builder that is too small doubles, again and again, and holds both while it does.
        stored = sum(0 if b.data is None else len(b.data) for b in self.model.buffers)
        builder = _SharingBuilder(stored + stored // 16 + 4096)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(memoryview(builder.Bytes)[builder.Head() :])  # `Output` would copy it twice.

    def copy_constant(self, index: int) -> int:
        """Adds a tensor with the same stored values in a buffer of its own; returns its index."""
        source = self.subgraph.tensors[index]
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.shapeSignature = (
            source.shape,
            source.type,
            source.shapeSignature,
        )
        tensor.name = source.name + b"_%d" % len(self.subgraph.tensors)
        tensor.quantization = source.quantization
        self.subgraph.tensors.append(tensor)
        self.own_buffer(len(self.subgraph.tensors) - 1, source.buffer)
        return len(self.subgraph.tensors) - 1

    def empty(self, index: int) -> None:
        """Gives up the values of a stored tensor: a byte says that they are to come."""
        self.model.buffers[self.subgraph.tensors[index].buffer].data = np.zeros(1, np.uint8)

    def store(self, indices: list[int], gone: list[Op], num_inputs: int) -> None:
        """Makes stored tensors of computed ones, or of inputs: their values are to come.

        Args:
            indices: The tensors.
            gone: What computes them, operators that are removed.
            num_inputs: Number of inputs that the file keeps.
        """
        for index in indices:
            self.model.buffers.append(schema.BufferT())
            self.subgraph.tensors[index].buffer = len(self.model.buffers) - 1
            self.empty(index)
        self.subgraph.inputs = list(self.subgraph.inputs)[:num_inputs]
        self._keep_ops({op.index for op in self.ops} - {op.index for op in gone})

    def own_buffer(self, index: int, source: int | None = None) -> None:
        """Gives a tensor a copy of its (or of another) buffer that no other tensor reads."""
        tensor = self.subgraph.tensors[index]
        buffer = schema.BufferT()
        buffer.data = self.model.buffers[tensor.buffer if source is None else source].data
        tensor.buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)

    def remove(self, stands_for) -> None:
        """Removes operators in whose place other tensors are read, and what only they read.

        Args:
            stands_for: Function of the file and an operator: the tensor that stands for its output,
                `None` to keep it.
        """
        gone = set()
        for index in range(len(self.ops)):
            op = self.ops[index]  # As it is by now: one may follow another.
            source = stands_for(self, op)
            if source is None:
                continue
            gone.add(index)
            for reader in self.consumers(op.outputs[0]):
                self.replace_input(reader, op.outputs[0], source)
            ends = [source if i == op.outputs[0] else int(i) for i in self.subgraph.outputs]
            self.subgraph.outputs = ends
        read = set(self.outputs)
        for op in reversed(self.ops):
            if op.index in gone or (gone and not read.intersection(op.outputs)):
                gone.add(op.index)
            else:
                read.update(op.inputs)
        self._keep_ops({op.index for op in self.ops} - gone)

    def _keep_ops(self, kept):
        self.subgraph.operators = [self.subgraph.operators[index] for index in sorted(kept)]
        self._read_ops()

    def replace_input(self, op: Op, old: int, new: int) -> None:
        """Makes `op` read tensor `new` where it read `old`."""
        operator = self.subgraph.operators[op.index]
        operator.inputs = [new if i == old else int(i) for i in operator.inputs]
        self.ops[op.index] = self._op(op.index, operator)

    def drop_unused(self) -> None:
        """Removes tensors that no operator reads or computes."""
        used = {*self.inputs, *self.outputs, *(i for op in self.ops for i in op.inputs)}
        used.update(i for op in self.ops for i in op.outputs)
        tensors = self.subgraph.tensors
        blocks = [d for d in (_blocks(tensors[i]) for i in used) if d is not None]
        used.update(i for d in blocks for i in (d.scales, d.zeroPoints) if i >= 0)
        new = {-1: -1} | {index: number for number, index in enumerate(sorted(used))}
        renumber = lambda ids: [new[int(i)] for i in ids]  # noqa: E731
        others = [t for graph in self.model.subgraphs[1:] for t in graph.tensors]
        kept = {tensor.buffer for tensor in others} | {tensors[i].buffer for i in used}
        for index in set(range(len(tensors))) - used:
            if tensors[index].buffer not in kept:
                self.model.buffers[tensors[index].buffer].data = None
        self.subgraph.tensors = [tensors[index] for index in sorted(used)]
        self.subgraph.inputs = renumber(self.subgraph.inputs)
        self.subgraph.outputs = renumber(self.subgraph.outputs)
        for details in blocks:
            details.scales, details.zeroPoints = renumber([details.scales, details.zeroPoints])
        for operator in self.subgraph.operators:
            operator.inputs = renumber(operator.inputs)
            operator.outputs = renumber(operator.outputs)
        self._read_ops()

    def _data(self, index):
        data = self.model.buffers[self.subgraph.tensors[index].buffer].data
        return None if data is None or len(data) == 0 else data

    def op_name(self, operator) -> str:
        """Returns the name of an operator of the schema."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        name = _OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if name == "CUSTOM" and code.customCode:
            name = code.customCode.decode()
        return name

    def _op(self, index, operator):
        name = self.op_name(operator)
        present = lambda ids: tuple(int(i) for i in ids if i >= 0)  # noqa: E731
        return Op(index, name, present(operator.inputs), present(operator.outputs))


def _shift_subgraphs(options, count):
    """Has an operator that calls subgraphs call those `count` further on."""
    for name, value in list(vars(options).items()) if options is not None else ():
        if isinstance(value, int) and "ubgraph" in name and value >= 0:
            setattr(options, name, value + count)


def _blocks(tensor):
    """Returns what says where the scales of groups are, tensors as well; `None` without groups."""
    details = tensor.quantization.details if tensor.quantization else None
    return details if isinstance(details, schema.BlockwiseQuantizationT) else None


def _named(name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry

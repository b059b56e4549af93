"""Our parameters into the file, by ai-edge-quantizer's graph surgery."""

import dataclasses
import hashlib

import numpy as np
from ai_edge_quantizer import model_modifier, qtyping

from tfquant.litert.flatbuffer import File
from tfquant.tflite.assign import GRAPH, Assignment
from tfquant.tflite.stored import TensorParams

_T = qtyping.QuantTransformation


def write(file: File, assignment: Assignment, input_type: str, output_type: str) -> File:
    """Writes a quantized file.

    Args:
        file: The float file. Stored tensors that several operators read with different
            parameters are copied in it.
        assignment: From `assign`.
        input_type: `"int8"`, `"uint8"`, `"int16"` or `"float32"`.
        output_type: Likewise.

    Returns:
        The quantized file.
    """
    _join_constants(file, assignment)
    _separate_constants(file, assignment)
    params = {}
    for index in file.computed():
        if index in assignment.computed:
            entry = _computed(file, assignment, index, input_type, output_type)
            params[entry.tensor_name] = entry
    readers: dict[int, list] = {}
    for (op_index, index), tensor_params in assignment.stored.items():
        steps = [_T.ADD_DEQUANTIZE if tensor_params.dequantize else _T.QUANTIZE_TENSOR]
        readers.setdefault(index, []).append(
            qtyping.OpToTensorParams(op_index, steps, _to_qtyping(tensor_params))
        )
    for index, consumers in readers.items():
        params[file.name(index)] = qtyping.TensorTransformationParams(
            file.name(index), None, consumers
        )
    outputs = file.outputs
    file.subgraph.outputs = list(dict.fromkeys(outputs))  # Else each would become several.
    modifier = model_modifier.ModelModifier(file.model)
    written = File(modifier.modify_model(params, enable_progress_bar=False))
    written.scale_int16_generally()
    written.quantize_inputs_asymmetrically()
    written.type_unread()
    new = dict(zip(file.outputs, written.outputs, strict=True))
    if output_type in ("int8", "int16"):
        new |= _own(file, written, assignment)
    written.subgraph.outputs = [new[index] for index in outputs]
    file.subgraph.outputs = outputs
    written.drop_unused()
    return written


def _own(file, written, assignment):
    """Returns the tensors of outputs on their own grid.

    Where an operator reads one on another, ai-edge-quantizer returns what that operator reads.
    """
    by_name = {written.name(i): i for i in written.computed()}
    return {
        index: by_name[file.name(index)]
        for index in file.outputs
        if index in assignment.computed
        and (GRAPH, index) not in assignment.requantized
        and file.name(index) in by_name
    }


def _computed(file, assignment, index, input_type, output_type):
    """Describes a computed tensor: who writes it, who reads it, on which grid."""
    params = _to_qtyping(assignment.computed[index])
    producer = file.producer(index)
    if producer is not None:
        written = _end(producer, assignment, _T.ADD_DEQUANTIZE, params)
    elif input_type == "float32":
        written = None
    else:
        as_stored = _unsigned(params) if input_type == "uint8" else params
        written = qtyping.OpToTensorParams(GRAPH, [_T.ADD_DEQUANTIZE], as_stored)
    consumers = []
    for op in file.consumers(index):
        again = assignment.requantized.get((op.index, index))
        wanted = _to_qtyping(again or assignment.computed[index])
        if again:
            # Else a lone reader's grid would become the tensor's own: one rounding instead of two.
            wanted = dataclasses.replace(wanted, symmetric=not params.symmetric)
        # One entry for each read: what adds a tensor to itself reads it twice.
        consumers += [_end(op, assignment, _T.ADD_QUANTIZE, wanted)] * list(op.inputs).count(index)
    if index in file.outputs:
        if output_type == "float32":
            consumers.append(qtyping.OpToTensorParams(GRAPH, [_T.NO_QUANTIZE]))
        else:
            wanted = assignment.requantized.get((GRAPH, index), assignment.computed[index])
            as_stored = _to_qtyping(wanted)
            as_stored = _unsigned(as_stored) if output_type == "uint8" else as_stored
            consumers.append(qtyping.OpToTensorParams(GRAPH, [_T.ADD_QUANTIZE], as_stored))
    return qtyping.TensorTransformationParams(file.name(index), written, consumers)


def _end(op, assignment, transformation, params):
    """Describes what an operator at one end of a tensor asks of it."""
    if op.index in assignment.integer:
        return qtyping.OpToTensorParams(op.index, [transformation], params)
    return qtyping.OpToTensorParams(op.index, [_T.NO_QUANTIZE])


def _to_qtyping(params: TensorParams):
    if params.scale is None:
        return qtyping.NonLinearQuantParams(num_bits=16, quantized_data=params.data)
    return qtyping.UniformQuantParams(
        num_bits=params.num_bits,
        quantized_dimension=params.axis,
        scale=params.scale,
        zero_point=params.zero_point,
        symmetric=not params.zero_point.any(),
        quantized_data=params.data,
        block_size=params.group_size,
    )


def _unsigned(params):
    """Returns the same grid counted from 0."""
    return qtyping.UniformQuantParams(
        num_bits=8,
        quantized_dimension=None,
        scale=params.scale,
        zero_point=params.zero_point + 128,
        symmetric=False,
        signed=False,
    )


def _join_constants(file, assignment):
    """Has operators that read equal weights read one tensor: calls of one layer, as a rule."""
    first: dict[tuple, int] = {}
    for (op_index, index), params in list(assignment.stored.items()):
        if params.scale is None or params.data is None:
            continue
        parts = params.scale, params.zero_point, params.data
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(x) for x in parts)).digest()
        kind = params.num_bits, params.axis, params.dequantize, params.group_size
        key = kind, params.data.shape, params.data.dtype.str, file.shape(index), digest
        joined = first.setdefault(key, index)
        if joined != index:
            file.replace_input(file.ops[op_index], index, joined)
            del assignment.stored[op_index, index]
            assignment.stored[op_index, joined] = params


def _separate_constants(file, assignment):
    """Copies stored tensors (and buffers) that are read with different parameters, or with none."""
    plain = {
        index
        for op in file.ops
        for index in op.inputs
        if file.is_constant(index) and (op.index, index) not in assignment.stored
    }
    buffer_of = lambda index: file.subgraph.tensors[index].buffer  # noqa: E731
    first: dict[int, tuple] = {buffer_of(index): (index, None) for index in plain}
    for key in list(assignment.stored):
        op_index, index = key
        params = assignment.stored[key]
        buffer = buffer_of(index)
        if buffer not in first:
            first[buffer] = index, params
            continue
        first_index, first_params = first[buffer]
        if first_params is not None and _same(params, first_params):
            assignment.stored[key] = first_params
            continue
        if index == first_index or index in plain:
            copy = file.copy_constant(index)
            file.replace_input(file.ops[op_index], index, copy)
            del assignment.stored[key]
            assignment.stored[op_index, copy] = params
        else:
            file.own_buffer(index)
            first[buffer_of(index)] = index, params


def _same(a: TensorParams, b: TensorParams):
    if a.num_bits != b.num_bits or (a.scale is None) != (b.scale is None):
        return False
    same_scale = a.scale is None or (a.scale.shape == b.scale.shape and (a.scale == b.scale).all())
    return same_scale and a.data.shape == b.data.shape and (a.data == b.data).all()

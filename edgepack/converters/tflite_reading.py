"""A .tflite in the form that the quantizer takes: what older converters left out, and weights that are widened."""

from collections import Counter
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer.qtyping import BuiltinOperator, TensorType
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

FUSED = {
    BuiltinOperator.RELU: schema.ActivationFunctionType.RELU,
    BuiltinOperator.RELU6: schema.ActivationFunctionType.RELU6,
}
FUSING = (
    BuiltinOperator.ADD, BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D, BuiltinOperator.FULLY_CONNECTED,
    BuiltinOperator.MUL,
)  # fmt: skip


MOVING = (BuiltinOperator.EXPAND_DIMS, BuiltinOperator.RESHAPE, BuiltinOperator.SQUEEZE, BuiltinOperator.TRANSPOSE)


def readable(model: str, scratch: Path) -> str:
    """The file, or where something must be changed, a copy in `scratch`.

    - Operator codes: files of before 2020 hold them in a field of one byte only.
    - A signature, by which the quantizer feeds the file.
    - float16 constants behind a DEQUANTIZE become float32 constants: the quantizer takes them for activations.
    - Activation functions that converters left apart go into the operator before.
    """
    flat = tfl_flatbuffer_utils.read_model(model)
    changed = [with_codes(flat), with_signature(flat), with_plain_constants(flat), with_fused_activations(flat)]
    if not any(changed):
        return model
    path = scratch / "readable.tflite"
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(flat))
    return str(path)


def with_codes(flat: schema.ModelT) -> bool:
    """Give every operator its code in the field that is read today; whether one had it in the old field only."""
    old = [code for code in flat.operatorCodes if code.builtinCode < code.deprecatedBuiltinCode]
    for code in old:
        code.builtinCode = code.deprecatedBuiltinCode
    return bool(old)


def with_signature(flat: schema.ModelT) -> bool:
    """Name the surface; whether it had no names."""
    if flat.signatureDefs:
        return False
    graph, made = flat.subgraphs[0], schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = b"serving_default", 0
    made.inputs, made.outputs = (
        [named(graph, index) for index in indices] for indices in (graph.inputs, graph.outputs)
    )
    flat.signatureDefs = [made]
    return True


def named(graph: schema.SubGraphT, index: int) -> schema.TensorMapT:
    """A tensor of the surface under its own name."""
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = graph.tensors[index].name, index
    return entry


def with_plain_constants(flat: schema.ModelT) -> bool:
    """Widen float16 constants in the file instead of at run time; whether there was one."""
    changed = False
    for graph in flat.subgraphs:
        kept = []
        for operator in graph.operators:
            code = code_of(flat, operator)
            source = graph.tensors[operator.inputs[0]] if code == BuiltinOperator.DEQUANTIZE else None
            data = None if source is None else flat.buffers[source.buffer].data
            if data is None or source.type != TensorType.FLOAT16 or operator.outputs[0] in graph.outputs:
                kept.append(operator)
                continue
            values = np.frombuffer(bytes(bytearray(data)), np.float16).astype(np.float32)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            flat.buffers.append(buffer)
            graph.tensors[operator.outputs[0]].buffer = len(flat.buffers) - 1
            changed = True
        graph.operators = kept
    return changed


def with_fused_activations(flat: schema.ModelT) -> bool:
    """Put RELU and RELU6 into the operator before where nothing else reads what it gives; whether there was one.

    Apart they would be quantized apart: with a range of its own for what is cut off, and beside XNNPACK, which asks for
    equal scales.
    """
    changed = False
    for graph in flat.subgraphs:
        uses = Counter(int(index) for operator in graph.operators for index in operator.inputs)
        uses.update(int(index) for index in graph.outputs)
        makers = {int(index): operator for operator in graph.operators for index in operator.outputs}
        kept = []
        for operator in graph.operators:
            function = FUSED.get(code_of(flat, operator))
            source = int(operator.inputs[0]) if function is not None else -1
            last = before = makers.get(source) if uses[source] == 1 else None
            while before is not None and code_of(flat, before) in MOVING:  # they pass what is cut off on as it is
                above = int(before.inputs[0])
                before = makers.get(above) if uses[above] == 1 else None
            options = before.builtinOptions if before is not None and code_of(flat, before) in FUSING else None
            if last is None or options is None or options.fusedActivationFunction:
                kept.append(operator)
                continue
            options.fusedActivationFunction = function
            last.outputs = operator.outputs
            makers[int(operator.outputs[0])] = last
            changed = True
        if len(kept) < len(graph.operators):
            graph.operators = kept
            drop_unused(flat, graph)
    return changed


def drop_unused(flat: schema.ModelT, graph: schema.SubGraphT) -> None:
    """Take tensors out of a graph that no operator has: the quantizer reads them all, and these hold nothing."""
    kinds = ("inputs", "outputs", "intermediates")
    lists = [(operator, kind, getattr(operator, kind)) for operator in graph.operators for kind in kinds]
    lists = [(operator, kind, found) for operator, kind, found in lists if found is not None]
    used = {int(index) for found in (*(item[2] for item in lists), graph.inputs, graph.outputs) for index in found}
    places = {old: new for new, old in enumerate(sorted(used - {-1}))} | {-1: -1}
    graph.tensors = [graph.tensors[old] for old in sorted(used - {-1})]
    for operator, kind, found in lists:
        setattr(operator, kind, [places[int(index)] for index in found])
    graph.inputs, graph.outputs = ([places[int(i)] for i in indices] for indices in (graph.inputs, graph.outputs))
    for signature in flat.signatureDefs:
        if flat.subgraphs[signature.subgraphIndex] is graph:
            for entry in (*signature.inputs, *signature.outputs):
                entry.tensorIndex = places[entry.tensorIndex]


def code_of(flat: schema.ModelT, operator: schema.OperatorT) -> int:
    code: int = flat.operatorCodes[operator.opcodeIndex].builtinCode
    return code

"""A .tflite in the form that the quantizer takes: what older converters left out, and weights that are widened."""

from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer.qtyping import BuiltinOperator, TensorType
from ai_edge_quantizer.utils import tfl_flatbuffer_utils


def readable(model: str, scratch: Path) -> str:
    """The file, or where something must be changed, a copy in `scratch`.

    - Operator codes: files of before 2020 hold them in a field of one byte only.
    - A signature, by which the quantizer feeds the file.
    - float16 constants behind a DEQUANTIZE become float32 constants: the quantizer takes them for activations.
    """
    flat = tfl_flatbuffer_utils.read_model(model)
    changed = [with_codes(flat), with_signature(flat), with_plain_constants(flat)]
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
            code = flat.operatorCodes[operator.opcodeIndex].builtinCode
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

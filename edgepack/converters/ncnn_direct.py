"""ONNX to ncnn's files without pnnx: every node by its own form, or a sentence about the node that has none."""

from dataclasses import dataclass

import onnx
from expand import EXPANDED, expanded, folded, with_plain_constants
from ncnn_forms import constants_as_initializers
from ncnn_writer import Node, Refused, Writer, natural
from onnx_graph import Graph
from write_elementwise import OPERATORS as ELEMENTWISE
from write_moves import OPERATORS as MOVES
from write_products import OPERATORS as PRODUCTS
from write_recurrent import OPERATORS as RECURRENT
from write_reductions import OPERATORS as REDUCTIONS
from write_spatial import OPERATORS as SPATIAL

OPERATORS = {**ELEMENTWISE, **MOVES, **PRODUCTS, **RECURRENT, **REDUCTIONS, **SPATIAL}


@dataclass(frozen=True)
class Written:
    """What `write` made: the files' contents, and the shape of every input as ncnn wants it."""

    param: str
    weights: bytes
    shapes: list[tuple[int, ...]]


def write(model: onnx.ModelProto) -> Written:
    """ncnn's files for a model. Raises `SystemExit` naming the node that has no form."""
    model = expanded(with_plain_constants(model), tuple(name for name in EXPANDED if name not in OPERATORS))
    model = folded(onnx.shape_inference.infer_shapes(model, data_prop=True))
    graph = Graph(model)
    constants_as_initializers(graph)
    writer = Writer(graph)
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name in held:
            continue
        shape = natural(tuple(graph.shapes.get(value.name) or ()))
        blob = writer.layer("Input", [], shape)
        writer.blobs[value.name] = blob
        inputs.append(blob)
    for proto in list(graph.nodes):
        node = Node(proto)
        form = OPERATORS.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
        try:
            if form is None:
                raise Refused("no layers of ncnn do that")
            form(writer, node)
        except Refused as reason:
            name = proto.name or (proto.output[0] if proto.output else "")
            raise SystemExit(f"ncnn has no form of {proto.op_type} ({name[:80]!r}): {reason}") from reason
    try:
        param, weights = writer.finish(inputs, [value.name for value in model.graph.output])
    except Refused as reason:
        raise SystemExit(f"ncnn has no form of this model: {reason}") from reason
    return Written(param, weights, [blob.shape for blob in inputs])

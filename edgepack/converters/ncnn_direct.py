"""ONNX to ncnn's files without pnnx: every node by its own form, or a sentence about the node that has none."""

from dataclasses import dataclass

import onnx
from expand import EXPANDED, expanded, fold_filled_constants, folded, with_plain_constants
from ncnn_forms import constants_as_initializers
from ncnn_patterns import gelu, layer_norm, without_unread
from ncnn_writer import Node, Refused, Writer, natural
from onnx_graph import Graph
from write_convolutions import OPERATORS as CONVOLUTIONS
from write_elementwise import OPERATORS as ELEMENTWISE
from write_lookups import OPERATORS as LOOKUPS
from write_moves import OPERATORS as MOVES
from write_pooling import OPERATORS as POOLING
from write_products import OPERATORS as PRODUCTS
from write_recurrent import OPERATORS as RECURRENT
from write_reductions import OPERATORS as REDUCTIONS
from write_sampling import OPERATORS as SAMPLING

FAMILIES = (CONVOLUTIONS, ELEMENTWISE, LOOKUPS, MOVES, POOLING, PRODUCTS, RECURRENT, REDUCTIONS, SAMPLING)
OPERATORS = {name: form for family in FAMILIES for name, form in family.items()}
KEEPING = ("GroupNormalization",)


@dataclass(frozen=True)
class Written:
    """What `write` made: the files' contents, and the shape of every input as ncnn wants it."""

    param: str
    weights: bytes
    shapes: list[tuple[int, ...]]


def write(model: onnx.ModelProto) -> Written:
    """ncnn's files for a model. Raises `SystemExit` naming the node that has no form."""
    model = expanded(with_plain_constants(model), tuple(name for name in EXPANDED if name not in OPERATORS))
    model = with_plain_constants(model)
    fold_filled_constants(model.graph)
    model = folded(shaped(model))
    graph = Graph(model)
    constants_as_initializers(graph)
    gelu(graph)
    layer_norm(graph)
    without_unread(graph)
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
            name = proto.name or next(filter(None, proto.output), "")
            raise SystemExit(f"ncnn has no form of {proto.op_type} ({name[:80]!r}): {reason}") from reason
    try:
        param, weights = writer.finish(inputs, [value.name for value in model.graph.output])
    except Refused as reason:
        raise SystemExit(f"ncnn has no form of this model: {reason}") from reason
    return Written(param, weights, [blob.shape for blob in inputs])


def shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of all tensors that can be known; onnx infers none for what keeps its input's."""
    while True:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = model.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        known = {v.name: v.type for v in values if v.type.tensor_type.HasField("shape")}
        fresh = [
            onnx.ValueInfoProto(name=node.output[0], type=known[node.input[0]])
            for node in graph.node
            if node.op_type in KEEPING and node.input[0] in known and node.output[0] not in known
        ]
        if not fresh:
            return model
        surface = {value.name: value for value in graph.output}
        for value in fresh:
            if value.name in surface:
                surface[value.name].type.CopyFrom(value.type)
            else:
                graph.value_info.append(value)

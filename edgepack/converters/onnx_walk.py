"""Every graph, node and tensor of an ONNX model, with what is inside branches, loops and functions."""

from collections.abc import Iterator

import onnx

STANDARD = ("", "ai.onnx")


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        yield from graphs_of(node)


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from every_graph(inner)


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in every_graph(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node
        for node in function.node:
            for graph in graphs_of(node):
                yield from graph.node


def every_tensor(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initializers and the values of Constant nodes, under the names that nodes use for them."""
    for graph in every_graph(model.graph):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        yield from ((sparse.values.name, sparse.values) for sparse in graph.sparse_initializer)
    for node in every_node(model):
        if node.op_type == "Constant" and node.domain in STANDARD:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield node.output[0], attribute.t
                elif attribute.HasField("sparse_tensor"):
                    yield node.output[0], attribute.sparse_tensor.values


def operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def label(node: onnx.NodeProto) -> str:
    return repr(node.name) if node.name else f"that makes {node.output[0]!r}" if node.output else "without a name"


def one_line(error: Exception) -> str:
    """A foreign message on one line: of onnxruntime's nested ones only the innermost."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.rpartition("Status Message: ")[2]
    return text[:300].rstrip(" .") + ("..." if len(text) > 300 else "")

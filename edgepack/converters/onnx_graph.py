"""An ONNX graph as graph repairs want it: constants, shapes, types, readers and makers by name."""

import itertools

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference

_fresh = itertools.count()


class Graph:
    """An ONNX graph with its constants, shapes and types at hand; `rewrite` keeps the order of nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.nodes = list(graph.node)
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        described = (*graph.value_info, *graph.input, *graph.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in described}
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in described}
        self.types |= {t.name: t.data_type for t in graph.initializer}
        self.shapes |= {t.name: list(t.dims) for t in graph.initializer}
        self.surface = {v.name for v in graph.output}
        self.floats: set[str] = set()  # inputs and outputs whose type becomes float32

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Nodes that take a tensor."""
        return [node for node in self.nodes if name in node.input]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that gives a tensor; None for inputs and constants."""
        return next((node for node in self.nodes if name in node.output), None)

    def constant(self, array: np.ndarray) -> str:
        """The name of a new constant."""
        name = self.name()
        self.constants[name] = array
        return name

    def name(self) -> str:
        """A name that nothing has yet."""
        return f"edgepack.{next(_fresh)}"

    def rewrite(self, old: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        """Put nodes in the place of one."""
        place = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[place : place + 1] = new

    def forward(self, node: onnx.NodeProto, source: str) -> None:
        """Let everything read `source` instead of the node's first output."""
        made = node.output[0]
        if made in self.surface:
            self.rewrite(node, make("Identity", [source], [made]))
            return
        self.rewrite(node)
        for reader in self.nodes:
            reader.input[:] = [source if name == made else name for name in reader.input]

    def write(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model with these nodes, those that nothing reads left out, and no stale shapes."""
        needed, kept = set(self.surface), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input)
        graph = model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        for value in (*graph.input, *graph.output):
            if value.name in self.floats:
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        held = ((name, array) for name, array in self.constants.items() if name in needed)
        graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in held)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)


def make(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, outputs, **attributes)


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def shape_of(graph: Graph, sizes: list[int]) -> str:
    """The name of a new constant with these sizes, for Reshape."""
    return graph.constant(np.array(sizes, np.int64))

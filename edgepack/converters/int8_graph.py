"""A float ONNX graph beside what a quantizer made of it: which layers changed, and how."""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")


class Pair(NamedTuple):
    """How one activation becomes integers: ``round(x / scale) + zero``."""

    scale: np.ndarray
    zero: np.ndarray

    def span(self) -> tuple[float, float, float]:
        """The lowest and highest value that the integers can hold, and the step between two of them."""
        kind = np.iinfo(self.zero.dtype)
        scale, zero = float(self.scale), int(self.zero)
        return (kind.min - zero) * scale, (kind.max - zero) * scale, scale


class Graph:
    """The float graph, and what quantization changes in it, layer by layer."""

    def __init__(self, floating: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        self.model, self.quantized = floating, quantized
        self.opsets = quantized.opset_import
        graph = floating.graph
        self.constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in graph.output]
        self.nodes = {node.name: node for node in graph.node}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.pairs: dict[str, Pair] = {}  # by the tensor's name in the float graph
        self.reads: dict[str, set[str]] = {}  # tensor -> nodes that read its quantized form
        self.changed: dict[str, dict[int, np.ndarray]] = {}  # node -> input -> the constant that replaces it
        self._compare(quantized)
        self.written = {name: self._writer(name) for name in self.pairs}
        self.members = {name: self._members(name, set()) for name in self.pairs}
        self.layers = self._rows()

    def _compare(self, quantized: onnx.ModelProto) -> None:
        constants = {item.name: numpy_helper.to_array(item) for item in quantized.graph.initializer}
        producer = {name: node for node in quantized.graph.node for name in node.output}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in quantized.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)

        def constant(name: str) -> np.ndarray | None:
            source = producer.get(name)
            if source is not None and source.op_type == "DequantizeLinear" and source.input[0] in constants:
                return dequantize(source, constants[source.input[0]], constants)
            return constants.get(name)

        def pair(name: str) -> Pair | None:
            back = producer.get(name)
            if back is None or back.op_type != "DequantizeLinear":
                return None
            there = producer.get(back.input[0])
            if there is None or there.op_type != "QuantizeLinear":
                return None
            return Pair(*(constants[term] for term in there.input[1:3]))

        for node in quantized.graph.node:
            source = self.nodes.get(node.name)
            if source is None or source.op_type != node.op_type:
                continue
            for index, name in enumerate(node.input):
                plain = source.input[index] if index < len(source.input) else ""
                if (found := pair(name)) is not None:
                    self.pairs[plain] = found
                    self.reads.setdefault(plain, set()).add(node.name)
                elif (value := constant(name)) is not None:
                    value = table(node, value, readers, constants) if node.op_type == "Gather" else value
                    before = self.constants.get(plain)
                    if before is None or before.dtype != value.dtype or not np.array_equal(before, value):
                        self.changed.setdefault(node.name, {})[index] = value
        for name in self.outputs:
            if (found := pair(name)) is not None:
                self.pairs[name] = found
                self.reads.setdefault(name, set())

    def _writer(self, name: str) -> str | None:
        """The layer whose kernel gives a tensor in integers, over a Relu or Clip."""
        node = self.producer.get(name)
        if node is not None and node.op_type in ("Relu", "Clip") and len(self.readers[node.input[0]]) == 1:
            node = self.producer.get(node.input[0])
        return node.name if node is not None and node.op_type == "Conv" and node.name in self.changed else None

    def _members(self, name: str, seen: set[str]) -> set[str]:
        """The layers that a pair belongs to: who writes it, who reads it, also through what only moves values."""
        if name in seen:
            return set()
        seen.add(name)
        found = {writer} if (writer := self._writer(name)) else set()
        source = self.producer.get(name)
        if source is not None and source.input and source.input[0] in self.pairs and not self.is_layer(source):
            if self.pairs[source.input[0]] == self.pairs[name]:  # it only moves values
                found |= self._members(source.input[0], seen)
        for reader in self.reads[name]:
            node = self.nodes[reader]
            if self.is_layer(node):
                found.add(reader)
            else:
                found |= {m for given in node.output if given in self.pairs for m in self._members(given, seen)}
        return found

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node's weights or, for a product of two activations, its inputs are quantized."""
        if node.op_type not in LAYERS:
            return False
        both = node.op_type == "MatMul" and any(node.name in self.reads.get(name, ()) for name in node.input)
        return both or node.name in self.changed

    def _rows(self) -> list[str]:
        """Layers, and what writes or reads a pair that belongs to none."""
        for name, members in self.members.items():
            if not members:
                owner = self.producer.get(name)
                readers = sorted(self.reads[name])
                members.add(owner.name if owner is not None else readers[0] if readers else name)
        wanted = {m for members in self.members.values() for m in members} | set(self.changed)
        return [node.name for node in self.model.graph.node if node.name in wanted]

    def kernels(self) -> tuple[onnx.ModelProto, dict[str, str]]:
        """The quantized model as an engine runs it, and layer -> the output that shows what its kernel gives."""
        model = onnx.ModelProto()
        model.CopyFrom(self.quantized)
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        terms = {node.input[0]: list(node.input[1:]) for node in model.graph.node if node.op_type == "DequantizeLinear"}
        found: dict[str, str] = {}
        added = []
        for node in model.graph.node:
            if node.name in self.layers and self.watch(node.name) in self.pairs:
                after = readers.get(node.output[0], [])
                if len(after) == 1 and after[0].op_type in ("Relu", "Clip"):
                    after = readers.get(after[0].output[0], [])
                written = [reader.output[0] for reader in after if reader.op_type == "QuantizeLinear"]
                if len(written) == 1 and written[0] in terms:
                    # A reader of its own leaves the pairs around the kernels as they are.
                    found[node.name] = f"{node.name}//kernel"
                    added.append(
                        helper.make_node("DequantizeLinear", [written[0], *terms[written[0]]], [found[node.name]])
                    )
        model.graph.node.extend(added)
        return model, found

    def watch(self, layer: str) -> str:
        """The tensor that shows what a layer gives: what its kernel writes."""
        return next((t for t, w in self.written.items() if w == layer), self.nodes[layer].output[0])


def dequantize(node: onnx.NodeProto, integers: np.ndarray, constants: dict[str, np.ndarray]) -> np.ndarray:
    scale = constants[node.input[1]]
    zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(scale, integers.dtype)
    axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 1)
    shape = [1] * integers.ndim
    if scale.ndim:
        shape[axis] = -1
    whole = integers.astype(np.int64) - zero.astype(np.int64).reshape(shape)
    return (whole * scale.astype(np.float64).reshape(shape)).astype(np.float32)


def table(node: onnx.NodeProto, value: np.ndarray, readers: dict, constants: dict[str, np.ndarray]) -> np.ndarray:
    """A table in integers as the numbers that its looked-up rows become."""
    after = readers.get(node.output[0], [])
    if value.dtype.kind == "f" or len(after) != 1 or after[0].op_type != "DequantizeLinear":
        return value
    scale, zero = (constants[term].astype(np.float64) for term in after[0].input[1:3])
    return ((value - zero) * scale).astype(np.float32)


def original_names(model: onnx.ModelProto, graph: Graph) -> dict[str, str]:
    """Node of the float graph -> its name for users: the first output of the node in the model that they know.

    Folding a normalisation into a layer gives its output the name of the normalisation's.
    """
    producer = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, str] = {}
    for name, node in graph.nodes.items():
        source = producer.get(node.output[0])
        while source is not None and source.op_type != node.op_type and source.input:
            source = producer.get(source.input[0])
        found[name] = source.output[0] if source is not None else node.output[0]
    return found

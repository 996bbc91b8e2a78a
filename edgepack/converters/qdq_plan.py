"""Which tensors of an ONNX model become integers, whatever their ranges turn out to be."""

import math
from typing import NamedTuple

import numpy as np
import onnx
from activations import Seen
from onnx import TensorProto, numpy_helper
from onnx_session import attribute

TINY = 1e-8  # a range below this is a dead tensor or channel: nothing but zeros is ever seen
TABLE = 1024  # values; a smaller table isn't worth a DequantizeLinear

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# They give integers for integers, with the scale of their first input.
MOVING = (
    "DepthToSpace", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip
# They have an integer kernel with scales of its own on both sides.
SCALING = ("AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Pad", "Resize")
# They too, and it is used where all that they read and write is in integers anyway.
FOLLOWING = ("Add", "Mul", "Sigmoid", "Softmax")


class Weight(NamedTuple):
    """A constant in int8: ``value = integers * scale``, one factor per index of `axis`."""

    integers: np.ndarray
    scale: np.ndarray
    axis: int


def broadcast(scale: np.ndarray, weight: Weight) -> np.ndarray:
    """One factor per channel in the shape of the weight."""
    return scale.reshape([-1 if axis == weight.axis else 1 for axis in range(weight.integers.ndim)]).astype(np.float64)


def quantize_weight(name: str, values: np.ndarray, axis: int) -> Weight:
    if not np.isfinite(values).all():
        raise SystemExit(f"the weights {name} hold NaN or infinity: this model can't be quantized")
    largest = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis))
    scale = np.where(largest > TINY, np.maximum(largest, TINY) / 127.0, 1.0).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    return Weight(np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8), scale, axis)


class Plan:
    """Which tensors become integers, whatever their ranges turn out to be."""

    def __init__(self, model: onnx.ModelProto, exclude: set[str]) -> None:
        self.model, graph = model, model.graph
        self.constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
        self.float = {name for name, kind in types.items() if kind.elem_type == TensorProto.FLOAT}
        self.rank = {name: len(kind.shape.dim) for name, kind in types.items()}
        self.inputs, self.outputs = [v.name for v in graph.input], [v.name for v in graph.output]
        self.producer = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.excluded = {node.name for node in graph.node if node.output[0] in exclude}
        nodes = [node for node in graph.node if node.name not in self.excluded]
        self.weights: dict[tuple[str, int], Weight] = {}
        self.weight_of: dict[str, tuple[str, int]] = {}  # node name -> key of `weights`
        self.layers = {node.name: node for node in nodes if self._is_layer(node)}
        self.tables = {node.name for node in nodes if self._is_table(node)}
        need = self._needed(nodes)
        self.quantized = [name for name in (*self.inputs, *self.producer) if name in need]
        self.integer = self._integer(nodes, need)
        self.same = {
            name: node.input[0]
            for node in nodes
            if node.op_type in MOVING and node.input[0] in need
            for name in node.output
        }
        self.into = self._removable(nodes, need)
        self.gone = {self.producer[name].name for name in self.into.values()}

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether this is a layer that can be quantized; stores its weight."""
        if node.op_type not in LAYERS or node.input[0] not in self.float:
            return False
        name, more = node.input[1], list(node.input[2:])
        weight = self.constants.get(name)
        if weight is None:
            return node.op_type == "MatMul" and name in self.float
        if weight.dtype != np.float32 or any(extra not in self.constants for extra in more):
            return False
        if node.op_type == "Gemm":
            plain = {"alpha": 1, "beta": 1, "transA": 0}
            if any(attribute(node, key, value) != value for key, value in plain.items()):
                return False
            if any(self.constants[extra].ndim != 1 for extra in more):
                return False
        if (node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1) or weight.ndim < 2:
            return False
        if node.op_type == "MatMul" and weight.ndim != 2:
            return False
        by_rows = node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0))
        self._store(node, name, 0 if by_rows else 1)
        return True

    def _is_table(self, node: onnx.NodeProto) -> bool:
        """Whether this looks rows up in a large constant; stores it with a scale per column."""
        table = self.constants.get(node.input[0]) if node.op_type == "Gather" else None
        found = table is not None and table.dtype == np.float32 and table.ndim == 2 and table.size >= TABLE
        if found and attribute(node, "axis", 0) == 0:
            self._store(node, node.input[0], 1)
            return True
        return False

    def _store(self, node: onnx.NodeProto, name: str, axis: int) -> None:
        if (name, axis) not in self.weights:
            self.weights[name, axis] = quantize_weight(name, self.constants[name], axis)
        self.weight_of[node.name] = (name, axis)

    def _needed(self, nodes: list[onnx.NodeProto]) -> set[str]:
        """The activations to quantize."""
        need: set[str] = set()
        for node in nodes:
            if node.name in self.layers and node.op_type != "ConvTranspose":
                need.update(name for name in node.input[:2] if name in self.float)
                if node.op_type == "Conv":
                    after = self._after(node.output[0])
                    need.add(after.output[0] if after is not None else node.output[0])
        before = -1
        while before != len(need):
            before = len(need)
            for node in nodes:
                if node.op_type not in (*MOVING, *SCALING) or node.name in self.tables:
                    continue
                sources = node.input if node.op_type == "Concat" else node.input[:1]
                joins_results = node.op_type == "Concat" and not self.readers.get(node.output[0])
                if need.intersection(node.output) or (need.issuperset(sources) and not joins_results):
                    need.update((*sources, *node.output))
            need &= self.float
        return need

    def _after(self, name: str) -> onnx.NodeProto | None:
        """The Relu or Clip that alone reads `name`: the limits of integers can do its work."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs or readers[0].name in self.excluded:
            return None
        node = readers[0]
        if node.op_type == "Clip":
            low, high = -math.inf, math.inf
            for index, known in enumerate(node.input[1:]):
                if known and known not in self.constants:
                    return None
                limit = float(self.constants[known]) if known else (math.inf if index else -math.inf)
                low, high = (low, limit) if index else (limit, high)
            return node if low <= 0.0 <= high else None
        return node if node.op_type == "Relu" else None

    def _integer(self, nodes: list[onnx.NodeProto], need: set[str]) -> set[str]:
        """Nodes that read integers; those of them that aren't Gemm or MatMul write integers too."""
        found = set()
        for node in nodes:
            inputs = [name for name in node.input if name in self.float]
            after = self._after(node.output[0])
            written = need.intersection(node.output) or (after is not None and after.output[0] in need)
            if node.name in self.layers:
                found |= {node.name} if node.op_type != "ConvTranspose" else set()
            elif node.op_type in (*MOVING, *SCALING, *FOLLOWING) and need.issuperset(inputs) and inputs and written:
                constant = node.op_type in FOLLOWING and len(inputs) < len(node.input)
                found |= set() if constant else {node.name}
        return found

    def _removable(self, nodes: list[onnx.NodeProto], need: set[str]) -> dict[str, str]:
        """Tensors whose Relu or Clip the integers' limits replace -> what that gives."""
        found = {}
        for name, producer in self.producer.items():
            after = self._after(name)
            if after is None or name in need or after.output[0] not in need or producer.name in self.excluded:
                continue
            given = after.output[0]
            others = given in self.outputs or any(r.name not in self.integer for r in self.readers.get(given, []))
            if producer.name in self.integer or not others:
                found[name] = given
        return found

    def exact(self, name: str) -> bool:
        """Whether a float form of a quantized tensor is there for who wants it."""
        producer = self.producer.get(name)
        if producer is None:
            return True
        if producer.name in self.gone:
            return False
        return producer.name not in self.integer or producer.op_type in ("Gemm", "MatMul")

    def root(self, name: str) -> str:
        """The tensor whose scale `name` shares."""
        while name in self.same:
            name = self.same[name]
        return name

    def channels(self, name: str) -> int | None:
        """The axis of a tensor whose means its readers want to know."""
        for reader in self.readers.get(name, []):
            if reader.name in self.layers and reader.name in self.weight_of:
                return 1 if reader.op_type == "Conv" else self.rank[name] - 1
        return None

    def bias(self, node: onnx.NodeProto, seen: dict[str, Seen], weight: Weight) -> np.ndarray | None:
        """The addend of a Conv or Gemm, less what rounding its weights to `weight` adds to each output on average."""
        if node.name not in self.layers or node.op_type not in ("Conv", "Gemm"):
            return None
        key = self.weight_of[node.name]
        bias = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight.scale), np.float32)
        mean = seen[node.input[0]].mean()
        if mean is None or self.channels(node.input[0]) != (
            1 if node.op_type == "Conv" else self.rank[node.input[0]] - 1
        ):
            return bias
        error = weight.integers * broadcast(weight.scale, weight) - self.constants[key[0]].astype(np.float64)
        if node.op_type == "Gemm":
            shift = error @ mean if weight.axis == 0 else mean @ error
        else:
            groups = int(attribute(node, "group", 1))
            error = error.reshape(groups, len(error) // groups, error.shape[1], -1).sum(axis=3)
            shift = np.einsum("goc,gc->go", error, mean.reshape(groups, -1)).reshape(-1)
        return (bias - shift).astype(np.float32)

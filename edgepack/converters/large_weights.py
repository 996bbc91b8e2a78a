"""What simplifying does to large weights, one weight at a time, so that onnxsim never needs to hold them.

Constants that are computed from them are folded, BatchNormalization goes into its convolution, equal ones become
one; the results lie in a file of the scratch folder. For onnxsim the weights are inputs of the graph: it then knows
their shapes, and can't want their numbers.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_file
import onnxruntime
from onnx_file import LARGE, Piece, outside
from onnx_walk import STANDARD, graphs_of

GROWTH = 1.1  # what makes more of its weights than this stays a node: they were packed
BATCH_NORM_EPSILON = 1e-5  # ONNX's default


class Weights:
    """The initializers of a model whose large ones lie outside (`onnx_file.read`), and what is made of them."""

    def __init__(self, model: onnx.ModelProto, folder: Path, scratch: Path) -> None:
        self.model, self.folder = model, folder
        self.spill = scratch / "weights.bin"
        self.held = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inner = {name for node in model.graph.node for graph in graphs_of(node) for name in _taken(graph)}
        self.used = Counter(name for node in model.graph.node for name in node.input) + Counter(self.inner)
        self.used.update(value.name for value in model.graph.output)

    def fold(self) -> None:
        """Compute what is constant because large weights are, and merge those that are equal."""
        if not any(map(outside, self.held.values())):
            return
        kept = []
        for node in self.model.graph.node:
            if node.op_type == "Constant" and node.domain in STANDARD and node.attribute[0].name == "value":
                self.held[node.output[0]] = node.attribute[0].t
            elif self._foldable(node) and (arrays := self._run(node)) is not None:
                for name, array in zip(node.output, arrays, strict=True):
                    self._hold(name, array)
                continue
            kept.append(node)
        kept = self._without_batch_norms(kept)
        self._merge(kept)
        graph = self.model.graph
        taken = {name for node in kept for name in node.input} | self.inner | {value.name for value in graph.output}
        constants = {node.output[0] for node in kept if node.op_type == "Constant" and node.output}
        _replace(graph.node, kept)
        _replace(graph.initializer, [t for name, t in self.held.items() if name in taken and name not in constants])

    def to_inputs(self) -> list[onnx.TensorProto]:
        """Make inputs of the large weights; returns their initializers, for `from_inputs`."""
        graph = self.model.graph
        large = [_copy(tensor) for tensor in graph.initializer if outside(tensor)]
        _replace(graph.initializer, [tensor for tensor in graph.initializer if not outside(tensor)])
        graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large)
        return large

    def _foldable(self, node: onnx.NodeProto) -> bool:
        names = [name for name in node.input if name]
        return (
            node.domain in STANDARD
            and all(name in self.held for name in names)
            and any(outside(self.held[name]) for name in names)
            and not any(graphs_of(node))
            and all(node.output)
            and "Random" not in node.op_type
            and node.op_type not in ("Bernoulli", "Multinomial", "Dropout")
        )

    def _run(self, node: onnx.NodeProto) -> list[np.ndarray] | None:
        """What a node makes of constants; None where it can't be run or makes more of them."""
        feeds = {name: np.array(onnx_file.array(self.held[name], self.folder)) for name in node.input if name}
        try:
            arrays = _session(self.model, node, feeds).run(None, feeds)
        except Exception as error:  # onnxruntime's exceptions have no common base; it stays a node
            print(f"{node.op_type} {node.name!r} can't be folded: {error}")
            return None
        grown = sum(array.nbytes for array in arrays) > GROWTH * sum(array.nbytes for array in feeds.values())
        return None if grown else arrays

    def _hold(self, name: str, array: np.ndarray) -> None:
        tensor = onnx.TensorProto(name=name, dims=array.shape)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        if array.nbytes > LARGE:
            with self.spill.open("ab") as target:
                where = Piece(self.spill, target.tell(), array.nbytes)
                target.write(np.ascontiguousarray(array).data)
            onnx_file.place(tensor, where)
        else:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
        self.held[name] = tensor

    def _without_batch_norms(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Put every BatchNormalization into the large convolution before it, as onnxsim does with small ones."""
        makers = {node.output[0]: node for node in nodes if node.op_type == "Conv"}
        kept = []
        for node in nodes:
            conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" and node.input else None
            if conv is None or not self._fusable(conv, node):
                kept.append(node)
                continue
            scale, shift, mean, variance = (self._float(name) for name in node.input[1:])
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), BATCH_NORM_EPSILON)
            factor = scale / np.sqrt(variance + epsilon)
            weight = np.array(onnx_file.array(self.held[conv.input[1]], self.folder))
            weight *= factor.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
            bias = self._float(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else 0.0
            made = conv.output[0]
            self._hold(f"{made}.weight", weight)
            self._hold(f"{made}.bias", ((bias - mean) * factor + shift).astype(np.float32))
            conv.input[:] = [conv.input[0], f"{made}.weight", f"{made}.bias"]
            conv.output[:] = [node.output[0]]
        return kept

    def _fusable(self, conv: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
        weight = self.held.get(conv.input[1])
        numbers = [name for name in (*norm.input[1:], *conv.input[2:]) if name]
        fresh = {f"{conv.output[0]}.weight", f"{conv.output[0]}.bias"}
        return (
            weight is not None
            and outside(weight)
            and weight.data_type == onnx.TensorProto.FLOAT
            and all(name in self.held and self.held[name].data_type == onnx.TensorProto.FLOAT for name in numbers)
            and self.used[conv.output[0]] == 1
            and len([name for name in norm.output if name]) == 1
            and not any(a.name == "training_mode" and a.i for a in norm.attribute)
            and not fresh & {*self.held, *self.used}
        )

    def _float(self, name: str) -> np.ndarray:
        return np.asarray(onnx_file.array(self.held[name], self.folder), np.float64)

    def _merge(self, nodes: list[onnx.NodeProto]) -> None:
        """Let nodes share equal large weights: exporters write tied ones twice."""
        large = {name: tensor for name, tensor in self.held.items() if outside(tensor)}
        alike = Counter((t.data_type, *t.dims) for t in large.values())
        first: dict[tuple[object, ...], str] = {}
        same = {}
        for name, tensor in large.items():
            form = (tensor.data_type, *tensor.dims)
            if alike[form] > 1 and name not in self.inner:
                same[name] = first.setdefault((*form, self._digest(tensor)), name)
        for node in nodes:
            if any(same.get(name, name) != name for name in node.input):
                node.input[:] = [same.get(name, name) for name in node.input]

    def _digest(self, tensor: onnx.TensorProto) -> bytes:
        where = onnx_file.piece(tensor, self.folder)
        with where.path.open("rb") as stream:
            stream.seek(where.offset)
            found = hashlib.sha256()
            for start in range(0, where.length, LARGE):
                found.update(stream.read(min(LARGE, where.length - start)))
        return found.digest()


def from_inputs(model: onnx.ModelProto, large: list[onnx.TensorProto]) -> None:
    """Make initializers again of what `Weights.to_inputs` made inputs, but for those that nothing takes now."""
    graph, names = model.graph, {tensor.name for tensor in large}
    _replace(graph.input, [value for value in graph.input if value.name not in names])
    taken = {*_taken(graph), *(value.name for value in graph.output)}
    graph.initializer.extend(tensor for tensor in large if tensor.name in taken)


def _session(
    model: onnx.ModelProto, node: onnx.NodeProto, feeds: dict[str, np.ndarray]
) -> onnxruntime.InferenceSession:
    """A session of one node."""
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    inputs = [onnx.helper.make_tensor_value_info(name, types[name], array.shape) for name, array in feeds.items()]
    graph = onnx.helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=name) for name in node.output])
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(alone.SerializeToString(), options, ["CPUExecutionProvider"])


def _taken(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that a node of the graph, or of a graph in it, takes."""
    for node in graph.node:
        yield from node.input
        for inner in graphs_of(node):
            for one in inner.node:
                yield from one.input
            yield from (value.name for value in inner.output)


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copied = onnx.TensorProto()
    copied.CopyFrom(tensor)
    return copied


def _replace(field, items) -> None:  # a repeated field of any message
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnxruntime==1.31.1",
#     "onnx==1.23.2",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "flatbuffers==25.12.19",
# ]
# ///
"""Quantize an ONNX model to INT8: QuantizeLinear/DequantizeLinear pairs where ONNX Runtime has integer kernels.

Request: ``model`` (ONNX file, fixed shapes), ``samples`` (tensor folder), ``int8`` (the fields of Int8Options; of
them ``keep_float``: first outputs of the nodes that stay in float). Writes ``model.onnx``; the result tells the
ranges that were chosen and the signal-to-noise ratio on the calibration samples.

What is quantized: inputs of Conv, Gemm and MatMul (uint8, one scale), the outputs of Conv (its integer kernel writes
integers; those of Gemm and MatMul write float), and what operators that only move values make of those. Sums,
products and activation functions get no pair of their own: ONNX Runtime computes them in integers where all
their neighbours are quantized, and elsewhere (normalisations, GELU, squeeze-and-excite) integers cost 3 to 17 dB and
win no time. Weights are int8 with one scale per output channel (per column in embedding tables). ConvTranspose
has no integer kernel: only its weights are stored as int8.

What rounding the weights does to the mean of each output channel is taken out of the bias (Nagel et al. 2019,
arXiv:1906.04721, section 4.2, with measured means).

Ranges come from one streaming pass (`activations`; onnxruntime's own percentile calibrator keeps every activation: 4 GB
for 64 photographs). The range of the least squared error is best for most models, but far off for some (a text
encoder needs the whole range), so where it doesn't give a good result on the calibration samples, others are tried.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from activations import Seen, rows

RANGES = (None, 1e-4, 0.0)  # least squared error, or the share of values left outside; tried in this order
JUDGED = 64  # calibration samples that decide between them
GOOD = 22.0  # dB; from here on the differences between ranges are chance
CLEARLY = 0.5  # dB by which a later rule must be better
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

Scale = tuple[np.float32, np.uint8]  # and zero point


class Weight(NamedTuple):
    """A constant in int8: ``value = integers * scale``, one factor per index of `axis`."""

    integers: np.ndarray
    scale: np.ndarray
    axis: int


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out, scratch = Path(request["out"]), Path(request["scratch"])
    plan = Plan(prepare(Path(request["model"]), scratch / "prepared.onnx"), set(request["int8"]["keep_float"]))
    if not plan.layers:
        raise SystemExit("there is nothing to quantize: the model has no Conv, ConvTranspose, Gemm or MatMul")
    samples = Path(request["samples"])
    seen, wanted = calibrate(plan, samples, scratch)
    best: tuple[float, float | None] | None = None
    for share in RANGES:
        made = scratch / "candidate.onnx"
        onnx.save(write(plan, {name: item.range(share) for name, item in seen.items()}, seen), made)
        ratio = signal_to_noise(made, samples, wanted)
        if best is None or ratio > best[0] + CLEARLY:
            best = (ratio, share)
            made.replace(out / "model.onnx")
        if best[0] >= GOOD:
            break
    assert best is not None
    result = {
        "quantized": len(plan.layers),
        "excluded": sorted(plan.excluded),
        "sqnr_db": round(best[0], 2),
        "clip": best[1],
        "onnxruntime": onnxruntime.__version__,
    }
    (out / "result.json").write_text(json.dumps(result))


# The graph ----------------------------------------------------------------------------------------------------


def session_of(model: Path, level: str, target: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if target is not None:
        options.optimized_model_filepath = str(target)
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise SystemExit(f"ONNX Runtime can't load this model: {' '.join(str(error).split())[:400]}") from error


def prepare(source: Path, target: Path) -> onnx.ModelProto:
    """Fold constants and batch normalisations, name every node, note every type, and make a Gemm's terms plain."""
    session_of(source, "ORT_ENABLE_BASIC", target)
    model = onnx.shape_inference.infer_shapes(onnx.load(target), data_prop=True)
    taken = {node.name for node in model.graph.node if node.name}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm":
            make_plain(node, constants, model.graph)
        if node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"  # of the two only this has an integer kernel
    return model


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return float(next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default))


def make_plain(node: onnx.NodeProto, constants: dict[str, TensorProto], graph: onnx.GraphProto) -> None:
    """Take alpha and beta of a Gemm into its constants and make its addend a vector, where that can be."""
    weight, addend = constants.get(node.input[1]), constants.get(node.input[2]) if len(node.input) > 2 else None
    if weight is None or (len(node.input) > 2 and addend is None):
        return
    width = weight.dims[0 if attribute(node, "transB", 0) else 1]
    changed = {}
    if addend is not None:
        values = numpy_helper.to_array(addend) * np.float32(attribute(node, "beta", 1))
        if values.size not in (1, width):
            return
        changed[2] = np.broadcast_to(values.ravel(), (width,))
    if (alpha := attribute(node, "alpha", 1)) != 1:
        changed[1] = numpy_helper.to_array(weight) * np.float32(alpha)
    for index, array in changed.items():
        name = f"{node.name}//{index}"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        node.input[index] = name
    kept = [a for a in node.attribute if a.name not in ("alpha", "beta")]
    del node.attribute[:]
    node.attribute.extend(kept)


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
                if need.intersection(node.output) or need.issuperset(sources):
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

    def bias(self, node: onnx.NodeProto, seen: dict[str, Seen]) -> np.ndarray | None:
        """The addend of a Conv or Gemm, less what rounding its weights adds to each output on average."""
        if node.name not in self.layers or node.op_type not in ("Conv", "Gemm"):
            return None
        key = self.weight_of[node.name]
        weight = self.weights[key]
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


# Numbers ------------------------------------------------------------------------------------------------------


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


def scale_of(low: float, high: float) -> Scale:
    """Scale and zero point of a range, which zero is a part of. A dead tensor gets a scale that is a number."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < TINY:
        return np.float32(1.0 / 255.0), np.uint8(0)
    scale = np.float32((high - low) / 255.0)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def write(plan: Plan, ranges: dict[str, tuple[float, float]], seen: dict[str, Seen]) -> onnx.ModelProto:
    """The model with its pairs."""
    arrays: dict[str, np.ndarray] = {}
    scales = {name: scale_of(*ranges[plan.root(name)]) for name in plan.quantized}
    nodes: list[onnx.NodeProto] = []

    def make(operator: str, inputs: list[str], output: str, axis: int | None = None) -> None:
        more = {} if axis is None else {"axis": axis}
        nodes.append(helper.make_node(operator, inputs, [output], f"{output}//{operator}", **more))

    def pair(name: str, source: str) -> None:
        terms = [f"{name}//scale", f"{name}//zero"]
        arrays.update(zip(terms, map(np.asarray, scales[name]), strict=True))
        make("QuantizeLinear", [source, *terms], f"{name}//integers")
        make("DequantizeLinear", [f"{name}//integers", *terms], integers(name))

    def integers(name: str) -> str:
        return f"{name}//back" if plan.exact(name) or name not in plan.outputs else name

    def weight(key: tuple[str, int]) -> list[str]:
        terms = [f"{key[0]}//{key[1]}{part}" for part in ("int8", "scale", "zero")]
        made = plan.weights[key]
        arrays.update(zip(terms, (made.integers, made.scale, np.zeros(len(made.scale), np.int8)), strict=True))
        return terms

    for name in plan.inputs:
        if name in scales:
            pair(name, name)
    for source in plan.model.graph.node:
        if source.name in plan.gone:
            continue
        node = onnx.NodeProto()
        node.CopyFrom(source)
        for index, name in enumerate(source.input):
            if name in scales and (source.name in plan.integer or not plan.exact(name)):
                node.input[index] = integers(name)
        key = plan.weight_of.get(source.name)
        if source.name in plan.tables and key is not None:
            rows, (table, *terms) = f"{source.output[0]}//rows", weight(key)
            node.input[0], node.output[0] = table, rows
            nodes.append(node)
            make("DequantizeLinear", [rows, *terms], source.output[0], plan.rank[source.output[0]] - 1)
        else:
            if key is not None:
                node.input[1] = f"{key[0]}//{key[1]}back"
                if node.input[1] not in {name for made in nodes for name in made.output}:
                    make("DequantizeLinear", weight(key), node.input[1], plan.weights[key].axis)
                bias = plan.bias(source, seen)
                if bias is not None:
                    step = scales[source.input[0]][0] * plan.weights[key].scale
                    term = store_bias(f"{source.name}//bias", bias, step, arrays, make)
                    del node.input[2:]
                    node.input.append(term)
            nodes.append(node)
        for index, name in enumerate(source.output):
            given = plan.into.get(name, name)
            if given in scales:
                if given in plan.outputs and integers(given) == name:
                    node.output[index] = f"{name}//float"
                pair(given, node.output[index])
    return assemble(plan, nodes, arrays)


def store_bias(name: str, bias: np.ndarray, step: np.ndarray, arrays: dict[str, np.ndarray], make) -> str:
    """A bias as int32 in steps of its sums; as float where 32 bits don't hold it (that layer then runs in float)."""
    integers = np.rint(bias / step.astype(np.float64))
    if not np.isfinite(bias).all():
        raise SystemExit(f"{name.partition('//')[0]} has NaN or infinity in its bias: this model can't be quantized")
    if np.abs(integers).max(initial=0.0) >= 2**31:
        arrays[name] = bias
        return name
    terms = [f"{name}int32", f"{name}scale", f"{name}zero"]
    arrays.update(zip(terms, (integers.astype(np.int32), step, np.zeros(len(bias), np.int32)), strict=True))
    make("DequantizeLinear", terms, name, 0)
    return name


def assemble(plan: Plan, nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model of these nodes, with the constants that they use and no others."""
    model = onnx.ModelProto()
    model.CopyFrom(plan.model)
    graph = model.graph
    for part in (graph.node, graph.initializer, graph.value_info):
        del part[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | set(plan.outputs) | used_inside(nodes)
    kept = [item for item in plan.model.graph.initializer if item.name in used]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def used_inside(nodes) -> set[str]:
    """What the bodies of If, Loop and Scan read."""
    found: set[str] = set()
    for node in nodes:
        for item in node.attribute:
            for graph in (item.g, *item.graphs):
                found |= {name for inner in graph.node for name in inner.input} | used_inside(graph.node)
    return found


# Samples ------------------------------------------------------------------------------------------------------


def calibrate(plan: Plan, samples: Path, scratch: Path) -> tuple[dict[str, Seen], list[list[np.ndarray]]]:
    """What is seen of every activation to be quantized, and the outputs of the first samples."""
    seen = {name: Seen(name, plan.channels(name)) for name in plan.quantized}
    asked = list(dict.fromkeys([*plan.outputs, *(name for name in seen if name not in plan.inputs)]))
    copy = onnx.ModelProto()
    copy.CopyFrom(plan.model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in plan.outputs)
    onnx.save(copy, scratch / "watched.onnx")
    session = session_of(scratch / "watched.onnx", "ORT_ENABLE_ALL")
    wanted = []
    for feed in feeds(session, samples):
        values = {**feed, **dict(zip(asked, session.run(asked, feed), strict=True))}
        for name, item in seen.items():
            item.add(np.asarray(values[name]))
        if len(wanted) < JUDGED:
            wanted.append([values[name] for name in plan.outputs])
    return seen, wanted


def feeds(session: onnxruntime.InferenceSession, samples: Path) -> Iterator[dict[str, np.ndarray]]:
    """One dictionary a sample."""
    names = [value.name for value in session.get_inputs()]
    for values in zip(*(rows(samples / f"{index}.npy") for index in range(len(names))), strict=True):
        yield dict(zip(names, values, strict=True))


def signal_to_noise(made: Path, samples: Path, wanted: list[list[np.ndarray]]) -> float:
    """Of the worst float output, in dB over all judged samples."""
    session = session_of(made, "ORT_ENABLE_ALL")
    count = len(wanted[0])
    signal, noise = np.zeros(count), np.full(count, 1e-30)
    for feed, reference in zip(feeds(session, samples), wanted, strict=False):
        for index, (got, value) in enumerate(zip(session.run(None, feed), reference, strict=True)):
            if value.dtype.kind == "f":
                signal[index] += np.square(value, dtype=np.float64).sum()
                noise[index] += np.square(value.astype(np.float64) - got).sum()
    ratios = 10.0 * np.log10(np.maximum(signal, 1e-30) / noise)
    return float(ratios[signal > 0.0].min()) if (signal > 0.0).any() else 0.0


if __name__ == "__main__":
    main()

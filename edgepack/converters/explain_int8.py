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
"""Say which layers of a quantized model make its error.

Request: ``model`` (the ONNX model that layers are named after), ``float`` and ``quantized`` (what the quantizer made of
it before and after it put pairs in; their nodes have the same names), ``samples`` (tensor folder), ``count`` (at most
so many of them, evenly spaced). The result holds a row a layer, in the order of the graph:

- ``single_db``, ``single_cosine``: the model's outputs when only this layer is quantized (the worst output);
  ``noise`` is its error's power as a share of the signal's, summed over the outputs;
- ``own_db``: this layer's output in that case; ``entire_db``, ``entire_cosine``: this layer's output when all layers
  are quantized; ``kernel_db``: the same by ONNX Runtime's integer kernels, null where it writes no integers;
- ``low``, ``high``: what the scale of its input can hold, ``lowest``, ``highest``: what was seen there, ``saturated``:
  the share of seen values beyond the scale;
- ``macs`` and ``weights``: how many it has of them.

A layer is a weighted operator with its weights, its bias, and the pairs of what it reads and writes; what is quantized
between layers and belongs to none has a row of its own. All but ``kernel_db`` is computed in float on what the pairs
give, so it says what the format and the scales do, whatever the kernels of an engine do.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from activations import rows

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")
PERFECT_DB = 200.0
LARGEST = 2_000_000_000  # bytes; what one protobuf message holds


class Pair(NamedTuple):
    """How one activation becomes integers: ``round(x / scale) + zero``."""

    scale: np.ndarray
    zero: np.ndarray

    def limits(self) -> tuple[float, float]:
        """The lowest and highest value that the integers can hold."""
        kind = np.iinfo(self.zero.dtype)
        scale, zero = float(self.scale), int(self.zero)
        return (kind.min - zero) * scale, (kind.max - zero) * scale


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    graph = Graph(onnx.load(request["float"]), onnx.load(request["quantized"]))
    if not graph.layers:
        raise SystemExit("there is nothing to explain: no layer of this model is quantized")
    names = original_names(onnx.load(request["model"]), graph)
    samples = list(feeds(graph, Path(request["samples"]), int(request["count"])))
    found, everything = explain(graph, samples)
    result = {
        "layers": [{"layer": names[node], **found[node]} for node in graph.layers],
        **everything,
        "samples": len(samples),
    }
    (Path(request["out"]) / "result.json").write_text(json.dumps(result))


# The two graphs -----------------------------------------------------------------------------------------------


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
        if source is not None and source.input and source.input[0] in self.pairs and not self._is_layer(source):
            if self.pairs[source.input[0]] == self.pairs[name]:  # it only moves values
                found |= self._members(source.input[0], seen)
        for reader in self.reads[name]:
            node = self.nodes[reader]
            if self._is_layer(node):
                found.add(reader)
            else:
                found |= {m for given in node.output if given in self.pairs for m in self._members(given, seen)}
        return found

    def _is_layer(self, node: onnx.NodeProto) -> bool:
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


# Computing ----------------------------------------------------------------------------------------------------


def build(graph: Graph, on: set[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model in which the layers `on` are quantized, and tensor -> the name of its quantized form in it."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.opset_import[:]
    model.opset_import.extend(graph.opsets)
    body = model.graph
    nodes = list(body.node)
    del body.node[:]
    given = {name: f"{name}//pair" for name, members in graph.members.items() if members & on}
    made: list[onnx.TensorProto] = []

    def pair(name: str, source: str, target: str) -> None:
        terms = [f"{name}//pair{part}" for part in ("scale", "zero")]
        made.extend(numpy_helper.from_array(array, term) for array, term in zip(graph.pairs[name], terms, strict=True))
        body.node.append(helper.make_node("QuantizeLinear", [source, *terms], [f"{target}//integers"]))
        body.node.append(helper.make_node("DequantizeLinear", [f"{target}//integers", *terms], [target]))

    for name in graph.inputs:
        if name in given:
            pair(name, name, given[name])
    for node in nodes:
        layer = node.name in graph.changed or graph._is_layer(node)
        for index, name in enumerate(list(node.input)):
            reads = node.name in graph.reads.get(name, ()) and name in given
            if reads and (node.name in on or not layer or graph.written[name] in on):
                node.input[index] = given[name]
        if node.name in on:
            for index, value in graph.changed.get(node.name, {}).items():
                while len(node.input) <= index:
                    node.input.append("")
                node.input[index] = f"{node.name}//changed{index}"
                made.append(numpy_helper.from_array(value, node.input[index]))
        for index, name in enumerate(node.output):
            if name in given and name in graph.outputs and not graph.reads[name]:
                node.output[index] = f"{name}//exact"
        body.node.append(node)
        for index, name in enumerate(node.output):
            plain = graph.nodes[node.name].output[index]
            if plain in given:
                if name != plain:
                    given[plain] = plain
                pair(plain, name, given[plain])
    body.initializer.extend(made)
    del body.value_info[:]
    return model, given


def session_of(model: onnx.ModelProto, more: list[str]) -> onnxruntime.InferenceSession:
    """A session that also gives the tensors `more`."""
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(more) if name not in there)
    if model.ByteSize() > LARGEST:
        raise SystemExit(
            "the model and its quantized weights are larger than 2 GB, which ONNX doesn't hold in one file"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # WeightBiasQuantization would quantize weights between pairs, with one scale a tensor, whatever they are.
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )


def feeds(graph: Graph, folder: Path, most: int) -> Iterator[dict[str, np.ndarray]]:
    """At most `most` samples, evenly spaced."""
    count = len(np.load(folder / "0.npy", mmap_mode="r"))
    wanted = set(range(count)) if count <= most else {(2 * i + 1) * count // (2 * most) for i in range(most)}
    for number, values in enumerate(zip(*(rows(folder / f"{i}.npy") for i in range(len(graph.inputs))), strict=True)):
        if number in wanted:
            yield dict(zip(graph.inputs, values, strict=True))


class Error:
    """Signal, noise and the way they point, summed over samples."""

    def __init__(self) -> None:
        self.signal = self.noise = self.both = self.got = 0.0

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        """One sample."""
        exact, value = wanted.ravel().astype(np.float64), got.ravel().astype(np.float64)
        self.signal += float(exact @ exact)
        self.noise += float(np.square(exact - value).sum())
        self.both += float(exact @ value)
        self.got += float(value @ value)

    def db(self) -> float:
        """Signal over noise."""
        if not math.isfinite(self.noise):
            return -PERFECT_DB
        if self.noise == 0.0:
            return PERFECT_DB
        return max(-PERFECT_DB, min(PERFECT_DB, 10.0 * math.log10(max(self.signal, 1e-30) / self.noise)))

    def cosine(self) -> float:
        """Between what was wanted and what came."""
        size = math.sqrt(self.signal * self.got)
        if not math.isfinite(size) or size == 0.0:
            return 1.0 if self.signal == self.got == 0.0 else 0.0
        return min(1.0, self.both / size)

    def share(self) -> float:
        """Noise over signal."""
        if not math.isfinite(self.noise):
            return 1e30
        return self.noise / self.signal if self.signal else (1e30 if self.noise else 0.0)


def explain(graph: Graph, samples: list[dict[str, np.ndarray]]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Layer -> its row, and what all layers together do to the outputs."""
    watched = {layer: graph.watch(layer) for layer in graph.layers}
    sources = {layer: graph.nodes[layer].input[0] for layer in graph.layers if graph.nodes[layer].input}
    plain, _ = build(graph, set())
    asked = list(dict.fromkeys([*graph.outputs, *watched.values(), *sources.values()]))
    asked = [name for name in asked if name not in graph.constants]
    inner = [name for name in asked if name not in graph.inputs]
    exact = session_of(plain, inner)
    whole, given = build(graph, set(graph.layers))
    seen = {layer: given.get(name, name) for layer, name in watched.items()}
    complete = session_of(whole, list(seen.values()))

    run, kernels = graph.kernels()
    engine = session_of(run, list(kernels.values()))

    found: dict[str, dict[str, Any]] = {}
    real = {layer: Error() for layer in kernels}
    entire = {layer: Error() for layer in graph.layers}
    finals = {name: Error() for name in graph.outputs}
    ranges = {layer: Range(graph.pairs.get(sources.get(layer, ""))) for layer in graph.layers}
    outputs: list[dict[str, np.ndarray]] = []
    own: dict[str, list[np.ndarray]] = {layer: [] for layer in graph.layers}
    for feed in samples:
        values = {**feed, **dict(zip(inner, exact.run(inner, feed), strict=True))}
        wanted = list(dict.fromkeys([*graph.outputs, *seen.values()]))
        got = dict(zip(wanted, complete.run(wanted, feed), strict=True))
        if kernels:
            for layer, value in zip(kernels, engine.run(list(kernels.values()), feed), strict=True):
                real[layer].add(values[watched[layer]], value)
        outputs.append({name: values[name] for name in graph.outputs})
        for name in graph.outputs:
            finals[name].add(values[name], got[name])
        for layer in graph.layers:
            entire[layer].add(values[watched[layer]], got[seen[layer]])
            own[layer].append(values[watched[layer]])
            if sources.get(layer) in values:
                ranges[layer].add(values[sources[layer]])
        if not found:
            found = {layer: work(graph, graph.nodes[layer], values) for layer in graph.layers}
    del exact, complete, engine
    for layer in graph.layers:
        model, given = build(graph, {layer})
        name = given.get(watched[layer], watched[layer])
        session = session_of(model, [name])
        single = {name: Error() for name in graph.outputs}
        local = Error()
        asked = list(dict.fromkeys([*graph.outputs, name]))
        for number, feed in enumerate(samples):
            got = dict(zip(asked, session.run(asked, feed), strict=True))
            local.add(own[layer][number], got[name])
            for output in graph.outputs:
                single[output].add(outputs[number][output], got[output])
        own[layer].clear()
        found[layer] |= {
            "single_db": min(error.db() for error in single.values()),
            "single_cosine": min(error.cosine() for error in single.values()),
            "noise": sum(error.share() for error in single.values()),
            "own_db": local.db(),
            "entire_db": entire[layer].db(),
            "entire_cosine": entire[layer].cosine(),
            "kernel_db": real[layer].db() if layer in real else None,
            **ranges[layer].facts(),
        }
    everything = {
        "sqnr_db": min(error.db() for error in finals.values()),
        "cosine": min(error.cosine() for error in finals.values()),
    }
    return found, everything


class Range:
    """What a scale can hold, and what came."""

    def __init__(self, pair: Pair | None) -> None:
        self.pair = pair
        self.lowest, self.highest, self.beyond, self.count = math.inf, -math.inf, 0, 0

    def add(self, values: np.ndarray) -> None:
        """One sample."""
        if values.size and values.dtype.kind == "f":
            self.lowest, self.highest = min(self.lowest, float(values.min())), max(self.highest, float(values.max()))
            self.count += values.size
            if self.pair is not None:
                low, high = self.pair.limits()
                half = float(self.pair.scale) / 2.0
                self.beyond += int(((values < low - half) | (values > high + half)).sum())

    def facts(self) -> dict[str, float | None]:
        """For the row of the layer that reads it."""
        low, high = self.pair.limits() if self.pair is not None else (None, None)
        finite = math.isfinite(self.lowest) and math.isfinite(self.highest)
        return {
            "low": low,
            "high": high,
            "lowest": self.lowest if finite else None,
            "highest": self.highest if finite else None,
            "saturated": self.beyond / self.count if self.pair is not None and self.count else None,
        }


def work(graph: Graph, node: onnx.NodeProto, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """The operator, its multiply-accumulates on one sample, and its weights."""
    weight = graph.constants.get(node.input[0 if node.op_type == "Gather" else 1]) if len(node.input) > 1 else None
    known = values.get(node.output[0])
    size = known.size if known is not None else values[graph.watch(node.name)].size
    shape = list(weight.shape) if weight is not None else []
    macs = 0
    if node.op_type == "Conv" and shape:
        macs = size * math.prod(shape[1:])
    elif node.op_type == "ConvTranspose" and shape and node.input[0] in values:
        macs = values[node.input[0]].size * math.prod(shape[1:])
    elif node.op_type in ("Gemm", "MatMul") and node.input[0] in values:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        macs = size * values[node.input[0]].shape[0 if transposed else -1]
    layer = node.op_type in LAYERS and weight is not None
    return {"op": node.op_type, "macs": int(macs), "weights": int(weight.size) if layer else 0}


if __name__ == "__main__":
    main()

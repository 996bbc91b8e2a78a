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
  are quantized; ``kernel_db``, ``kernel_cosine``: the same by ONNX Runtime's integer kernels, null where they write no
  integers;
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
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from activations import rows
from int8_errors import Error, Range, evenly
from int8_graph import LAYERS, Graph, original_names

LARGEST = 2_000_000_000  # bytes; what one protobuf message holds


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
        layer = node.name in graph.changed or graph.is_layer(node)
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
    every = zip(*(rows(folder / f"{i}.npy") for i in range(len(graph.inputs))), strict=True)
    for values in evenly(every, count, most):
        yield dict(zip(graph.inputs, values, strict=True))


def explain(graph: Graph, samples: list[dict[str, np.ndarray]]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Layer -> its row, and what all layers together do to the outputs."""
    exact = exact_values(graph, samples)
    found, finals = together(graph, exact)
    for layer in graph.layers:
        found[layer] |= alone(graph, layer, exact)
    everything = {
        "sqnr_db": min(error.db() for error in finals.values()),
        "cosine": min(error.cosine() for error in finals.values()),
    }
    return found, everything


def source(graph: Graph, layer: str) -> str | None:
    """The activation that a layer reads first."""
    given = graph.nodes[layer].input
    return given[0] if given and given[0] and given[0] not in graph.constants else None


def exact_values(graph: Graph, samples: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """For each sample, the float model's inputs, outputs, and what every layer reads and gives."""
    sources = [name for layer in graph.layers if (name := source(graph, layer)) is not None]
    asked = list(dict.fromkeys([*graph.outputs, *map(graph.watch, graph.layers), *sources]))
    inner = [name for name in asked if name not in graph.constants and name not in graph.inputs]
    plain, _ = build(graph, set())
    session = session_of(plain, inner)
    return [{**feed, **dict(zip(inner, session.run(inner, feed), strict=True))} for feed in samples]


def together(graph: Graph, exact: list[dict[str, np.ndarray]]) -> tuple[dict[str, dict[str, Any]], dict[str, Error]]:
    """Each layer's work, range, and output when all layers are quantized: simulated, and by the kernels; and output ->
    its error then."""
    whole, given = build(graph, set(graph.layers))
    seen = {layer: given.get(graph.watch(layer), graph.watch(layer)) for layer in graph.layers}
    simulated = session_of(whole, list(seen.values()))
    run, kernels = graph.kernels()
    engine = session_of(run, list(kernels.values()))
    entire = {layer: Error() for layer in graph.layers}
    real = {layer: Error() for layer in kernels}
    finals = {name: Error() for name in graph.outputs}
    pairs = {layer: graph.pairs.get(source(graph, layer) or "") for layer in graph.layers}
    ranges = {layer: Range(pair.span() if pair is not None else None) for layer, pair in pairs.items()}
    wanted = list(dict.fromkeys([*graph.outputs, *seen.values()]))
    for values in exact:
        feed = {name: values[name] for name in graph.inputs}
        got = dict(zip(wanted, simulated.run(wanted, feed), strict=True))
        for name in graph.outputs:
            finals[name].add(values[name], got[name])
        for layer in graph.layers:
            entire[layer].add(values[graph.watch(layer)], got[seen[layer]])
            if (name := source(graph, layer)) in values:
                ranges[layer].add(values[name])
        for layer, value in zip(kernels, engine.run(list(kernels.values()), feed) if kernels else (), strict=True):
            real[layer].add(values[graph.watch(layer)], value)
    found = {
        layer: {
            **work(graph, graph.nodes[layer], exact[0]),
            "entire_db": entire[layer].db(),
            "entire_cosine": entire[layer].cosine(),
            "kernel_db": real[layer].db() if layer in real else None,
            "kernel_cosine": real[layer].cosine() if layer in real else None,
            **ranges[layer].facts(),
        }
        for layer in graph.layers
    }
    return found, finals


def alone(graph: Graph, layer: str, exact: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """What one layer does to the outputs, and to its own, when it is the only one in integers."""
    model, given = build(graph, {layer})
    name = given.get(graph.watch(layer), graph.watch(layer))
    session = session_of(model, [name])
    single = {output: Error() for output in graph.outputs}
    own = Error()
    asked = list(dict.fromkeys([*graph.outputs, name]))
    for values in exact:
        got = dict(zip(asked, session.run(asked, {name: values[name] for name in graph.inputs}), strict=True))
        own.add(values[graph.watch(layer)], got[name])
        for output in graph.outputs:
            single[output].add(values[output], got[output])
    return {
        "single_db": min(error.db() for error in single.values()),
        "single_cosine": min(error.cosine() for error in single.values()),
        "noise": sum(error.share() for error in single.values()),
        "own_db": own.db(),
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

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
"""Write a QDQ model with ONNX Runtime's integer kernels in place of its pairs, in as few bytes as that takes.

Request: ``model`` (ONNX file with QuantizeLinear/DequantizeLinear pairs). Writes ``model.onnx``, optimised for any CPU
as `onnx_to_ort.py` does. It isn't an ``.ort`` file, because that has some hundred bytes of tables for each operator,
tensor and constant: more than the weights of a small network in INT8 (PP-OCR's cls: 440 kB, here 180 kB).

ONNX Runtime optimises the file again when it is loaded, and one rule (WeightBiasQuantization) gives a layer that stays
in float between pairs integer weights, with one scale for all of them: such layers get a form that it doesn't know.

A bias in float beside pairs, as quantization-aware training leaves it, would keep its whole convolution in float: it
becomes int32 in steps of the sums, where 32 bits hold it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

# The blocked layout of this machine's CPU, and one scale for all weights of layers that stay in float.
LEFT_OUT = ["NchwcTransformer", "WeightBiasQuantization"]


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    scratch, out = Path(request["scratch"]), Path(request["out"])
    model = onnx.load(request["model"])
    integer_biases(model)
    onnx.save(model, scratch / "pairs.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(scratch / "fused.onnx")
    try:
        onnxruntime.InferenceSession(
            str(scratch / "pairs.onnx"), options, providers=["CPUExecutionProvider"], disabled_optimizers=LEFT_OUT
        )
    except Exception as error:
        raise SystemExit(f"ONNX Runtime can't load this model: {' '.join(str(error).split())[:400]}") from error
    fused = onnx.load(scratch / "fused.onnx")
    keep_in_float(fused)
    shorten(fused)
    onnx.save(fused, out / "model.onnx")
    (out / "result.json").write_text(json.dumps({"onnxruntime": onnxruntime.__version__}))


def integer_biases(model: onnx.ModelProto) -> None:
    """Put pairs beside float biases of Conv and Gemm whose inputs and weights have pairs, in place."""
    graph = model.graph
    pairs = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    constants = {item.name: item for item in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        terms = [pairs.get(name) for name in node.input[:2]]
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type in ("Conv", "Gemm") and bias is not None and bias.data_type == onnx.TensorProto.FLOAT:
            scales = [constants.get(pair.input[1]) if pair is not None else None for pair in terms]
            if all(scale is not None and scale.data_type == onnx.TensorProto.FLOAT for scale in scales):
                pair = bias_pair(f"{node.output[0]}//bias", bias, *map(numpy_helper.to_array, scales), graph)
                if pair is not None:
                    nodes.append(pair)
                    node.input[2] = pair.output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def bias_pair(
    name: str, bias: onnx.TensorProto, activation: np.ndarray, weight: np.ndarray, graph: onnx.GraphProto
) -> onnx.NodeProto | None:
    """The node that gives a bias from int32; nothing where its shapes are others or 32 bits are too few."""
    values = numpy_helper.to_array(bias)
    steps = activation.astype(np.float64) * weight
    if values.ndim != 1 or activation.size != 1 or steps.size not in (1, values.size):
        return None
    steps = steps.reshape(-1) * np.ones(len(values)) if steps.size > 1 else steps.reshape(-1)[:1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        integers = np.rint(values / steps)
    if not (np.isfinite(integers).all() and np.abs(integers).max(initial=0.0) < 2**31):
        return None
    scale = steps.astype(np.float32) if steps.size > 1 else np.float32(steps[0])
    zeros = np.zeros(np.shape(scale), np.int32)
    arrays = {f"{name}int32": integers.astype(np.int32), f"{name}scale": scale, f"{name}zeros": zeros}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(array), key) for key, array in arrays.items())
    return helper.make_node("DequantizeLinear", list(arrays), [name], axis=0)


def keep_in_float(model: onnx.ModelProto) -> None:
    """Write layers that read what a DequantizeLinear gives so that no rule takes their weights for integers, in place.

    A Conv becomes a FusedConv without an activation. Others read the negative of their input, and have the negatives
    of their weights: the same sums, bit for bit.
    """
    graph = model.graph
    pairs = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    constants = {item.name: item for item in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.input[0] in pairs and node.input[1] in constants:
            if node.op_type == "Conv":
                node.op_type, node.domain = "FusedConv", "com.microsoft"
            else:
                value, weight = (f"{node.output[0]}//negative{index}" for index in (0, 1))
                negative = -numpy_helper.to_array(constants[node.input[1]])
                graph.initializer.append(numpy_helper.from_array(negative, weight))
                nodes.append(helper.make_node("Neg", [node.input[0]], [value]))
                node.input[0], node.input[1] = value, weight
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def shorten(model: onnx.ModelProto) -> None:
    """Store equal constants once and give tensors inside the model short names, in place; nodes keep their names.

    Constants stand in the order in which they are used, so that the same model gives the same bytes. A model with
    bodies (If, Loop, Scan) keeps its tensors' names: those inside may be the same.
    """
    graph = model.graph
    del graph.value_info[:]
    kept = [item for item in model.metadata_props if not item.key.startswith("onnxsim.")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for node in graph.node:
        node.doc_string = ""
    if any(item.HasField("g") or item.graphs for node in graph.node for item in node.attribute):
        return
    surface = {value.name for value in (*graph.input, *graph.output)}
    constants = {item.name: item for item in graph.initializer}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same = {
        name: first.setdefault((item.data_type, tuple(item.dims), numpy_helper.to_array(item).tobytes()), name)
        for name, item in constants.items()
        if name not in surface and item.data_type != onnx.TensorProto.STRING
    }
    short: dict[str, str] = {name: name for name in ("", *surface)}
    taken, number = set(short), 0
    ordered: list[onnx.TensorProto] = []
    for node in graph.node:
        for names in (node.input, node.output):
            for index, long in enumerate(names):
                name = same.get(long, long)
                if name not in short:
                    while (made := f"{number:x}") in taken:
                        number += 1
                    short[name] = made
                    taken.add(made)
                    if name in constants:
                        ordered.append(constants[name])
                names[index] = short[name]
    ordered += [constants[name] for name in sorted(constants) if name in surface]
    for item in ordered:
        item.name = short[item.name]
    copies = [onnx.TensorProto.FromString(item.SerializeToString()) for item in ordered]
    del graph.initializer[:]
    graph.initializer.extend(copies)


if __name__ == "__main__":
    main()

"""An ONNX model as the quantizer wants it, and sessions that run it. Shared by the scripts that rewrite ONNX models."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from activations import rows
from onnx import TensorProto, helper, numpy_helper


def session_of(model: Path, level: str, target: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if target is not None:
        options.optimized_model_filepath = str(target)
    try:
        # WeightBiasQuantization would quantize the layers that stay in float, with one scale a tensor.
        return onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
        )
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


def survivors(source: onnx.ModelProto, prepared: onnx.ModelProto, names: list[str]) -> dict[str, str]:
    """Layers by the first output of their node in `source` -> that of the node that holds them now.

    Batch normalisations and additions that were fused into a layer give it their own output's name: the way leads to
    the only reader of what is gone. Names that lead nowhere are left out.
    """
    there = {node.output[0] for node in prepared.graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in source.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for name in names:
        now = name
        while now not in there and len(readers.get(now, [])) == 1:
            now = readers[now][0].output[0]
        if now in there:
            found[name] = now
    return found


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

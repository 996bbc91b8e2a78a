"""The scales of a quantized ONNX model (QuantizeLinear/DequantizeLinear pairs), found again in the .tflite made of it.

The float model inside (`float_of_qdq`) is what is converted, and a converter renames, transposes and fuses. So a tensor
is recognised by its values on made-up inputs, and weights by the magnitudes in each of their rows, whatever their
order: a normalisation fused into them stretches a row, and its scale with it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

ALIKE = 1e-3  # relative difference of two tensors' sorted values
SAME_ROWS = 0.9999  # cosine
LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass
class Weights:
    """Quantized weights of a layer: magnitudes in each row [outputs, inputs], sorted, and a scale for each."""

    layer: str
    rows: np.ndarray
    scales: np.ndarray
    symmetric: bool


@dataclass
class Pairs:
    """What a quantized model says: scale and zero point (in int8) by tensor, and its weights in the graph's order."""

    activations: dict[str, tuple[float, int]]
    weights: list[Weights]


def pairs_of(model: onnx.ModelProto) -> Pairs:
    """Pairs of 8 bits with constant scales."""
    graph = model.graph
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        for found in node.attribute:
            if node.op_type == "Constant" and found.name == "value":
                values[node.output[0]] = numpy_helper.to_array(found.t)
    makers = {name: node for node in graph.node for name in node.output}
    pairs = Pairs({}, [])
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            scale, zero = coding(node, values)
            source = makers.get(node.input[0])
            if scale is not None and scale.size == 1 and source is not None and source.op_type == "QuantizeLinear":
                offset = {np.uint8: 128, np.int8: 0}.get(zero.dtype.type)
                if offset is not None:
                    told = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) - offset
                    pairs.activations[source.input[0]] = pairs.activations[node.output[0]] = told
                    pairs.activations[f"{node.output[0]}//clipped"] = told
        elif node.op_type in LAYERS and len(node.input) > 1:
            maker = makers.get(node.input[1])
            found = weights_of(node, maker, values) if maker is not None else None
            if found is not None:
                pairs.weights.append(found)
    return pairs


def coding(node: onnx.NodeProto, values: dict[str, np.ndarray]) -> tuple[np.ndarray | None, np.ndarray]:
    """Scale and zero point of a DequantizeLinear; no scale where they aren't constant."""
    scale = values.get(node.input[1])
    if len(node.input) < 3 or not node.input[2]:
        return scale, np.zeros(1, np.uint8)
    zero = values.get(node.input[2])
    return (scale, zero) if zero is not None else (None, np.zeros(1, np.uint8))


def weights_of(node: onnx.NodeProto, maker: onnx.NodeProto, values: dict[str, np.ndarray]) -> Weights | None:
    """The quantized weights of a layer; None where they are not 8 bits wide with a scale for each output."""
    integers = values.get(maker.input[0]) if maker.op_type == "DequantizeLinear" else None
    scale, zero = coding(maker, values) if integers is not None else (None, np.zeros(1))
    if integers is None or scale is None or integers.dtype.itemsize != 1 or integers.ndim < 2:
        return None
    offset = 128 if integers.dtype == np.uint8 else 0
    by_column = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    if by_column and integers.ndim != 2:
        return None
    outputs = integers.shape[1 if by_column else 0]
    axis = attribute(maker, "axis", 1) % integers.ndim
    if scale.size not in (1, outputs) or (scale.size > 1 and axis != (1 if by_column else 0)):
        return None
    steps = (integers.T if by_column else integers).reshape(outputs, -1).astype(np.float64)
    steps -= zero.astype(np.float64).reshape(-1, 1)
    scales = np.broadcast_to(scale.astype(np.float64).reshape(-1), (outputs,))
    rows = np.sort(np.abs(steps * scales[:, None]), axis=1)
    return Weights(node.output[0], rows, scales, bool((zero.astype(int) == offset).all()))


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return int(next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default))


def found_again(pairs: Pairs, names: dict[str, str], source: Path, made: Path) -> dict:
    """The scales by the names in the .tflite.

    `names`: the tensors' names in the quantized model -> in `source`, the float ONNX file that `made` comes from.
    ``activations``: name -> scale and zero point; ``weights``: name -> a scale for each output; ``asymmetric``: layers
    whose weights have a zero point, which a .tflite can't hold, by their names in the quantized model.
    """
    told = {names[old]: told for old, told in pairs.activations.items() if old in names}
    activations = {}
    for values in watched(source, made, told):
        matched = {}
        for name, mine in values[1].items():
            for other, theirs in values[0].items():
                if alike(mine, theirs):
                    matched[name] = list(told[other])
                    break
        activations = matched if not activations else {n: v for n, v in matched.items() if activations.get(n) == v}
    weights = {}
    waiting = [item for item in pairs.weights if item.symmetric]
    for name, rows in constant_rows(made):
        for item in waiting:
            factors = stretched(item.rows, rows)
            if factors is not None:
                weights[name] = [float(value) for value in item.scales * factors]
                waiting.remove(item)
                break
    asymmetric = [item.layer for item in pairs.weights if not item.symmetric]
    return {"activations": activations, "weights": weights, "asymmetric": asymmetric}


def alike(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two tensors hold the same values in any order; those of one value only say nothing."""
    size = np.abs(theirs).max(initial=0.0)
    return mine.size == theirs.size and theirs[0] < theirs[-1] and np.abs(mine - theirs).max() <= ALIKE * size


def stretched(rows: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """What each row must be multiplied by to be the other's, or None where they aren't alike."""
    if rows.shape != other.shape:
        return None
    norms, others = np.linalg.norm(rows, axis=1), np.linalg.norm(other, axis=1)
    cosines = (rows * other).sum(axis=1) / np.maximum(norms * others, 1e-30)
    if not np.all((cosines > SAME_ROWS) | ((norms == 0.0) & (others == 0.0))):
        return None
    factors = np.where(norms > 0.0, others / np.maximum(norms, 1e-30), 1.0)
    return np.where(np.abs(factors - 1.0) < 1e-5, 1.0, factors)


def watched(source: Path, made: Path, told: dict[str, tuple[float, int]]):
    """Sorted values of the tensors in both files, on made-up inputs within their pairs' ranges, twice."""
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    model = onnx.load(source)
    there = {name for node in model.graph.node for name in node.output}
    inputs = {value.name: value for value in model.graph.input}
    asked = sorted(name for name in told if name in there)
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    interpreter = Interpreter(
        str(made),
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    places = {detail["name"]: detail for detail in interpreter.get_input_details()}
    for seed in range(2):
        random = np.random.default_rng(seed)
        feed = {}
        for item in session.get_inputs():
            kind = helper.tensor_dtype_to_np_dtype(inputs[item.name].type.tensor_type.elem_type)
            if np.issubdtype(kind, np.floating):
                scale, zero = told.get(item.name, (1.0 / 64, 0))
                feed[item.name] = (random.uniform(-128 - zero, 127 - zero, item.shape) * scale).astype(kind)
            else:
                feed[item.name] = random.integers(0, 2, item.shape).astype(kind)
            place = places[item.name]
            value, shape = feed[item.name], tuple(place["shape"])
            if shape != value.shape and value.ndim > 2:  # channels last; inputs keep their shape elsewhere
                value = np.moveaxis(value, 1, -1)
            interpreter.set_tensor(place["index"], np.ascontiguousarray(value.reshape(shape).astype(place["dtype"])))
        interpreter.invoke()
        theirs = {name: np.sort(value, axis=None) for name, value in zip(asked, session.run(asked, feed), strict=True)}
        theirs |= {name: np.sort(value, axis=None) for name, value in feed.items() if name in told}
        mine = {}
        for detail in interpreter.get_tensor_details():
            if detail["name"] and detail["dtype"] is np.float32:
                try:
                    mine[detail["name"]] = np.sort(interpreter.get_tensor(detail["index"]), axis=None)
                except ValueError:  # a temporary without content
                    continue
        yield theirs, mine


def constant_rows(made: Path):
    """Each layer's weights in the .tflite: name, and the magnitudes in each row, sorted."""
    from ai_edge_litert import schema_py_generated as schema

    flat = schema.ModelT.InitFromPackedBuf(bytearray(made.read_bytes()))
    kinds = {
        schema.BuiltinOperator.CONV_2D: 0,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D: -1,
        schema.BuiltinOperator.FULLY_CONNECTED: 0,
    }
    for graph in flat.subgraphs:
        for operator in graph.operators:
            axis = kinds.get(flat.operatorCodes[operator.opcodeIndex].builtinCode)
            tensor = graph.tensors[operator.inputs[1]] if axis is not None else None
            data = None if tensor is None else flat.buffers[tensor.buffer].data
            if tensor is None or data is None or tensor.type != schema.TensorType.FLOAT32:
                continue
            values = np.frombuffer(bytes(bytearray(data)), np.float32).reshape(tensor.shape).astype(np.float64)
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            yield tensor.name.decode(), np.sort(np.abs(rows), axis=1)

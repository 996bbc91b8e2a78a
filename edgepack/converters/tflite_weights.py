"""The weights and biases of a .tflite, in place: what rounding them does to means is taken out of the biases."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer.qtyping import BuiltinOperator, TensorType

INTEGERS = (TensorType.INT8, TensorType.INT16)


@dataclasses.dataclass
class Layer:
    """A layer with constant weights in the float file; `bias` where it is a constant with an own buffer."""

    kind: int
    weights: np.ndarray
    input: str
    bias: np.ndarray | None
    strides: list[int]
    dilations: list[int]
    same: bool  # padding


Chosen = dict[bytes, tuple[np.ndarray, np.ndarray]]  # integers and scales by the name of the weights


def weighted(model: str) -> dict[bytes, Layer]:
    """Convolutions and fully connected layers by the name of their weights; those that share them are left out."""
    flat = schema.Model.GetRootAs(Path(model).read_bytes())
    found: dict[bytes, Layer] = {}
    uses: Counter[bytes] = Counter()
    for kind, inputs, _, graph, operator in correctable(flat):
        weights = graph.Tensors(inputs[1])
        buffer = flat.Buffers(weights.Buffer())
        if weights.Type() == TensorType.FLOAT32 and (buffer.DataLength() or buffer.Size()):
            values = stored(flat, weights, np.float32).reshape(weights.ShapeAsNumpy())
            if not np.isfinite(values).all():
                raise ValueError(f"the weights {weights.Name().decode()} hold NaN or infinity")
            bias = graph.Tensors(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else None
            added = None if bias is None else stored(flat, bias, np.float32).astype(np.float64)
            name = graph.Tensors(inputs[0]).Name().decode()
            found[weights.Name()] = Layer(kind, values, name, added, *geometry(kind, operator))
            uses[weights.Name()] += 1
    return {name: layer for name, layer in found.items() if uses[name] == 1}


def correctable(flat):
    """Operator code, inputs, uses of each tensor, graph and operator of every layer whose bias can be corrected."""
    codes = (BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D, BuiltinOperator.FULLY_CONNECTED)
    for graph in (flat.Subgraphs(index) for index in range(flat.SubgraphsLength())):
        operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
        uses = Counter(int(index) for operator in operators for index in operator.InputsAsNumpy())
        for operator in operators:
            kind = flat.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
            if kind in codes:
                yield kind, [int(index) for index in operator.InputsAsNumpy()], uses, graph, operator


def geometry(kind: int, operator) -> tuple[list[int], list[int], bool]:
    """Strides, dilations (height, width), and whether the padding is SAME."""
    if kind == BuiltinOperator.FULLY_CONNECTED:
        return [1, 1], [1, 1], False
    options = schema.Conv2DOptions() if kind == BuiltinOperator.CONV_2D else schema.DepthwiseConv2DOptions()
    table = operator.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    dilations = [options.DilationHFactor(), options.DilationWFactor()]
    return [options.StrideH(), options.StrideW()], dilations, options.Padding() == schema.Padding.SAME


def stored(flat, tensor, dtype: type) -> np.ndarray:
    """A constant's values: a view of the file's bytes. Large ones lie behind the flatbuffer itself."""
    buffer = flat.Buffers(tensor.Buffer())
    if buffer.Offset() > 1:
        return np.frombuffer(buffer._tab.Bytes, np.uint8, buffer.Size(), buffer.Offset()).view(dtype)
    return buffer.DataAsNumpy().view(dtype)


def correct(data: bytearray, layers: dict[bytes, Layer], seen: Mapping, chosen: Chosen) -> bytearray:
    """Take what rounding the weights adds to the output on average out of each bias of the file, in place.

    Where integers and scales of weights were `chosen`, they are written first.
    """
    flat = schema.Model.GetRootAs(data)
    graphs = [flat.Subgraphs(index) for index in range(flat.SubgraphsLength())]
    tensors = [graph.Tensors(index) for graph in graphs for index in range(graph.TensorsLength())]
    for tensor in tensors:
        scale = tensor.Quantization().ScaleAsNumpy() if tensor.Quantization() is not None else 1.0
        if tensor.Type() in INTEGERS and not (np.isfinite(scale).all() and np.all(scale > 0)):
            raise ValueError(f"it gave {tensor.Name().decode()} a scale of 0, infinity or NaN")
    shared = Counter(tensor.Buffer() for tensor in tensors)
    for kind, inputs, uses, graph, _ in correctable(flat):
        weights = graph.Tensors(inputs[1])
        layer = layers.get(weights.Name())
        if layer is None or weights.Type() != TensorType.INT8:
            continue
        bias = graph.Tensors(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else None
        if bias is not None and (uses[inputs[2]] > 1 or shared[bias.Buffer()] > 1):
            continue
        if weights.Name() in chosen and shared[weights.Buffer()] == 1:
            rewrite(flat, graph.Tensors(inputs[0]), weights, bias, layer, *chosen[weights.Name()])
        mean = seen[layer.input].mean() if layer.input in seen else None
        shift = None if mean is None else mean_error(kind, layer.weights, widened_weights(flat, weights), mean)
        if bias is None or shift is None:
            continue
        if bias.Type() == TensorType.INT32:
            values, limits = stored(flat, bias, np.int32), np.iinfo(np.int32)
            steps = np.rint(shift / bias.Quantization().ScaleAsNumpy().astype(np.float64))
            values[:] = np.clip(values - steps, limits.min, limits.max)
        elif bias.Type() == TensorType.FLOAT32:
            stored(flat, bias, np.float32)[:] -= shift.astype(np.float32)
    return data


def rewrite(flat, source, weights, bias, layer: Layer, integers: np.ndarray, scale: np.ndarray) -> None:
    """Put other integers and scales into a layer; its bias is in steps of its sums, so that changes too."""
    scales = weights.Quantization().ScaleAsNumpy()
    if np.shape(scales) != scale.shape or integers.shape != layer.weights.shape:
        return
    steps = bias.Quantization().ScaleAsNumpy() if bias is not None and bias.Type() == TensorType.INT32 else None
    if steps is not None:
        wanted = source.Quantization().ScaleAsNumpy().astype(np.float64)[0] * scale
        if layer.bias is None or steps.shape != wanted.shape or np.abs(layer.bias / wanted).max() >= 2**31:
            return
        steps[:] = wanted
        stored(flat, bias, np.int32)[:] = np.rint(layer.bias / wanted)
    scales[:] = scale
    stored(flat, weights, np.int8)[:] = integers.ravel()


def widened_weights(flat, tensor) -> np.ndarray:
    integers = stored(flat, tensor, np.int8).reshape(tensor.ShapeAsNumpy())
    scale = tensor.Quantization().ScaleAsNumpy().astype(np.float64)
    axis = tensor.Quantization().QuantizedDimension()
    return integers * scale.reshape([-1 if index == axis else 1 for index in range(integers.ndim)])


def mean_error(kind: int, exact: np.ndarray, rounded: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """What the error of the weights adds to each output channel, from the means of the input's channels."""
    if exact.shape != rounded.shape:
        return None
    error = rounded - exact
    if kind == BuiltinOperator.DEPTHWISE_CONV_2D:  # [1, height, width, channels * multiplier]
        sums = error.sum(axis=(0, 1, 2))
        return None if len(sums) % len(mean) else sums * np.repeat(mean, len(sums) // len(mean))
    sums = error.reshape(len(error), -1, error.shape[-1]).sum(axis=1)  # [outputs, inputs of one group]
    groups = len(mean) // sums.shape[1]
    if groups * sums.shape[1] != len(mean) or not groups or len(sums) % groups:
        return None
    parts = np.einsum("goc,gc->go", sums.reshape(groups, -1, sums.shape[1]), mean.reshape(groups, -1))
    return parts.reshape(-1)

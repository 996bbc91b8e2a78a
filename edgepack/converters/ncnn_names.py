"""Which ncnn layer is which node of the ONNX model. A node is known by the name of its first output tensor.

pnnx renames blobs and layers and fuses batch normalisations into weights, but keeps what it can of the weights' values
and order. So a layer is recognised by its weights: the same numbers, else rows of the same direction (a fused
normalisation stretches each output's row). Among several alike, the order in both files decides.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ncnn_files import Block, Layer, floats
from ncnn_plan import dynamic, groups, weighted
from ncnn_ranges import TINY, Coding, single, symmetric

SAME = 0.9999  # cosine of two rows that differ by a factor only


@dataclass
class Given:
    """What a quantized model (QDQ) says of a node's integers: float = (integer - zero) * scale."""

    scale: float | None = None  # of its input
    zero: int = 0
    bits: tuple[int, int] = (-128, 127)
    weight_scale: np.ndarray | None = None


@dataclass
class Node:
    """A node of the ONNX model with constant weights, as rows [outputs, inputs and kernel]."""

    name: str
    rows: np.ndarray
    given: Given = field(default_factory=Given)


def nodes_of(path: Path) -> list[Node]:
    """Every Conv, Gemm and MatMul with constant weights and every Gather from a table, in the file's order."""
    import onnx
    from onnx import helper, numpy_helper

    graph = onnx.load(path).graph
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        tensor = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if tensor is not None:
            values[node.output[0]] = numpy_helper.to_array(tensor)

    def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
        return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)

    def coded(name: str) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """The integers (when constant), scale and zero point of what a DequantizeLinear gives."""
        maker = makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[1] not in values:
            return None, None, None
        scale = values[maker.input[1]]
        zero = values.get(maker.input[2]) if len(maker.input) > 2 else np.zeros(scale.shape, np.uint8)
        return values.get(maker.input[0]), scale, zero

    found = []
    for node in graph.node:
        table = values.get(node.input[0]) if node.op_type == "Gather" else None
        if table is not None and table.dtype == np.float32 and table.ndim == 2:
            found.append(Node(node.output[0], table))
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        given, weight = Given(), values.get(node.input[1])
        by_column = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
        if weight is None:
            integers, scale, zero = coded(node.input[1])
            if integers is None or scale is None or zero is None:
                continue
            axis = -1 if by_column else 0
            shape = [1] * integers.ndim
            if scale.size > 1:
                shape[axis] = scale.size
            weight = (integers.astype(np.float32) - zero.reshape(shape)) * scale.reshape(shape)
            given.weight_scale = scale.reshape(-1) if not zero.any() else None
        _, scale, zero = coded(node.input[0])
        if scale is not None and zero is not None and scale.size == 1:
            limits = np.iinfo(zero.dtype)
            given.scale, given.zero = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
            given.bits = (int(limits.min), int(limits.max))
        if weight.ndim < 2 or weight.dtype != np.float32 or (node.op_type == "MatMul" and weight.ndim != 2):
            continue
        rows = weight.T if by_column else weight
        found.append(Node(node.output[0], np.ascontiguousarray(rows).reshape(len(rows), -1), given))
    return found


def match(layers: list[Layer], blocks: list[list[Block]], weights: np.ndarray, nodes: list[Node]) -> dict[int, Node]:
    """The node of each layer that has one; a node belongs to one layer at most."""
    free: dict[int, Node] = dict(enumerate(nodes))
    found: dict[int, Node] = {}
    waiting = []
    for index, layer in enumerate(layers):
        if blocks[index] and (weighted(layer) or dynamic(layer)):
            waiting.append((index, floats(blocks[index][0], weights)))
    exact: dict[bytes, list[int]] = {}
    for place, node in free.items():
        exact.setdefault(_digest(node.rows), []).append(place)
    for index, values in list(waiting):
        if places := exact.get(_digest(values)):
            found[index] = free.pop(places.pop(0))
    for index, values in waiting:
        if index in found:
            continue
        for place, node in free.items():
            if node.rows.size == values.size and _alike(values, node.rows):
                found[index] = free.pop(place)
                break
    return found


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values, np.float32).tobytes()).digest()


def _alike(values: np.ndarray, rows: np.ndarray) -> bool:
    """Whether each row of both points the same way, or the other way round; some row must not be zero."""
    matrix = values.reshape(rows.shape)
    products = np.abs(np.einsum("ok,ok->o", matrix, rows, dtype=np.float64))
    sizes = np.linalg.norm(matrix, axis=1).astype(np.float64) * np.linalg.norm(rows, axis=1)
    there = sizes > 0.0
    return bool(there.any() and (products[there] >= SAME * sizes[there]).all())


def given_coding(given: Given, *, shiftable: bool) -> Coding:
    """The integers that a quantized model says, as near as ncnn's come to them.

    A blob that can have a zero point keeps scale and zero point (of 256 steps the outermost is lost); another, whose
    zero point isn't in the middle, gets the symmetric integers that cover the same range.
    """
    assert given.scale is not None
    low, high = ((end - given.zero) * given.scale for end in given.bits)
    middle = sum(given.bits) // 2 + 1  # 0 of int8, 128 of uint8
    if not TINY < given.scale < 1e30:
        return Coding(1.0)
    if given.zero == middle:
        return Coding(single(1.0 / given.scale))
    if not shiftable:
        return symmetric(low, high)
    zero = given.zero - middle
    return Coding(single(1.0 / given.scale), min(abs(zero), 127), -1 if zero < 0 else 1)


def given_factors(layer: Layer, given: Given | None) -> np.ndarray | None:
    """Factors of a layer's rows that a quantized model says; None where ncnn has no place for them."""
    if given is None or given.weight_scale is None:
        return None
    scales = np.broadcast_to(given.weight_scale.astype(np.float64), (layer.int(0),))
    if not ((scales > 1e-30) & (scales < 1e30)).all():
        return None
    if layer.type == "ConvolutionDepthWise":  # one for each group
        parts = scales.reshape(groups(layer), -1)
        if (parts != parts[:, :1]).any():
            return None
        scales = parts[:, 0]
    return (1.0 / scales).astype(np.float32)

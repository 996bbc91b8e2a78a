"""Several ONNX nodes that are one layer of ncnn: GELU and layer normalisation as exporters write them out.

Hendrycks and Gimpel, Gaussian Error Linear Units, 2016; Ba, Kiros and Hinton, Layer Normalization, 2016. Nodes that
nothing reads afterwards are left out by the caller.
"""

import math

import numpy as np
import onnx
from onnx_graph import Graph, attribute, make


def gelu(graph: Graph) -> None:
    """x * 0.5 * (1 + erf(x / sqrt(2))), with the half anywhere in the product."""
    for erf in [n for n in graph.nodes if n.op_type == "Erf"]:
        source = _scaled(graph, graph.maker(erf.input[0]), 1 / math.sqrt(2))
        added = _alone(graph, erf)
        if source is None or added is None or added.op_type != "Add" or not _has(graph, added, 1.0):
            continue
        last = _alone(graph, added)
        if last is None or last.op_type != "Mul":
            continue
        other = next((name for name in last.input if name != added.output[0]), "")
        if other != source:
            half = graph.maker(other)
            if _scaled(graph, half, 0.5) != source:
                continue
        else:
            after = _alone(graph, last)
            if after is None or _scaled(graph, after, 0.5) != last.output[0]:
                continue
            last = after
        graph.rewrite(last, make("Gelu", [source], [last.output[0]]))


def layer_norm(graph: Graph) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) over the last axis."""
    for root in [n for n in graph.nodes if n.op_type == "Sqrt"]:
        added, division = graph.maker(root.input[0]), _alone(graph, root)
        if added is None or added.op_type != "Add" or division is None or division.op_type != "Div":
            continue
        numbers = [
            (graph.constants.get(name), other) for name, other in zip(added.input, reversed(added.input), strict=True)
        ]
        found = next(((a, other) for a, other in numbers if a is not None and a.size == 1), None)
        variance = graph.maker(found[1]) if found else None
        square = _mean_of(graph, variance)
        power = graph.maker(square) if square else None
        apart = graph.maker(division.input[0])
        if power is None or apart is None or apart.op_type != "Sub" or division.input[1] != root.output[0]:
            continue
        squared = (power.op_type == "Pow" and _has(graph, power, 2.0)) or (
            power.op_type == "Mul" and power.input[0] == power.input[1]
        )
        mean = graph.maker(apart.input[1])
        if not squared or power.input[0] != apart.output[0] or _mean_of(graph, mean) != apart.input[0]:
            continue
        size = graph.shapes.get(apart.input[0], [0])[-1]
        if not size:
            continue
        ones = graph.constant(np.ones(size, np.float32))
        epsilon = float(found[0].ravel()[0])
        made = make("LayerNormalization", [apart.input[0], ones], [division.output[0]], axis=-1, epsilon=epsilon)
        graph.rewrite(division, made)


def _alone(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The node that alone reads a node's output."""
    readers = graph.readers(node.output[0])
    return readers[0] if len(readers) == 1 and node.output[0] not in graph.surface else None


def _has(graph: Graph, node: onnx.NodeProto, number: float) -> bool:
    """Whether one operand is that number."""
    arrays = [graph.constants.get(name) for name in node.input]
    return any(
        a is not None and a.size == 1 and math.isclose(float(a.ravel()[0]), number, rel_tol=1e-5) for a in arrays
    )


def _scaled(graph: Graph, node: onnx.NodeProto | None, factor: float) -> str | None:
    """What a node multiplies by a factor, or divides by its inverse."""
    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    if not _has(graph, node, factor if node.op_type == "Mul" else 1 / factor):
        return None
    names = [name for name in node.input if name not in graph.constants]
    return names[0] if len(names) == 1 and (node.op_type == "Mul" or node.input[0] == names[0]) else None


def _mean_of(graph: Graph, node: onnx.NodeProto | None) -> str | None:
    """What a node takes the mean of, over the last axis alone, which stays."""
    if node is None or node.op_type != "ReduceMean" or not attribute(node, "keepdims", 1):
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1 and node.input[1] in graph.constants:
        axes = graph.constants[node.input[1]].tolist()
    rank = len(graph.shapes.get(node.input[0], []))
    return node.input[0] if rank and axes is not None and [a % rank for a in axes] == [rank - 1] else None


def without_unread(graph: Graph) -> None:
    """Leave out nodes whose results nothing reads, and masks and places that nothing reads."""
    needed = set(graph.surface)
    kept = []
    for node in reversed(graph.nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
            if node.op_type in ("Dropout", "MaxPool") and needed.isdisjoint(node.output[1:]):
                del node.output[1:]
    graph.nodes = kept[::-1]

"""The QDQ model of a plan and its ranges."""

import numpy as np
import onnx
from activations import Seen
from onnx import helper, numpy_helper
from qdq_plan import TINY, Plan, Weight, broadcast

BIAS_STEPS = 2.0**30  # most of a sum's steps that a bias may have: the integer kernels add it in 32 bits

Scale = tuple[np.float32, np.uint8]  # and zero point


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
    weights = {**plan.weights, **with_room(plan, scales, seen)}
    nodes: list[onnx.NodeProto] = []

    def make(operator: str, inputs: list[str], output: str, axis: int | None = None) -> None:
        more = {} if axis is None else {"axis": axis}
        nodes.append(helper.make_node(operator, inputs, [output], **more))

    def pair(name: str, source: str) -> None:
        terms = [f"{name}//scale", f"{name}//zero"]
        arrays.update(zip(terms, map(np.asarray, scales[name]), strict=True))
        make("QuantizeLinear", [source, *terms], f"{name}//integers")
        make("DequantizeLinear", [f"{name}//integers", *terms], integers(name))

    def integers(name: str) -> str:
        return f"{name}//back" if plan.exact(name) or name not in plan.outputs else name

    def weight(key: tuple[str, int]) -> list[str]:
        made = weights[key]
        terms = [f"{key[0]}//{key[1]}int8", f"{key[0]}//{key[1]}scale", f"//zeros8//{len(made.scale)}"]
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
                    make("DequantizeLinear", weight(key), node.input[1], weights[key].axis)
                bias = plan.bias(source, seen, weights[key])
                if bias is not None:
                    step = scales[source.input[0]][0] * weights[key].scale
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


def with_room(plan: Plan, scales: dict[str, Scale], seen: dict[str, Seen]) -> dict[tuple[str, int], Weight]:
    """Weights in coarser steps where 32 bits wouldn't hold a bias in steps of the sums, and the layer ran in float.

    That is so in channels whose weights are next to nothing beside the bias, such as those that training left dead: a
    trained EfficientNet-Lite0 has some in 26 of its 49 convolutions. Their weights then count for less than a step of
    what the layer gives.
    """
    found: dict[tuple[str, int], Weight] = {}
    for node in plan.layers.values():
        key = plan.weight_of.get(node.name)
        bias = plan.bias(node, seen, plan.weights[key]) if key is not None else None
        if key is None or bias is None:
            continue
        now = found.get(key, plan.weights[key])
        least = np.abs(bias.astype(np.float64)) / (np.float64(scales[node.input[0]][0]) * BIAS_STEPS)
        coarse = (least > now.scale) & (least < np.finfo(np.float32).max)
        if coarse.any():
            scale = np.where(coarse, least, now.scale).astype(np.float32)
            changed = now._replace(scale=scale)
            nearest = np.clip(np.rint(plan.constants[key[0]] / broadcast(scale, changed)), -127, 127).astype(np.int8)
            found[key] = changed._replace(integers=np.where(broadcast(coarse, changed) > 0, nearest, now.integers))
    return found


def store_bias(name: str, bias: np.ndarray, step: np.ndarray, arrays: dict[str, np.ndarray], make) -> str:
    """A bias as int32 in steps of its sums; as float where 32 bits don't hold it (that layer then runs in float)."""
    integers = np.rint(bias / step.astype(np.float64))
    if not np.isfinite(bias).all():
        raise SystemExit(f"{name.partition('//')[0]} has NaN or infinity in its bias: this model can't be quantized")
    if np.abs(integers).max(initial=0.0) >= 2**31:
        arrays[name] = bias
        return name
    terms = [f"{name}int32", f"{name}scale", f"//zeros32//{len(bias)}"]
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

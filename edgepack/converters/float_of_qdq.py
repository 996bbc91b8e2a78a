"""The float model inside a quantized ONNX model (QuantizeLinear/DequantizeLinear pairs), for tools that know no pairs.

Constants behind a DequantizeLinear become float constants with exactly the values that the integers stand for. A pair
on an activation goes away; where its integers start at zero after an operator that may give less (a Relu or Clip that
the pair's limits replaced), a Clip to the pair's range takes its place. Rounding alone is lost: whoever quantizes
the model again finds the pairs' scales in the original.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

PAIR = ("QuantizeLinear", "DequantizeLinear")
# They give nothing below zero, or nothing that their inputs don't hold.
NOT_BELOW = (
    "Clip", "DepthToSpace", "Flatten", "HardSigmoid", "Identity", "MaxPool", "Pad", "Relu", "Reshape", "Sigmoid",
    "Slice", "Softmax", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip


def without_pairs(model: onnx.ModelProto, engine: str = "ncnn", *, upper: bool = True) -> None:
    """Take the pairs out of a model, in place. Exits with a sentence where integers are more than a pair's middle.

    Without `upper` a Relu (or Relu6) takes the place of a pair that cuts off what is below zero: an engine whose
    integers end where the pair's do needs no upper limit, and fuses these.
    """
    graph = model.graph
    if not any(node.op_type in PAIR for node in graph.node):
        return
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    values = {item.name: item for item in graph.initializer}
    values |= {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    makers = {name: node for node in graph.node for name in node.output}
    nodes, instead = [], {}
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type != "DequantizeLinear":
            nodes.append(node)
            continue
        scale, zero = _number(values, node, 1, engine), _number(values, node, 2, engine)
        constant, quantizer = values.get(node.input[0]), makers.get(node.input[0])
        if constant is not None:
            array = _dequantized(numpy_helper.to_array(constant), scale, zero, node, engine)
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        elif quantizer is not None and quantizer.op_type == "QuantizeLinear":
            source = quantizer.input[0]
            before, limits = makers.get(source), np.iinfo(zero.dtype)
            cut = scale.size == 1 and int(zero.reshape(-1)[0]) == limits.min and before is not None
            if cut and before.op_type not in (*NOT_BELOW, "DequantizeLinear") and opset >= 11:
                clipped = f"{node.output[0]}//clipped"
                high = np.float32(limits.max - int(limits.min)) * scale.reshape(())
                if upper or abs(high - 6.0) <= scale.reshape(()):
                    ends = np.array(0.0, np.float32), high if upper else np.array(6.0, np.float32)
                    names = [f"{clipped}{end}" for end in ("low", "high")]
                    for name, end in zip(names, ends, strict=True):
                        graph.initializer.append(numpy_helper.from_array(np.asarray(end, np.float32), name))
                    nodes.append(helper.make_node("Clip", [source, *names], [clipped]))
                else:
                    nodes.append(helper.make_node("Relu", [source], [clipped]))
                source = clipped
            instead[node.output[0]] = source
        else:
            raise SystemExit(
                f"{engine} has no integer inputs: {node.input[0]} is dequantized, but nothing quantizes it"
            )
    surface = {value.name for value in graph.output}
    made = {name for node in nodes for name in node.output}
    for name in [name for name in surface if name in instead]:
        nodes.append(helper.make_node("Identity", [instead[name]], [name]))
        made.add(name)
    if lost := sorted(surface - made - {value.name for value in graph.input} - {v.name for v in graph.initializer}):
        raise SystemExit(f"{engine} has no integer outputs: {lost[0]} is quantized")
    integers = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    for node in nodes:
        if used := sorted(integers.intersection(node.input)):
            raise SystemExit(
                f"{node.op_type} computes with the integers {used[0]}: only what lies between "
                f"DequantizeLinear and QuantizeLinear can be taken to {engine}"
            )
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def _number(values: dict[str, onnx.TensorProto], node: onnx.NodeProto, place: int, engine: str) -> np.ndarray:
    """A scale or zero point, which must be constant."""
    if place == 2 and (len(node.input) < 3 or not node.input[2]):
        return np.zeros(1, np.uint8)
    if node.input[place] not in values:
        raise SystemExit(f"the scale of {node.output[0]} isn't constant: {engine} has constant scales only")
    return numpy_helper.to_array(values[node.input[place]])


def _dequantized(
    integers: np.ndarray, scale: np.ndarray, zero: np.ndarray, node: onnx.NodeProto, engine: str
) -> np.ndarray:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if any(a.name == "block_size" and a.i for a in node.attribute):
        raise SystemExit(f"{node.output[0]} has a scale for each block: {engine} has none of those")
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    zero = zero if zero.size > 1 or scale.size == 1 else np.broadcast_to(zero.reshape(-1), scale.shape)
    steps = integers.astype(np.int64) - zero.astype(np.int64).reshape(shape if zero.size > 1 else [1] * integers.ndim)
    return (steps * scale.astype(np.float64).reshape(shape)).astype(np.float32)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]

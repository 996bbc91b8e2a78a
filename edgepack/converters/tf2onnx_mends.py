"""What tf2onnx's graphs need before they are whole: operators it lacks, weights, scales, names, order."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from surface import Refused, one_line

OPSET = 17  # what every engine's converter reads


def add_missing() -> None:
    """Operators that tf2onnx doesn't know: Keras writes GELU with Erfc."""
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, graph: Any, node: Any, **_: Any) -> None:
            dtype = graph.get_dtype(node.output[0])
            one = graph.make_const(f"{node.name}_one", np.array(1, onnx.helper.tensor_dtype_to_np_dtype(dtype)))
            erf = graph.make_node("Erf", list(node.input), dtypes=[dtype])
            graph.replace_inputs(node, [one.output[0], erf.output[0]])
            node.type = "Sub"


def hold(graph: onnx.GraphProto, captured: dict[str, Any]) -> None:
    """Make weights of constants that the traced function took from outside, which tf2onnx leaves as inputs."""
    for value in [value for value in graph.input if value.name in captured]:
        graph.initializer.append(onnx.numpy_helper.from_array(captured[value.name].numpy(), value.name))
        graph.input.remove(value)


def fold_scales(graph: onnx.GraphProto) -> None:
    """Put the factor per channel after a convolution into its weights: what batch normalisation leaves after
    depthwise convolutions, where TensorFlow's own folding stops."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    users = Counter(name for node in graph.node for name in node.input)
    users.update(value.name for value in graph.output)
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    for node in [node for node in graph.node if node.op_type == "Mul"]:
        for value, factor in (node.input, reversed(node.input)):
            conv = makers.get(value)
            if conv is None or factor not in held or users[value] > 1 or any(users[n] > 1 for n in conv.input[1:]):
                continue
            if any(name not in held for name in conv.input[1:]):
                continue
            weights = onnx.numpy_helper.to_array(held[conv.input[1]])
            scale = onnx.numpy_helper.to_array(held[factor])
            channels = len(weights)
            if scale.dtype != weights.dtype or scale.shape not in ((), (1,), (channels, 1, 1), (1, channels, 1, 1)):
                continue
            scale = np.broadcast_to(scale.reshape(-1), channels)
            scaled = weights * scale.reshape(-1, *[1] * (weights.ndim - 1))
            held[conv.input[1]].CopyFrom(onnx.numpy_helper.from_array(scaled, conv.input[1]))
            if len(conv.input) > 2:
                bias = onnx.numpy_helper.to_array(held[conv.input[2]]) * scale
                held[conv.input[2]].CopyFrom(onnx.numpy_helper.from_array(bias, conv.input[2]))
            conv.output[0] = node.output[0]
            makers[node.output[0]] = conv
            graph.node.remove(node)
            break


def refuse_leftovers(model: onnx.ModelProto, name: str) -> None:
    """tf2onnx leaves what it can't convert in the graph, under its old name."""
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx"):
            try:
                onnx.defs.get_schema(node.op_type, OPSET, "")
                continue
            except onnx.defs.SchemaError:
                pass
        raise Refused(
            f"{name} uses the operator {node.op_type} (node {node.name!r}), which tf2onnx can't convert to ONNX.",
            "Replace that part of the model, or leave it to your own program.",
            "EP308",
        )


def unconvertible(name: str, error: Exception) -> Refused:
    import tf2onnx

    return Refused(
        f"tf2onnx {tf2onnx.__version__} can't convert {name}: {one_line(error)}.",
        "Replace the part of the model that it names, or export the model yourself and give the .onnx file.",
        "EP301",
    )


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename tensors; a name that is already another tensor's makes that one step aside."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    wanted = set(names.values())
    aside = {name: f"{name}_inner" for name in taken & wanted - set(names)}
    full = {**aside, **names}

    def walk(inner: onnx.GraphProto) -> None:
        for value in (*inner.input, *inner.output, *inner.value_info, *inner.initializer):
            value.name = full.get(value.name, value.name)
        for node in inner.node:
            node.input[:] = [full.get(name, name) for name in node.input]
            node.output[:] = [full.get(name, name) for name in node.output]
            for attribute in node.attribute:
                for deeper in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    walk(deeper)

    walk(graph)


def sort(values: Any, names: list[str]) -> None:
    """Bring inputs or outputs into the source's order."""
    found = sorted(values, key=lambda value: names.index(value.name))
    del values[:]
    values.extend(found)

"""Operators that ONNX defines by other operators, written out for a converter that doesn't know them."""

import numpy as np
import onnx
import onnx.inliner
from onnx.reference import ReferenceEvaluator

LARGEST = 1 << 20  # bytes of a constant that is folded
FILLED = 1 << 28  # bytes; a larger ConstantOfShape stays

# None of these has a form in onnx2tf 2.6.9 (it makes custom operators of them) or in ncnn.
EXPANDED = (
    "AffineGrid",
    "Attention",
    "BlackmanWindow",
    "Celu",
    "CenterCropPad",
    "GroupNormalization",
    "HammingWindow",
    "HannWindow",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
    "RMSNormalization",
    "RotaryEmbedding",
    "Shrink",
    "SoftmaxCrossEntropyLoss",
    "Swish",
    "ThresholdedRelu",
)


def expanded(model: onnx.ModelProto, operators: tuple[str, ...] = EXPANDED) -> onnx.ModelProto:
    """The model with those operators written out; as it is when there are none, or onnx has no definition."""
    tried: set[str] = set()
    while wanted := _named(model) & set(operators) - tried:
        if not tried:
            model = typed(model)
        name = max(wanted)  # SoftmaxCrossEntropyLoss is defined by NegativeLogLikelihoodLoss
        tried.add(name)
        model = with_defaults(model, name)
        try:
            found = onnx.inliner.inline_selected_functions(model, [("", name)], inline_schema_functions=True)
            onnx.checker.check_model(found)
            model = found
        except Exception as error:  # the converter then says what it can't do
            print(f"{name} can't be written out: {error}")
    return folded(model) if tried else model


def _named(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}


def with_defaults(model: onnx.ModelProto, operator: str) -> onnx.ModelProto:
    """The model, with every attribute of that operator said: the inliner takes one that isn't for absent."""
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    for node in model.graph.node:
        if node.op_type == operator and node.domain in ("", "ai.onnx"):
            said = {attribute.name for attribute in node.attribute}
            for name, attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
                if name not in said and attribute.default_value.type:
                    node.attribute.append(attribute.default_value)
    return model


def with_plain_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, with every Constant's number or list of numbers as a tensor: converters know only that form."""
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for node in model.graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name in kinds:
            found = node.attribute[0]
            array = np.array(onnx.helper.get_attribute_value(found), kinds[found.name])
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(array)))
    return model


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that says the type of every tensor: the inliner asks for those of weights, too."""
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    described = {value.name for value in (*model.graph.input, *model.graph.value_info)}
    for tensor in model.graph.initializer:
        if tensor.name not in described:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.value_info.append(value)
    return model


def fold_filled_constants(graph: onnx.GraphProto) -> None:
    """Turn ConstantOfShape with a known shape into an initializer."""
    known = {tensor.name: tensor for tensor in graph.initializer}
    rest = []
    for node in graph.node:
        shape = known.get(node.input[0]) if node.op_type == "ConstantOfShape" else None
        if shape is None:
            rest.append(node)
            continue
        value = next((onnx.numpy_helper.to_array(a.t) for a in node.attribute), np.zeros(1, np.float32))
        dims = [int(d) for d in onnx.numpy_helper.to_array(shape)]
        if np.prod(dims) * value.itemsize > FILLED:
            rest.append(node)
            continue
        filled = np.full(dims, value.reshape(-1)[0], value.dtype)
        graph.initializer.append(onnx.numpy_helper.from_array(filled, node.output[0]))
    del graph.node[:]
    graph.node.extend(rest)


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what its definitions compute from shapes and constants as constants."""
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    while _fold(model):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return model


def _fold(model: onnx.ModelProto) -> bool:
    """Compute what constants and known shapes give, in place; says whether there was anything."""
    graph, rest = model.graph, []
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.value_info)}
    held = {tensor.name: tensor for tensor in graph.initializer}
    shapes |= {name: list(tensor.dims) for name, tensor in held.items()}
    surface = {value.name for value in graph.output}
    fresh: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        made = None
        try:
            if surface & set(node.output):
                pass
            elif node.op_type in ("Shape", "Size") and 0 not in shapes.get(node.input[0], [0]):
                made = [_measured(node, shapes[node.input[0]])]
            elif all(name in held or not name for name in node.input) and not has_graph(node):
                feeds = {name: onnx.numpy_helper.to_array(held[name]) for name in node.input if name}
                made = evaluated(model, node, feeds)
        except Exception as error:  # it stays a node
            print(f"{node.op_type} can't be folded: {error}")
        if made is None or sum(np.asarray(array).nbytes for array in made) > LARGEST:
            rest.append(node)
            continue
        for name, array in zip(node.output, made, strict=False):
            held[name] = fresh[name] = onnx.numpy_helper.from_array(np.asarray(array), name)
            shapes[name] = list(np.shape(array))
    if not fresh:
        return False
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rest]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | surface
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]
    graph.initializer.extend(tensor for name, tensor in fresh.items() if name in used)
    return True


def _measured(node: onnx.NodeProto, sizes: list[int]) -> np.ndarray:
    """What Shape or Size gives for sizes that are known."""
    if node.op_type == "Size":
        return np.array(np.prod(sizes), np.int64)
    ends = {a.name: a.i for a in node.attribute}
    return np.array(sizes[ends.get("start", 0) : ends.get("end", len(sizes))], np.int64)


def evaluated(model: onnx.ModelProto, node: onnx.NodeProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What one node makes of constants, by ONNX's reference evaluator."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "one", inputs, outputs)
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)
    return ReferenceEvaluator(alone).run(None, feeds)


def has_graph(node: onnx.NodeProto) -> bool:
    """Whether a node holds a graph: a branch or a loop."""
    return any(a.HasField("g") for a in node.attribute)

"""Forms of ONNX that onnx2tf makes right: rewrites of the copy that it gets."""

import numpy as np
import onnx
from expand import fold_filled_constants, has_graph
from onnx import numpy_helper
from onnx_graph import Graph, attribute, make, shape_of


def with_forms(model: onnx.ModelProto) -> onnx.ModelProto:
    """All of them, with every shape inferred; nodes keep their names, new ones get some."""
    fold_filled_constants(model.graph)
    model = grouped_rows(with_shapes(model))
    flatten_products(model.graph)
    elu_of_one(model.graph)
    same_shapes_for_where(model.graph)
    if opset_of(model) >= 11:
        hard_sigmoid_by_relu6(model.graph)
    return with_shapes(model)


def opset_of(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its Constant nodes as initializers."""
    rest = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            model.graph.initializer.append(node.attribute[0].t)
            model.graph.initializer[-1].name = node.output[0]
        else:
            rest.append(node)
    del model.graph.node[:]
    model.graph.node.extend(rest)
    return model


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # onnx2tf says better why
        return model


def grouped_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a convolution over one axis that has groups, but not one for each channel, a second axis of one."""
    if any(has_graph(node) for node in model.graph.node) or not any(map(grouped, model.graph.node)):
        return model
    graph = Graph(model)
    for node in [node for node in graph.nodes if grouped(node)]:
        weights, sizes = graph.constants.get(node.input[1]), graph.shapes.get(node.input[0], [])
        made = graph.shapes.get(node.output[0], [])
        if weights is None or weights.ndim != 3 or weights.shape[1] == 1 or 0 in (*sizes, *made) or len(made) != 3:
            continue
        same = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for name, before in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
            if name in same:
                same[name] = [before, *same[name]]
        if "pads" in same:
            same["pads"] = [0, same["pads"][0], 0, same["pads"][1]]
        wide, flat, out = graph.constant(weights[:, :, None]), graph.name(), graph.name()
        graph.rewrite(
            node,
            make("Reshape", [node.input[0], shape_of(graph, [*sizes[:2], 1, sizes[2]])], [flat]),
            make("Conv", [flat, wide, *node.input[2:]], [out], name=node.name, **same),
            make("Reshape", [out, shape_of(graph, made)], [node.output[0]]),
        )
    return graph.write(model)


def grouped(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and attribute(node, "group", 1) > 1


def flatten_products(graph: onnx.GraphProto) -> None:
    """Turn MatMul with constant weights into Gemm, with a Reshape around it for more than two axes."""
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        left, right = (
            (shapes.get(node.input[0], []), weights.get(node.input[1])) if node.op_type == "MatMul" else ([], None)
        )
        if right is None or len(right) != 2 or len(left) < 2 or 0 in left:
            nodes.append(node)
            continue
        source, target = node.input[0], node.output[0]
        if len(left) > 2:
            for name, dims in (("in", [-1, right[0]]), ("out", [*left[:-1], right[1]])):
                graph.initializer.append(numpy_helper.from_array(np.array(dims, np.int64), f"{target}_{name}_shape"))
            nodes.append(onnx.helper.make_node("Reshape", [source, f"{target}_in_shape"], [f"{target}_in"]))
            source, target = f"{target}_in", f"{target}_flat"
        nodes.append(onnx.helper.make_node("Gemm", [source, node.input[1]], [target], name=node.name))
        if len(left) > 2:
            nodes.append(onnx.helper.make_node("Reshape", [target, f"{node.output[0]}_out_shape"], [node.output[0]]))
    for index, node in enumerate(nodes):
        node.name = node.name or f"g{index}"
    del graph.node[:]
    graph.node.extend(nodes)


def elu_of_one(graph: onnx.GraphProto) -> None:
    """Elu with another alpha than 1, which LiteRT's doesn't have: relu(x) - alpha * relu(-elu(x))."""
    nodes = []
    for node in graph.node:
        alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
        if node.op_type != "Elu" or alpha == 1.0:
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        graph.initializer.append(numpy_helper.from_array(np.float32([-alpha]), f"{y}_alpha"))
        for op, inputs, output in (
            ("Elu", [x], f"{y}_one"),
            ("Neg", [f"{y}_one"], f"{y}_opposite"),
            ("Relu", [f"{y}_opposite"], f"{y}_below"),
            ("Mul", [f"{y}_below", f"{y}_alpha"], f"{y}_scaled"),
            ("Relu", [x], f"{y}_above"),
            ("Add", [f"{y}_above", f"{y}_scaled"], y),
        ):
            nodes.append(onnx.helper.make_node(op, inputs, [output], name=f"n_{output}"))
    del graph.node[:]
    graph.node.extend(nodes)


def same_shapes_for_where(graph: onnx.GraphProto) -> None:
    """Give the three inputs of every Where on floats the output's shape.

    Where they differ, onnx2tf writes ``c * x + (1 - c) * y`` with -inf as the lowest finite number: NaN and infinities
    of the side that isn't taken get through, such as those of a softmax whose row is masked as a whole.
    """
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        wanted = shapes.get(node.output[0], []) if node.op_type == "Where" else []
        floats = types.get(node.output[0]) in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        for index, name in enumerate(node.input) if wanted and 0 not in wanted and floats else ():
            if shapes.get(name, wanted) != wanted:
                whole, shape = f"{node.output[0]}_side{index}", f"{node.output[0]}_side{index}_shape"
                graph.initializer.append(numpy_helper.from_array(np.array(wanted, np.int64), shape))
                nodes.append(onnx.helper.make_node("Expand", [name, shape], [whole], name=f"n_{whole}"))
                node.input[index] = whole
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def hard_sigmoid_by_relu6(graph: onnx.GraphProto) -> None:
    """Write HardSigmoid on float32 as ``relu6(6 a x + 6 b) / 6``.

    XNNPACK has RELU6, but not the RELU_0_TO_1 that onnx2tf makes of it: that cuts a network into parts, each with
    conversions around it where its neighbours are integers.
    """
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    nodes = []
    for node in graph.node:
        if node.op_type != "HardSigmoid" or types.get(node.input[0]) != onnx.TensorProto.FLOAT:
            nodes.append(node)
            continue
        given = {attribute.name: attribute.f for attribute in node.attribute}
        made = node.output[0]
        terms = {
            "slope": 6.0 * given.get("alpha", 0.2), "middle": 6.0 * given.get("beta", 0.5), "low": 0.0, "high": 6.0,
            "sixth": 1.0 / 6.0,
        }  # fmt: skip
        for name, value in terms.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{made}_{name}"))
        nodes += [
            onnx.helper.make_node("Mul", [node.input[0], f"{made}_slope"], [f"{made}_steep"], f"n_{made}_steep"),
            onnx.helper.make_node("Add", [f"{made}_steep", f"{made}_middle"], [f"{made}_moved"], f"n_{made}_moved"),
            onnx.helper.make_node(
                "Clip", [f"{made}_moved", f"{made}_low", f"{made}_high"], [f"{made}_cut"], f"n_{made}_cut"
            ),
            onnx.helper.make_node("Mul", [f"{made}_cut", f"{made}_sixth"], [made], node.name),
        ]
    del graph.node[:]
    graph.node.extend(nodes)

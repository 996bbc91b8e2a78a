"""Forms of ONNX operators that onnx2tf gets right, for those that it doesn't."""

import numpy as np
import onnx
from onnx import numpy_helper


def same_shapes_for_where(graph: onnx.GraphProto) -> None:
    """Give the three inputs of every Where on floats the output's shape.

    Where they differ, onnx2tf writes ``c * x + (1 - c) * y`` with -inf as the lowest finite number: NaN and infinities
    of the side that isn't taken get through, such as those of a softmax whose row is masked as a whole.
    """
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    shapes |= {
        node.output[0]: list(attribute.t.dims)
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
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

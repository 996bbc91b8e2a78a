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

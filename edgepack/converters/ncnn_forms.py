"""Graph repairs for ncnn: what pnnx can't read, or writes as layers that ncnn lacks, in forms that both know.

Each function rewrites one form exactly (in real arithmetic) where its conditions hold, and leaves everything else as
it is. Whether the whole still computes the same is measured later, by running ncnn against the source.
"""

import numpy as np
import onnx
import onnx.numpy_helper
from onnx_graph import Graph, attribute, make, shape_of
from recurrence import one_step

SHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Expand", "Transpose")
FLOAT, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
WHOLE = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
MASKED = -3e4  # stands for -inf before a softmax: exp of it is 0 in float32, and float16 can hold it


def constants_as_initializers(graph: Graph) -> None:
    """pnnx takes the weights of a recurrent layer from initializers only."""
    for node in list(graph.nodes):
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is not None and node.output[0] not in graph.surface:
            graph.constants[node.output[0]] = onnx.numpy_helper.to_array(value)
            graph.rewrite(node)


def one_hot_as_lookup(graph: Graph) -> None:
    """Equal(ids, 0..n-1), Cast, MatMul(W) is a lookup in W; zeros at its end is for ids above (ncnn clamps)."""
    for equal in [n for n in graph.nodes if n.op_type == "Equal"]:
        ids, classes = equal.input
        found = graph.constants.get(classes)
        if found is None or found.size != found.shape[-1] or not np.array_equal(found.ravel(), np.arange(found.size)):
            continue
        shape, cast = graph.shapes.get(ids, []), graph.readers(equal.output[0])
        product = graph.readers(cast[0].output[0]) if len(cast) == 1 and cast[0].op_type == "Cast" else []
        weights = graph.constants.get(product[0].input[1]) if len(product) == 1 else None
        if weights is None or product[0].op_type != "MatMul" or weights.ndim != 2 or shape[-1:] != [1]:
            continue
        flat, source = graph.name(), graph.maker(ids)
        before = source.input[0] if source is not None and source.op_type in ("Reshape", "Unsqueeze") else None
        table = graph.constant(np.concatenate([weights, np.zeros_like(weights[:1])]))
        if before is not None and graph.shapes.get(before) == shape[:-1]:
            graph.rewrite(product[0], make("Gather", [table, before], list(product[0].output)))
            continue
        size = graph.constant(np.array(shape[:-1], np.int64))
        lookup = make("Gather", [table, flat], list(product[0].output))
        graph.rewrite(product[0], make("Reshape", [ids, size], [flat]), lookup)


def bools_as_floats(graph: Graph) -> None:
    """Masks as 0.0 and 1.0: ncnn has no bool, and pnnx writes its casts and logic as layers that ncnn lacks.

    Only whole regions that begin at casts from numbers and end at Where or casts to float are rewritten.
    """
    logic = ("And", "Or", "Xor", "Not", "Identity", *SHAPING)
    inputs = [value for value in graph.proto.input if value.type.tensor_type.elem_type == BOOL]
    masks = {name for node in graph.nodes for name in node.output if graph.types.get(name) == BOOL}
    masks |= {value.name for value in inputs}
    for node in graph.nodes:
        makes, reads = set(node.output) & masks, set(node.input) & masks
        begins = node.op_type == "Cast" and not reads and graph.types.get(node.input[0]) in WHOLE
        ends = node.op_type == "Cast" and reads and attribute(node, "to") == FLOAT
        ends = ends or (node.op_type == "Where" and node.input[0] in reads and _selects(graph, node) is not None)
        if not (begins or ends or node.op_type in logic) and (makes or reads):
            return
    graph.floats |= masks & (graph.surface | {value.name for value in inputs})
    for name in [n for n, a in graph.constants.items() if a.dtype == np.bool_]:
        graph.constants[name] = graph.constants[name].astype(np.float32)
    for node in list(graph.nodes):
        out = node.output[0]
        if out in masks and node.op_type == "Cast":
            number, size = graph.name(), graph.name()
            one = graph.constant(np.ones(1, np.float32))
            graph.rewrite(
                node,
                make("Cast", [node.input[0]], [number], to=FLOAT),
                make("Abs", [number], [size]),
                # Whole numbers: 0 stays 0, everything else becomes 1.
                make("Min", [size, one], [out]),
            )
        elif node.op_type == "Cast" and node.input[0] in masks:
            graph.forward(node, node.input[0])
        elif node.op_type == "And" and out in masks:
            graph.rewrite(node, make("Mul", list(node.input), [out]))
        elif node.op_type == "Or" and out in masks:
            graph.rewrite(node, make("Max", list(node.input), [out]))
        elif node.op_type == "Xor" and out in masks:
            less = graph.name()
            graph.rewrite(node, make("Sub", list(node.input), [less]), make("Abs", [less], [out]))
        elif node.op_type == "Not" and out in masks:
            graph.rewrite(node, make("Sub", [graph.constant(np.ones(1, np.float32)), node.input[0]], [out]))
        elif node.op_type == "Where" and node.input[0] in masks:
            when, otherwise = _selects(graph, node)
            step, scaled = graph.constant(np.float32([when - otherwise])), graph.name()
            base = graph.constant(np.float32([otherwise]))
            graph.rewrite(node, make("Mul", [node.input[0], step], [scaled]), make("Add", [scaled, base], [out]))


def _selects(graph: Graph, node: onnx.NodeProto) -> tuple[float, float] | None:
    """The two numbers between which a Where selects; -inf becomes `MASKED` where a softmax is all that it reaches."""
    found = [graph.constants.get(name) for name in node.input[1:]]
    if any(a is None or a.size != 1 or a.dtype != np.float32 for a in found):
        return None
    numbers = [float(a.ravel()[0]) for a in found]
    if min(numbers) < MASKED:
        adds = graph.readers(node.output[0])
        ends = [reader for add in adds for reader in graph.readers(add.output[0])]
        if not ends or {n.op_type for n in adds} != {"Add"} or {n.op_type for n in ends} != {"Softmax"}:
            return None
    return max(numbers[0], MASKED), max(numbers[1], MASKED)


def no_operations(graph: Graph) -> None:
    """Remove what hands its input on: whole slices, expansions to the same shape, lookups of every row in turn."""
    for node in list(graph.nodes):
        if not node.input or not node.output:
            continue
        before, after = graph.shapes.get(node.input[0]), graph.shapes.get(node.output[0])
        known = before is not None and after is not None and 0 not in before
        if node.op_type == "Slice" and known and before == after:
            steps = graph.constants.get(node.input[4]) if len(node.input) > 4 else np.ones(1)
            if steps is not None and (steps > 0).all():
                graph.forward(node, node.input[0])
        elif node.op_type == "Expand" and known and before == after:
            graph.forward(node, node.input[0])
        elif node.op_type == "Max" and len(node.input) == 2:
            for lowest, other in ((0, 1), (1, 0)):
                array = graph.constants.get(node.input[lowest])
                if array is not None and array.size == 1 and np.isneginf(array).all():
                    graph.forward(node, node.input[other])
                    break
        elif node.op_type == "Gather" and known and node.input[1] in graph.constants:
            rows, axis = graph.constants[node.input[1]], int(attribute(node, "axis", 0))
            if np.array_equal(rows.ravel(), np.arange(before[axis])) and before[axis] > 1:
                graph.rewrite(node, make("Reshape", [node.input[0], shape_of(graph, after)], list(node.output)))
    for node in list(graph.nodes):  # of several changes of shape in a row only the last one counts
        after = graph.shapes.get(node.output[0], [0])
        while node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten") and after and 0 not in after:
            maker = graph.maker(node.input[0])
            if maker is None or maker.op_type not in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
                break
            merged = make("Reshape", [maker.input[0], shape_of(graph, after)], list(node.output))
            graph.rewrite(node, merged)
            node = merged


def plain_operands(graph: Graph) -> None:
    """One row out of several as a slice, and what a Gemm adds as a vector: pnnx can't read other forms."""
    for node in list(graph.nodes):
        if node.op_type == "Gemm" and len(node.input) > 2:
            added = graph.constants.get(node.input[2])
            if added is not None and added.ndim == 2 and added.shape[0] == 1:
                node.input[2] = graph.constant(added[0])
        elif node.op_type == "Gather" and node.input[0] not in graph.constants:
            index, before = graph.constants.get(node.input[1]), graph.shapes.get(node.input[0], [])
            after, axis = graph.shapes.get(node.output[0], [0]), int(attribute(node, "axis", 0))
            if index is None or index.ndim or not before or 0 in before or 0 in after:
                continue
            row, cut = int(index) % before[axis], graph.name()
            bounds = [graph.constant(np.array([n], np.int64)) for n in (row, row + 1, axis % len(before))]
            shaped = make("Reshape", [cut, shape_of(graph, after)], list(node.output))
            graph.rewrite(node, make("Slice", [node.input[0], *bounds], [cut]), shaped)


def first_axis(graph: Graph) -> None:
    """Rows cut out of, or put together along, the first axis: pnnx takes that for the batch, which ncnn doesn't have.

    Whole rows lie side by side in memory, so the same numbers are a piece of one long vector.
    """
    for node in list(graph.nodes):
        out = node.output[0] if node.output else ""
        shapes = [graph.shapes.get(name, [0]) for name in (*node.input[: None if node.op_type == "Concat" else 1], out)]
        if any(not shape or 0 in shape for shape in shapes) or graph.types.get(out) != FLOAT:
            continue
        before, after, joined = shapes[0], shapes[-1], graph.name()
        if node.op_type == "Concat" and attribute(node, "axis") == 0 and len(after) > 1:
            flat = [graph.name() for _ in node.input]
            sizes = [shape_of(graph, [1, int(np.prod(shape))]) for shape in shapes[:-1]]
            rows = [make("Reshape", [n, size], [f]) for n, size, f in zip(node.input, sizes, flat, strict=True)]
            last = make("Reshape", [joined, shape_of(graph, after)], [out])
            graph.rewrite(node, *rows, make("Concat", flat, [joined], axis=1), last)
        elif node.op_type == "Slice" and len(before) > 1 and before[0] > 1 and len(node.input) == 4:
            start, end, axes = (graph.constants.get(name) for name in node.input[1:])
            if start is None or end is None or axes is None or axes.tolist() != [0]:
                continue
            row, flat = int(np.prod(before[1:])), graph.name()
            first = int(start[0]) + (before[0] if start[0] < 0 else 0)
            bounds = [graph.constant(np.array([n], np.int64)) for n in (first * row, (first + after[0]) * row, 1)]
            graph.rewrite(
                node,
                make("Reshape", [node.input[0], shape_of(graph, [1, before[0] * row])], [flat]),
                make("Slice", [flat, *bounds], [joined]),
                make("Reshape", [joined, shape_of(graph, after)], [out]),
            )


def split_of_heads(graph: Graph) -> None:
    """Queries, keys and values out of one product without five axes.

    [b, s, k*h*d] -> Reshape [b, s, k, h, d] -> Transpose [k, b, h, s, d] -> the i-th of k becomes a slice of the
    product's last axis, Reshape [b, s, h, d], Transpose [b, h, s, d].
    """
    for split in [n for n in graph.nodes if n.op_type == "Transpose" and attribute(n, "perm") == [2, 0, 3, 1, 4]]:
        shaped = graph.maker(split.input[0])
        if shaped is None or shaped.op_type != "Reshape":
            continue
        b, s, k, h, d = graph.shapes[shaped.output[0]]
        source = graph.shapes.get(shaped.input[0], [0])
        if source[-1] != k * h * d or int(np.prod(source)) != b * s * k * h * d:
            continue
        for part in graph.readers(split.output[0]):
            index, out = _one_of(graph, part)
            if index is None:
                continue
            cut, heads = graph.name(), graph.name()
            bounds = [
                graph.constant(np.array([n], np.int64)) for n in (index * h * d, (index + 1) * h * d, len(source) - 1)
            ]
            last = [make("Transpose", [heads], [out.output[0]], perm=[0, 2, 1, 3])]
            graph.rewrite(
                out,
                make("Slice", [shaped.input[0], *bounds], [cut]),
                make("Reshape", [cut, shape_of(graph, [b, s, h, d])], [heads]),
                *last,
            )


def _one_of(graph: Graph, part: onnx.NodeProto) -> tuple[int | None, onnx.NodeProto]:
    """Which entry of axis 0 a node takes alone, and the node whose output has that axis no more."""
    if part.op_type == "Gather" and int(attribute(part, "axis", 0)) == 0:
        index = graph.constants.get(part.input[1])
        return (int(index), part) if index is not None and index.ndim == 0 and index >= 0 else (None, part)
    if part.op_type != "Slice" or len(part.input) < 4:
        return None, part
    starts, ends, axes = (graph.constants.get(name) for name in part.input[1:4])
    after = graph.readers(part.output[0])
    squeezed = len(after) == 1 and after[0].op_type in ("Squeeze", "Reshape")
    if starts is None or ends is None or axes is None or not squeezed or axes.tolist() != [0]:
        return None, part
    alone = int(ends[0]) - int(starts[0]) == 1 and starts[0] >= 0
    sizes = graph.shapes.get(after[0].output[0])
    return (int(starts[0]), after[0]) if alone and sizes == graph.shapes[part.output[0]][1:] else (None, part)


FORMS = (
    constants_as_initializers,
    one_hot_as_lookup,
    bools_as_floats,
    no_operations,
    split_of_heads,
    one_step,
    plain_operands,
    first_axis,
)

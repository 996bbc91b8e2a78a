"""ncnn layers for ONNX operators that pick entries by their places: lookups, scatters, one-hot rows.

Constant places become cuts and joins. Computed ones become rows of zeros and a one, and a product with them: exact,
since everything but one term of each sum is 0.
"""

import math
from collections.abc import Callable

import numpy as np
from ncnn_writer import Blob, Node, Refused, Shape, Writer, along, weight
from write_elementwise import ABS, MUL, RSUB, SIGN, SUB, expand, negated
from write_moves import joined, strided, transposed
from write_products import product

_LARGEST = 1 << 24  # entries of a one-hot matrix
_RUNS = 64  # cuts that are joined rather than multiplied


def gather(w: Writer, node: Node) -> None:
    """Rows of a table of weights, pieces of an axis, or (computed places) a product with rows of zeros and a one."""
    data, places = node.inputs
    shape, axis = w.shape(data), int(node.get("axis", 0)) % len(w.shape(data))
    table, index = w.constant(data), w.constant(places)
    if index is not None:
        w.give(node.output, _pieces(w, w.blob(data), shape, axis, index.ravel() % shape[axis]))
    elif table is not None and axis == 0 and table.ndim > 1 and is_ids(w, places):
        width = table.size // shape[0]
        words = w.take(places, (math.prod(w.shape(places)),))
        params: dict[int, object] = {0: width, 1: shape[0], 2: 0, 3: table.size}
        w.give(node.output, w.layer("Embed", [words], (words.shape[0], width), params, weight(table)))
    else:
        count = math.prod(w.shape(places))
        if count * shape[axis] > _LARGEST:
            raise Refused("its indices are computed and too many")
        hot = one_hot(w, w.take(places, (count, 1)), shape[axis])
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        rows = w.take(data, (before, shape[axis], after))
        if before == 1:
            found = product(w, hot, w.view(rows, (shape[axis], after)))
        else:
            found = product(w, repeated_hot(w, hot, before), rows)
        w.give(node.output, found)


def repeated_hot(w: Writer, hot: Blob, times: int) -> Blob:
    return expand(w, w.view(hot, (1, *hot.shape)), (times, *hot.shape))


def one_hot(w: Writer, places: Blob, depth: int) -> Blob:
    """[n, 1] places as [n, depth] rows with a one; negative places count from the end."""
    columns = w.memory(np.arange(depth, dtype=np.float32).reshape(1, depth))
    below = w.layer("Threshold", [w.scalar(RSUB, places, -0.5)], places.shape, {0: 0.0})
    places = w.binary(0, places, w.scalar(MUL, below, depth))
    return negated(w, w.unary(ABS, w.unary(SIGN, w.binary(SUB, places, columns))))


def is_ids(w: Writer, name: str) -> bool:
    """Whether a tensor is an input of whole numbers (moved at most) that only lookups in weights read."""
    graph = w.graph
    moves = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast")
    while (maker := graph.maker(name)) is not None:
        if maker.op_type not in moves or not w.whole(maker.input[0]) or not w.whole(name):
            return False
        name = maker.input[0]
    todo = [name]
    for one in todo:  # grows while it is walked
        if one in graph.surface:
            return False
        for reader in graph.readers(one):
            if reader.op_type in moves and reader.input[0] == one and w.whole(reader.output[0]):
                todo.append(reader.output[0])
                continue
            table = graph.constants.get(reader.input[0]) if reader.op_type == "Gather" else None
            axis = next((a.i for a in reader.attribute if a.name == "axis"), 0)
            if table is None or table.ndim < 2 or axis != 0:
                return False
    return name in {value.name for value in graph.proto.input} and w.whole(name)


def _pieces(w: Writer, blob: Blob, shape: Shape, axis: int, index: np.ndarray) -> Blob:
    """Entries of an axis in any order: runs at equal distances are cut out and joined."""
    view, at = along(shape, axis)
    blob, runs = w.view(blob, view), _runs([int(i) for i in index])
    if len(runs) <= _RUNS:
        return joined(w, [strided(w, blob, at, run) for run in runs], at)
    hot = np.eye(shape[axis], dtype=np.float32)[index]
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if hot.size > _LARGEST:
        raise Refused("it picks too many entries")
    if before == 1:
        return product(w, w.memory(hot), w.view(blob, (shape[axis], after)))
    if after == 1:
        return product(w, w.view(blob, (before, shape[axis])), w.memory(np.ascontiguousarray(hot.T)))
    return product(w, repeated_hot(w, w.memory(hot), before), w.view(blob, (before, shape[axis], after)))


def _runs(index: list[int]) -> list[range]:
    """A list of places as few ranges."""
    found: list[range] = []
    start = 0
    while start < len(index):
        step = index[start + 1] - index[start] if start + 1 < len(index) else 1
        end = start + 1
        while step != 0 and end < len(index) and index[end] - index[end - 1] == step:
            end += 1
        found.append(
            range(index[start], index[end - 1] + (1 if step > 0 else -1), step)
            if end - start > 1
            else range(index[start], index[start] + 1)
        )
        start = end
    return found


def one_hot_node(w: Writer, node: Node) -> None:
    depth, values = w.known(node, 1, "depth"), w.known(node, 2, "values")
    if depth is None or values is None:
        raise Refused("its depth must be constant")
    shape = w.shape(node.input(0))
    axis = int(node.get("axis", -1)) % (len(shape) + 1)
    count, size = math.prod(shape), int(depth.ravel()[0])
    hot = one_hot(w, w.take(node.input(0), (count, 1)), size)
    off, on = (float(number) for number in values.ravel())
    hot = hot if (off, on) == (0.0, 1.0) else w.scalar(0, w.scalar(MUL, hot, on - off), off)
    perm = [*range(axis), len(shape), *range(axis, len(shape))]
    w.give(node.output, transposed(w, hot, (*shape, size), perm))


def gather_elements(w: Writer, node: Node) -> None:
    """Every place alone: the sum of what lies along the axis, times 1 where the place is."""
    shape, wanted, axis = (
        w.shape(node.input(0)),
        w.shape(node.output),
        int(node.get("axis", 0)) % len(w.shape(node.input(0))),
    )
    if any(m != n for at, (m, n) in enumerate(zip(shape, wanted, strict=True)) if at != axis):
        raise Refused("its indices are for a part of the tensor")
    before, after, size = math.prod(shape[:axis]), math.prod(shape[axis + 1 :]), shape[axis]
    if math.prod(wanted) * size > _LARGEST:
        raise Refused("its indices are too many")
    places = w.take(node.input(1), (before * wanted[axis] * after, 1))
    hot = w.view(one_hot(w, places, size), (before, wanted[axis], after, size))
    rows = transposed(w, w.blob(node.input(0)), (before, size, after), (0, 2, 1))
    found = w.binary(MUL, hot, w.view(rows, (before, 1, after, size)))
    last = w.view(found, (before * wanted[axis] * after, size))
    w.give(node.output, w.layer("Reduction", [last], (last.shape[0], 1), {0: 0, 1: 0, 3: [1], 4: 1, 5: 1}))


def gather_nd(w: Writer, node: Node) -> None:
    """Whole rows at constant places."""
    shape, index = w.shape(node.input(0)), w.known(node, 1, "indices")
    if node.get("batch_dims", 0):
        raise Refused("it has batches")
    rows = _rows(index, shape)
    row = math.prod(shape[index.shape[-1] :])
    w.give(node.output, _pieces(w, w.blob(node.input(0)), (math.prod(shape) // row, row), 0, rows))


def _rows(index: np.ndarray, shape: Shape) -> np.ndarray:
    """Places [..., k] in the first k axes as numbers of rows."""
    sizes = shape[: index.shape[-1]]
    places = index.reshape(-1, index.shape[-1]) % np.array(sizes)
    return np.ravel_multi_index(tuple(places.T), sizes)


def scatter(w: Writer, node: Node) -> None:
    """ScatterND and ScatterElements at constant places: rows of the data and of the updates behind them, picked."""
    data, _, updates = node.inputs
    shape, index = w.shape(data), w.known(node, 1, "indices")
    if node.get("reduction", "none") != "none":
        raise Refused("it adds up what falls on one place")
    if node.proto.op_type == "ScatterND":
        rows, row = _rows(index, shape), math.prod(shape[index.shape[-1] :])
    else:
        axis = int(node.get("axis", 0)) % len(shape)
        places = list(np.indices(index.shape))
        places[axis] = index % shape[axis]
        rows, row = np.ravel_multi_index(tuple(p.ravel() for p in places), shape), 1
    count = math.prod(shape) // row
    picked = np.arange(count)
    picked[rows] = count + np.arange(len(rows))
    both = joined(w, [w.take(data, (count, row)), w.take(updates, (len(rows), row))], 0)
    w.give(node.output, _pieces(w, both, both.shape, 0, picked))


OPERATORS: dict[str, Callable[[Writer, Node], None]] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    **dict.fromkeys(("ScatterND", "ScatterElements"), scatter),
    "OneHot": one_hot_node,
}

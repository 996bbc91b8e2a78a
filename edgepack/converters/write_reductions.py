"""ncnn layers for ONNX operators over axes: reductions, softmaxes, places of extremes, running sums, normalisations."""

import math
from collections.abc import Callable

import numpy as np
from ncnn_writer import Blob, Node, Refused, Shape, Writer, along, raw
from write_elementwise import ADD, DIV, EXP, LOG, MUL, NEG, RECIPROCAL, RSUB, SQRT, SQUARE, SUB, positive
from write_moves import cut, flip, transposed

_OPS = {
    "ReduceSum": 0,
    "ReduceSumSquare": 2,
    "ReduceMean": 3,
    "ReduceMax": 4,
    "ReduceMin": 5,
    "ReduceProd": 6,
    "ReduceL1": 7,
    "ReduceL2": 8,
    "ReduceLogSum": 9,
    "ReduceLogSumExp": 10,
}
SUM, MEAN, MAX = 0, 3, 4
LARGER = 4  # of two numbers
_LARGEST_TOP = 16  # entries that TopK takes one by one


def reduced(w: Writer, blob: Blob, axis: int, op: int) -> Blob:
    """One axis reduced to 1."""
    after = (*blob.shape[:axis], 1, *blob.shape[axis + 1 :])
    return w.layer("Reduction", [blob], after, {0: op, 1: 0, 3: [axis], 4: 1, 5: 1})


def reduce(w: Writer, node: Node) -> None:
    """The reduced axes as one: where they don't lie side by side, after a transpose."""
    shape, op = w.shape(node.input(0)), _OPS[node.proto.op_type]
    given = node.get("axes")
    axes = given if given is not None else w.known(node, 1, "axes")
    if axes is None or len(axes) == 0:
        if node.get("noop_with_empty_axes", 0):
            if op in (SUM, MEAN, MAX, 5, 6):
                w.give(node.output, w.blob(node.input(0)))
                return
            raise Refused("it reduces over no axis")
        axes = range(len(shape))
    inner = sorted(int(axis) % max(len(shape), 1) for axis in axes)
    outer = [axis for axis in range(len(shape)) if axis not in inner]
    x = w.blob(node.input(0))
    if not inner:
        w.give(node.output, x)
        return
    wide = [axis for axis in inner if shape[axis] > 1] or inner[:1]
    if all(axis in inner or shape[axis] == 1 for axis in range(wide[0], wide[-1] + 1)):
        sizes = [math.prod(part) for part in (shape[: wide[0]], shape[wide[0] : wide[-1] + 1], shape[wide[-1] + 1 :])]
    else:
        x = transposed(w, x, shape, (*outer, *inner))
        sizes = [math.prod(shape[axis] for axis in part) for part in (outer, inner)] + [1]
    if op == 10:  # log(sum(exp(x - max))) + max
        x = w.view(x, tuple(sizes))
        top = reduced(w, x, 1, MAX)
        total = reduced(w, w.unary(EXP, w.binary(SUB, x, top)), 1, SUM)
        w.give(node.output, w.binary(ADD, w.unary(LOG, total), top))
        return
    if sizes[2] == 1:
        w.give(node.output, reduced(w, w.view(x, (sizes[0], sizes[1])), 1, op))
    elif sizes[0] == 1:
        w.give(node.output, reduced(w, w.view(x, (sizes[1], sizes[2])), 0, op))
    else:
        w.give(node.output, reduced(w, w.view(x, tuple(sizes)), 1, op))


def softmax(w: Writer, node: Node) -> None:
    view, axis = along(w.shape(node.input(0)), int(node.get("axis", -1)))
    x = w.take(node.input(0), view)
    if node.proto.op_type == "Softmax":
        w.give(node.output, w.layer("Softmax", [x], view, {0: axis, 1: 1}))
        return
    x = w.binary(SUB, x, reduced(w, x, axis, MAX))
    if node.proto.op_type == "LogSoftmax":
        total = reduced(w, w.unary(EXP, x), axis, SUM)
        w.give(node.output, w.binary(SUB, x, w.unary(LOG, total)))
        return
    # Hardmax: a one at the first of the largest.
    best = w.scalar(RSUB, positive(w, w.unary(NEG, x)), 1.0)
    falling = _counted(w, view, axis, falling=True)
    score = w.binary(MUL, best, falling)
    behind = w.binary(SUB, reduced(w, score, axis, MAX), score)
    w.give(node.output, w.scalar(RSUB, positive(w, behind), 1.0))


def _counted(w: Writer, shape: Shape, axis: int, *, falling: bool) -> Blob:
    """1, 2, 3, ... along an axis, or backwards."""
    numbers = np.arange(1, shape[axis] + 1, dtype=np.float32)
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return w.memory((numbers[::-1] if falling else numbers).reshape(sizes))


def first_best(w: Writer, x: Blob, axis: int, *, last: bool = False) -> tuple[Blob, Blob]:
    """The largest entry of an axis, and its place: of equal ones the first (or last)."""
    top, size = reduced(w, x, axis, MAX), x.shape[axis]
    best = w.scalar(RSUB, positive(w, w.binary(SUB, top, x)), 1.0)
    score = reduced(w, w.binary(MUL, best, _counted(w, x.shape, axis, falling=not last)), axis, MAX)
    return top, w.scalar(SUB, score, 1.0) if last else w.scalar(RSUB, score, float(size))


def arg_best(w: Writer, node: Node) -> None:
    view, axis = along(w.shape(node.input(0)), int(node.get("axis", 0)))
    x = w.take(node.input(0), view)
    x = w.unary(NEG, x) if node.proto.op_type == "ArgMin" else x
    w.give(node.output, first_best(w, x, axis, last=bool(node.get("select_last_index", 0)))[1])


def top_k(w: Writer, node: Node) -> None:
    """The best one after the other; what was taken becomes smaller than everything else."""
    k = w.known(node, 1, "k")
    count = 0 if k is None else int(k.ravel()[0])
    if not 1 <= count <= _LARGEST_TOP:
        raise Refused(f"it takes more than {_LARGEST_TOP} entries")
    view, axis = along(w.shape(node.input(0)), int(node.get("axis", -1)))
    x = w.take(node.input(0), view)
    smallest = not int(node.get("largest", 1))
    x = w.unary(NEG, x) if smallest else x
    places = _counted(w, view, axis, falling=False)
    values, indices = [], []
    for index in range(count):
        top, at = first_best(w, x, axis)
        values.append(top)
        indices.append(at)
        if index + 1 < count:
            apart = w.binary(SUB, w.scalar(SUB, places, 1.0), at)
            taken = w.scalar(RSUB, w.unary(0, w.unary(20, apart)), 1.0)
            x = w.binary(SUB, x, w.scalar(MUL, taken, 1e30))
    shape = (*view[:axis], count, *view[axis + 1 :])
    found = [w.layer("Concat", blobs, shape, {0: axis}) if count > 1 else blobs[0] for blobs in (values, indices)]
    found[0] = w.unary(NEG, found[0]) if smallest else found[0]
    for name, blob in zip(node.proto.output, found, strict=False):
        w.give(name, blob)


def running_sum(w: Writer, node: Node) -> None:
    at = w.known(node, 1, "axis")
    shape = w.shape(node.input(0))
    axis = 0 if at is None else int(at.ravel()[0]) % len(shape)
    view = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    x = w.take(node.input(0), view)
    x = flip(w, x, 1) if node.get("reverse", 0) else x
    if node.get("exclusive", 0):
        zero = w.memory(np.zeros((view[0], 1, view[2]), np.float32))
        x = w.layer("Concat", [zero, cut(w, x, 1, 0, view[1] - 1)], view, {0: 1}) if view[1] > 1 else zero
    y = w.layer("CumulativeSum", [x], view, {0: 1})
    w.give(node.output, flip(w, y, 1) if node.get("reverse", 0) else y)


# Normalisations --------------------------------------------------------------------------------------------------


def batch_norm(w: Writer, node: Node) -> None:
    if len([name for name in node.proto.output if name]) > 1 or node.get("training_mode", 0):
        raise Refused("it is in training mode")
    scale, bias, mean, variance = (w.known(node, index, "statistics") for index in range(1, 5))
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + float(node.get("epsilon", 1e-5)))
    shift = bias - mean * factor
    w.give(node.output, _by_channel(w, node.input(0), factor, shift))


def _by_channel(w: Writer, name: str, factor: np.ndarray, shift: np.ndarray) -> Blob:
    """Every channel times a factor plus a number."""
    shape = w.shape(name)
    if len(shape) == 1:
        raise Refused("it has no channels")
    times, sizes = shape[0], shape[1:] if 2 <= len(shape[1:]) <= 3 else (shape[1], math.prod(shape[2:]))
    x = w.take(name, (times * sizes[0], *sizes[1:]))
    numbers = [np.tile(np.float32(array), times) for array in (factor, shift)]
    if x.shape[0] == 1:
        return w.scalar(ADD, w.scalar(MUL, x, numbers[0][0]), numbers[1][0])
    return w.layer("Scale", [x], x.shape, {0: x.shape[0], 1: 1}, *map(raw, numbers))


def instance_norm(w: Writer, node: Node) -> None:
    shape, name = w.shape(node.input(0)), node.input(0)
    scale, bias = (w.constant(n) for n in node.inputs[1:3])
    channels, epsilon = shape[0] * shape[1], float(node.get("epsilon", 1e-5))
    x = w.take(name, (channels, 1, math.prod(shape[2:])))
    if scale is not None and bias is not None:
        numbers = [raw(np.tile(array, shape[0])) for array in (scale, bias)]
        w.give(node.output, w.layer("InstanceNorm", [x], x.shape, {0: channels, 1: epsilon, 2: 1}, *numbers))
        return
    y = w.layer("InstanceNorm", [x], x.shape, {0: channels, 1: epsilon, 2: 0})
    _affine(w, node, y, node.inputs[1:3])


def _affine(w: Writer, node: Node, y: Blob, names: list[str]) -> None:
    """Every channel times a computed factor plus a computed number."""
    shape = w.shape(node.output)
    x = w.view(y, (shape[0], shape[1], math.prod(shape[2:])))
    for op, name in zip((MUL, ADD), names, strict=True):
        x = w.binary(op, x, w.take(name, (1, shape[1], 1)))
    w.give(node.output, x)


def group_norm(w: Writer, node: Node) -> None:
    shape, groups = w.shape(node.input(0)), int(node.get("num_groups"))
    scale, bias = (w.constant(n) for n in node.inputs[1:3])
    channels, epsilon = shape[0] * shape[1], float(node.get("epsilon", 1e-5))
    if scale is not None and bias is not None and scale.size == groups:  # before opset 21
        scale, bias = (np.repeat(array, shape[1] // groups) for array in (scale, bias))
    elif w.shape(node.input(1)) != (shape[1],):
        raise Refused("its scale is one number for each group")
    x = w.take(node.input(0), (channels, 1, math.prod(shape[2:])))
    params: dict[int, object] = {0: shape[0] * groups, 1: channels, 2: epsilon, 3: int(scale is not None)}
    if scale is not None and bias is not None:
        numbers = [raw(np.tile(array, shape[0])) for array in (scale, bias)]
        w.give(node.output, w.layer("GroupNorm", [x], x.shape, params, *numbers))
        return
    _affine(w, node, w.layer("GroupNorm", [x], x.shape, {**params, 3: 0}), node.inputs[1:3])


def layer_norm(w: Writer, node: Node) -> None:
    """LayerNormalization and RMSNormalization: rows of everything from an axis on."""
    shape = w.shape(node.input(0))
    axis = int(node.get("axis", -1)) % len(shape)
    rows, size, epsilon = math.prod(shape[:axis]), math.prod(shape[axis:]), float(node.get("epsilon", 1e-5))
    x = w.take(node.input(0), (rows, size))
    centred = node.proto.op_type == "LayerNormalization"
    if centred and any(node.proto.output[1:]):
        mean = reduced(w, x, 1, MEAN)
        apart = w.binary(SUB, x, mean)
        spread = w.unary(SQRT, w.scalar(ADD, reduced(w, w.unary(SQUARE, apart), 1, MEAN), epsilon))
        for name, blob in zip(node.proto.output[1:], (mean, w.unary(RECIPROCAL, spread)), strict=False):
            w.give(name, blob)
        _scaled(w, node, w.binary(DIV, apart, spread), shape, axis)
        return
    given = [w.constant(name) for name in node.inputs[1:3] if name]
    whole = all(array is not None and array.size == size for array in given)
    params: dict[int, object] = {0: size, 1: epsilon, 2: int(whole)}
    weights = [raw(given[0])] if whole else []
    if whole and centred:
        weights.append(raw(given[1] if len(given) > 1 else np.zeros(size, np.float32)))
    y = w.layer("LayerNorm" if centred else "RMSNorm", [x], x.shape, params, *weights)
    if whole:
        w.give(node.output, y)
    else:
        _scaled(w, node, y, shape, axis)


def _scaled(w: Writer, node: Node, y: Blob, shape: Shape, axis: int) -> None:
    """Rows times a scale plus a bias, where they aren't weights of the layer."""
    for op, name in zip((MUL, ADD), node.inputs[1:3], strict=False):
        if name:
            sizes = w.shape(name)
            side = (1,) * (len(shape) - len(sizes)) + sizes
            if any(n != 1 for n in side[:axis]) or math.prod(side[axis:]) not in (1, y.shape[1]):
                raise Refused("its scale is broadcast")
            y = w.binary(op, y, w.take(name, (1, math.prod(side[axis:]))))
    w.give(node.output, y)


def lp_norm(w: Writer, node: Node) -> None:
    view, axis = along(w.shape(node.input(0)), int(node.get("axis", -1)))
    x = w.take(node.input(0), view)
    p = int(node.get("p", 2))
    size = reduced(w, x, axis, 7) if p == 1 else w.unary(SQRT, reduced(w, x, axis, 2))
    w.give(node.output, w.binary(DIV, x, w.scalar(LARGER, size, 1e-30)))


OPERATORS: dict[str, Callable[[Writer, Node], None]] = {
    **dict.fromkeys(_OPS, reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_best),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_norm),
    "TopK": top_k,
    "CumSum": running_sum,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LpNormalization": lp_norm,
}

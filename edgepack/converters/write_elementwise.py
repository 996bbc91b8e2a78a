"""ncnn layers for ONNX operators that treat every element alone: arithmetic, activations, comparisons, choices."""

import math
from collections.abc import Callable

import numpy as np
import onnx
from ncnn_writer import Blob, Node, Refused, Shape, Writer, raw

ADD, SUB, MUL, DIV, MAX, MIN, POW, RSUB, RDIV = 0, 1, 2, 3, 4, 5, 6, 7, 8
ABS, NEG, FLOOR, SQUARE, SQRT, EXP, LOG, RECIPROCAL, TRUNC, SIGN, LOG1P = 0, 1, 2, 4, 5, 7, 8, 15, 19, 20, 27
_UNARY = {
    "Abs": ABS,
    "Neg": NEG,
    "Floor": 2,
    "Ceil": 3,
    "Sqrt": SQRT,
    "Exp": EXP,
    "Log": LOG,
    "Sin": 9,
    "Cos": 10,
    "Tan": 11,
    "Asin": 12,
    "Acos": 13,
    "Atan": 14,
    "Reciprocal": RECIPROCAL,
    "Round": 18,
    "Sign": SIGN,
    "Sinh": 22,
    "Asinh": 23,
    "Cosh": 24,
    "Acosh": 25,
    "Atanh": 26,
}
_LAYERS = {"Relu": "ReLU", "Sigmoid": "Sigmoid", "Tanh": "TanH", "Erf": "Erf", "Mish": "Mish"}
_WITH: dict[str, tuple[str, tuple[tuple[int, str, float], ...]]] = {
    "LeakyRelu": ("ReLU", ((0, "alpha", 0.01),)),
    "Elu": ("ELU", ((0, "alpha", 1.0),)),
    "Celu": ("CELU", ((0, "alpha", 1.0),)),
    "Selu": ("SELU", ((0, "alpha", 1.67326319217681884765625), (1, "gamma", 1.05070102214813232421875))),
    "HardSigmoid": ("HardSigmoid", ((0, "alpha", 0.2), (1, "beta", 0.5))),
    "Shrink": ("Shrink", ((0, "bias", 0.0), (1, "lambd", 0.5))),
    "ThresholdedRelu": ("Threshold", ((0, "alpha", 1.0),)),
}
_BINARY = {"Add": ADD, "Sub": SUB, "Mul": MUL, "Div": DIV, "Max": MAX, "Min": MIN}
_MIRRORED = {ADD: ADD, MUL: MUL, MAX: MAX, MIN: MIN, SUB: RSUB, DIV: RDIV}


def broadcast(w: Writer, op: int, first: str, second: str) -> Blob:
    """A binary operation of two tensors as ONNX broadcasts them."""
    left, right = w.shape(first), w.shape(second)
    for name, other, flip in ((second, first, False), (first, second, True)):
        array = w.constant(name)
        if array is not None and array.size == 1 and (not flip or op in _MIRRORED):
            number = w.finite(name, array).ravel()[0]
            return w.scalar(_MIRRORED[op] if flip else op, w.blob(other), float(number))
    if left == right:
        held = w.blob(first) if w.constant(first) is None else w.blob(second)
        return w.binary(op, w.take(first, held.shape), w.take(second, held.shape))
    a, b = pair(left, right)
    return w.binary(op, w.take(first, a), w.take(second, b))


def pair(left: Shape, right: Shape) -> tuple[Shape, Shape]:
    """Both operands' shapes with equally many axes, at most four."""
    rank = max(len(left), len(right))
    left, right = (1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right
    if rank <= 4 and left[0] == right[0] == 1 and rank > 1:
        left, right = left[1:], right[1:]
    elif rank > 4:
        left, right = _merged(left, right)
    if len(left) > 4:
        raise Refused(f"it broadcasts {left} with {right}")
    return left, right


def _merged(left: Shape, right: Shape) -> tuple[Shape, Shape]:
    """Both shapes with neighbouring axes put together that are broadcast alike."""
    found: list[tuple[int, int]] = []
    for a, b in zip(left, right, strict=True):
        if a == b == 1:
            continue
        if found and (found[-1][0] == 1) == (a == 1) and (found[-1][1] == 1) == (b == 1):
            found[-1] = (found[-1][0] * a, found[-1][1] * b)
        else:
            found.append((a, b))
    found = found or [(1, 1)]
    return tuple(a for a, _ in found), tuple(b for _, b in found)


def expand(w: Writer, blob: Blob, shape: Shape) -> Blob:
    """A blob repeated along its axes of 1 until it has a shape of as many axes."""
    for axis, (have, want) in enumerate(zip(blob.shape, shape, strict=True)):
        if have != want:
            after = (*blob.shape[:axis], want, *blob.shape[axis + 1 :])
            blob = w.layer("Tile", [blob], after, {0: axis, 1: want})
    return blob


def unary(w: Writer, node: Node) -> None:
    w.give(node.output, w.unary(_UNARY[node.proto.op_type], w.blob(node.input(0))))


def activation(w: Writer, node: Node) -> None:
    x = w.blob(node.input(0))
    w.give(node.output, w.layer(_LAYERS[node.proto.op_type], [x], x.shape))


def with_numbers(w: Writer, node: Node) -> None:
    kind, numbers = _WITH[node.proto.op_type]
    x = w.blob(node.input(0))
    y = w.layer(kind, [x], x.shape, {key: float(node.get(name, default)) for key, name, default in numbers})
    w.give(node.output, w.binary(MUL, x, y) if kind == "Threshold" else y)


def arithmetic(w: Writer, node: Node) -> None:
    op = _BINARY[node.proto.op_type]
    if op == DIV and w.whole(node.output):
        w.give(node.output, w.unary(TRUNC, quotient(w, node, nudged=node.input(0))))
        return
    chain(w, node, op)


def chain(w: Writer, node: Node, op: int) -> None:
    """An operation of one or more tensors, from the left."""
    name = node.input(0)
    if len(node.inputs) == 1:
        w.give(node.output, w.blob(name))
    for index, other in enumerate(node.inputs[1:], 2):
        found = broadcast(w, op, name, other)
        name = node.output if index == len(node.inputs) else f"{node.output}/{index}"
        w.keep(name, found, np.broadcast_shapes(*map(w.shape, node.inputs[:index])))


def variadic(w: Writer, node: Node) -> None:
    chain(w, node, ADD)
    if node.proto.op_type == "Mean":
        w.give(node.output, w.scalar(MUL, w.blob(node.output), 1.0 / len(node.inputs)))


def quotient(w: Writer, node: Node, nudged: str) -> Blob:
    """a / b of whole numbers, a moved by a half in the direction of a tensor's sign: rounding can't pass an integer."""
    a, b = node.inputs
    sign = w.unary(SIGN, w.blob(nudged))
    half = w.keep(f"{node.output}/half", w.scalar(MUL, sign, 0.5), w.shape(nudged))
    moved = broadcast(w, ADD, a, half)
    name = w.keep(f"{node.output}/moved", moved, np.broadcast_shapes(w.shape(a), w.shape(nudged)))
    return broadcast(w, DIV, name, b)


def mod(w: Writer, node: Node) -> None:
    """a - b * floor(a / b), or with trunc: ncnn's own remainder is that of C's remainder()."""
    a, b = node.inputs
    towards_zero = bool(node.get("fmod", 0))
    whole = w.whole(node.output)
    part = quotient(w, node, a if towards_zero else b) if whole else broadcast(w, DIV, a, b)
    shape = w.shape(node.output)
    times = w.keep(f"{node.output}/times", w.unary(TRUNC if towards_zero else FLOOR, part), shape)
    product = w.keep(f"{node.output}/product", broadcast(w, MUL, times, b), shape)
    w.give(node.output, broadcast(w, SUB, a, product))


def power(w: Writer, node: Node) -> None:
    """Small whole exponents as products: ncnn's vectorised power has no negative bases."""
    exponent = w.constant(node.input(1))
    number = float(exponent.ravel()[0]) if exponent is not None and exponent.size == 1 else math.nan
    x = w.blob(node.input(0))
    if number in (0.5, -1.0, 2.0):
        y = w.unary({0.5: SQRT, -1.0: RECIPROCAL, 2.0: SQUARE}[number], x)
    elif number in range(1, 17):
        y = raised(w, x, int(number))
    elif number > 0:
        y = w.scalar(POW, w.scalar(MAX, x, 1e-37), number)
    else:
        y = broadcast(w, POW, node.input(0), node.input(1))
    w.give(node.output, y)


def raised(w: Writer, x: Blob, exponent: int) -> Blob:
    """x to the power of a positive whole number."""
    y = x if exponent & 1 else None
    while exponent := exponent >> 1:
        x = w.unary(SQUARE, x)
        if exponent & 1:
            y = x if y is None else w.binary(MUL, y, x)
    assert y is not None
    return y


def prelu(w: Writer, node: Node) -> None:
    """x above zero, x * slope below."""
    slope, shape = w.constant(node.input(1)), w.shape(node.input(0))
    x = w.blob(node.input(0))
    if slope is not None and slope.size == 1:
        w.give(node.output, w.layer("PReLU", [x], x.shape, {0: 1}, raw(slope)))
        return
    channels = shape[1] if len(shape) > 1 else 0
    if (
        slope is not None
        and len(shape) == 4
        and shape[0] == 1
        and slope.shape in ((channels, 1, 1), (1, channels, 1, 1))
    ):
        x = w.take(node.input(0))
        w.give(node.output, w.layer("PReLU", [x], x.shape, {0: channels}, raw(slope)))
        return
    low = w.keep(f"{node.output}/low", w.scalar(MIN, x, 0.0), shape)
    below = broadcast(w, MUL, low, node.input(1))
    above = w.view(w.layer("ReLU", [x], x.shape), below.shape)
    w.give(node.output, w.binary(ADD, above, below))


def clip(w: Writer, node: Node) -> None:
    x = w.blob(node.input(0))
    ends = [
        w.constant(name) if name else np.float32(end)
        for name, end in ((node.input(1), -3.4e38), (node.input(2), 3.4e38))
    ]
    if all(end is not None for end in ends):
        low, high = (float(np.clip(np.float32(end).ravel()[0], -3.4e38, 3.4e38)) for end in ends)
        w.give(node.output, w.layer("Clip", [x], x.shape, {0: min(low, high), 1: high}))
        return
    for name, op in ((node.input(1), MAX), (node.input(2), MIN)):
        if name:
            x = w.binary(op, x, expand(w, w.take(name, (1,) * len(x.shape)), (1,) * len(x.shape)))
    w.give(node.output, x)


def gelu(w: Writer, node: Node) -> None:
    x = w.blob(node.input(0))
    w.give(node.output, w.layer("GELU", [x], x.shape, {0: int(node.get("approximate", "none") == "tanh")}))


def hard_swish(w: Writer, node: Node) -> None:
    x = w.blob(node.input(0))
    w.give(node.output, w.layer("HardSwish", [x], x.shape, {0: 1 / 6, 1: 0.5}))


def swish(w: Writer, node: Node) -> None:
    x, alpha = w.blob(node.input(0)), float(node.get("alpha", 1.0))
    gate = x if alpha == 1.0 else w.scalar(MUL, x, alpha)
    w.give(node.output, w.binary(MUL, x, w.layer("Sigmoid", [gate], x.shape)))


def softplus(w: Writer, node: Node) -> None:
    """max(x, 0) + log(1 + exp(-|x|)): ncnn's own layer overflows."""
    x = w.blob(node.input(0))
    tail = w.unary(LOG1P, w.unary(EXP, w.unary(NEG, w.unary(ABS, x))))
    w.give(node.output, w.binary(ADD, w.layer("ReLU", [x], x.shape), tail))


def softsign(w: Writer, node: Node) -> None:
    x = w.blob(node.input(0))
    w.give(node.output, w.binary(DIV, x, w.scalar(ADD, w.unary(ABS, x), 1.0)))


def cast(w: Writer, node: Node) -> None:
    """To bool: 0 or 1. To integers: without the fraction. To float: nothing, numbers are floats already."""
    x, to = w.blob(node.input(0)), node.get("to")
    if to == 9 and w.graph.types.get(node.input(0)) != 9:
        x = w.unary(ABS, w.unary(SIGN, x))
    elif to in (2, 3, 4, 5, 6, 7, 12, 13) and not w.whole(node.input(0)):
        x = w.unary(TRUNC, x)
    elif to in (10, 16) and w.graph.types.get(node.input(0)) in (1, 11):
        raise Refused("it rounds to 16 bits")
    w.give(node.output, x)


# Comparisons are 0.0 and 1.0, by ncnn's Threshold (x > 0): exact for numbers, false where a side is NaN.


def positive(w: Writer, x: Blob) -> Blob:
    return w.layer("Threshold", [x], x.shape, {0: 0.0})


def negated(w: Writer, x: Blob) -> Blob:
    return w.scalar(RSUB, x, 1.0)


def compare(w: Writer, node: Node) -> None:
    a, b = node.input(0), node.input(1)
    op = node.proto.op_type
    if op == "Equal":
        difference = broadcast(w, SUB, a, b)
        y = negated(w, w.unary(ABS, w.unary(SIGN, difference)))
    elif op in ("Greater", "LessOrEqual"):
        y = positive(w, broadcast(w, SUB, a, b))
    else:
        y = positive(w, broadcast(w, SUB, b, a))
    w.give(node.output, negated(w, y) if op.endswith("OrEqual") else y)


def logic(w: Writer, node: Node) -> None:
    op = node.proto.op_type
    if op == "Not":
        y = negated(w, w.blob(node.input(0)))
    elif op == "Xor":
        y = w.unary(ABS, broadcast(w, SUB, node.input(0), node.input(1)))
    else:
        y = broadcast(w, {"And": MUL, "Or": MAX}[op], node.input(0), node.input(1))
    w.give(node.output, y)


def where(w: Writer, node: Node) -> None:
    """condition * a + (1 - condition) * b: exact where a and b are finite."""
    condition, a, b = node.inputs
    otherwise = w.keep(f"{node.output}/not", negated(w, w.blob(condition)), w.shape(condition))
    parts = []
    for mask, source in ((condition, a), (otherwise, b)):
        shape = np.broadcast_shapes(w.shape(mask), w.shape(source))
        parts.append(w.keep(f"{node.output}/{len(parts)}", broadcast(w, MUL, mask, source), shape))
    w.give(node.output, broadcast(w, ADD, *parts))


def cast_like(w: Writer, node: Node) -> None:
    other = w.graph.types.get(node.input(1))
    proto = onnx.helper.make_node("Cast", [node.input(0)], [node.output], to=other)
    cast(w, Node(proto))


def dropout(w: Writer, node: Node) -> None:
    training = w.constant(node.input(2)) if node.input(2) else np.zeros(1)
    if training is None or training.any() or any(node.proto.output[1:]):
        raise Refused("it is in training mode, or its mask is used")
    same(w, node)


def is_inf(w: Writer, node: Node) -> None:
    raise Refused("ncnn is compiled without infinities and NaN")


def same(w: Writer, node: Node) -> None:
    w.give(node.output, w.blob(node.input(0)))


OPERATORS: dict[str, Callable[[Writer, Node], None]] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_LAYERS, activation),
    **dict.fromkeys(_WITH, with_numbers),
    **dict.fromkeys(_BINARY, arithmetic),
    **dict.fromkeys(("Sum", "Mean"), variadic),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), compare),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), logic),
    **dict.fromkeys(("IsInf", "IsNaN"), is_inf),
    "Identity": same,
    "Dropout": dropout,
    "CastLike": cast_like,
    "Mod": mod,
    "Pow": power,
    "PRelu": prelu,
    "Clip": clip,
    "Gelu": gelu,
    "HardSwish": hard_swish,
    "Swish": swish,
    "Softplus": softplus,
    "Softsign": softsign,
    "Cast": cast,
    "Where": where,
}

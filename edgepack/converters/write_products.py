"""ncnn layers for ONNX's products: fully connected layers, batched products, sums of products by letters."""

import math
from collections.abc import Callable

import numpy as np
from ncnn_writer import Blob, Node, Refused, Writer, raw, weight
from write_elementwise import ADD, MUL, broadcast
from write_moves import repeated, transposed


def product(w: Writer, a: Blob, b: Blob) -> Blob:
    """[m, k] times [k, n], or the same for each entry of an equal first axis."""
    return w.layer("MatMul", [a, b], (*a.shape[:-1], b.shape[-1]))


def connected(w: Writer, x: Blob, rows: np.ndarray, bias: np.ndarray | None) -> Blob:
    """[m, k] times the transposed weights [n, k], plus a bias [n]."""
    x = x if x.shape[0] > 1 else w.view(x, x.shape[1:])
    count, shape = len(rows), (*x.shape[:-1], len(rows))
    params: dict[int, object] = {0: count, 1: int(bias is not None), 2: rows.size}
    return w.layer("InnerProduct", [x], shape, params, weight(rows), b"" if bias is None else raw(bias))


def matmul(w: Writer, node: Node) -> None:
    a, b = node.inputs
    left, right = w.shape(a), w.shape(b)
    table = w.constant(b)
    k = left[-1]
    right = right if len(right) > 1 else (k, 1)
    left = left if len(left) > 1 else (1, k)
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    if math.prod(right[:-2]) == 1:  # the same matrix for all
        x, rows = w.take(a, (math.prod(left[:-1]), k)), right[-1]
        if table is not None and table.dtype.kind == "f":
            y = connected(w, x, np.ascontiguousarray(table.reshape(k, rows).T), None)
        else:
            y = product(w, x, w.take(b, (k, rows)))
        w.give(node.output, y)
        return
    count = math.prod(batch)
    rank = len(batch)
    sides = []
    for name, shape in ((a, left), (b, right)):
        whole = (1,) * (rank + 2 - len(shape)) + shape
        blob = repeated(w, w.blob(name), whole, (*batch, *shape[-2:]))
        sides.append(w.view(blob, (count, *shape[-2:])))
    w.give(node.output, product(w, *sides))


def gemm(w: Writer, node: Node) -> None:
    a, b, c = node.input(0), node.input(1), node.input(2)
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    x = w.take(a, w.shape(a))
    if node.get("transA", 0):
        x = transposed(w, x, x.shape, (1, 0))
        x = w.view(x, tuple(reversed(w.shape(a))))
    table, added = w.constant(b), w.constant(c) if c else None
    if table is not None:
        rows = table if node.get("transB", 0) else np.ascontiguousarray(table.T)
        size = 0 if added is None else added.size
        fits = size in (1, len(rows)) and (size == 1 or added.shape[-1] == len(rows))
        bias = np.full(len(rows), 1.0, np.float32) * added.ravel() * beta if added is not None and fits else None
        y = connected(w, x, rows * np.float32(alpha) if alpha != 1.0 else rows, bias)
        c = "" if bias is not None else c
    else:
        right = w.take(b, w.shape(b))
        if node.get("transB", 0):
            right = w.view(transposed(w, right, right.shape, (1, 0)), tuple(reversed(right.shape)))
        y = product(w, x, right)
        y = y if alpha == 1.0 else w.scalar(MUL, y, alpha)
    if c:
        scaled = w.keep(f"{node.output}/c", w.blob(c) if beta == 1.0 else w.scalar(MUL, w.blob(c), beta), w.shape(c))
        made = w.keep(f"{node.output}/product", y, w.shape(node.output))
        y = broadcast(w, ADD, made, scaled)
    w.give(node.output, y)


def einsum(w: Writer, node: Node) -> None:
    """One or two operands without repeated letters, as transposes and one batched product."""
    equation = str(node.get("equation")).replace(" ", "")
    terms, _, result = equation.partition("->")
    parts = terms.split(",")
    if "." in equation:
        parts, result = _without_dots(w, node, parts, result)
    if "->" not in equation:
        letters = "".join(parts)
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if len(parts) > 2 or any(len(set(part)) < len(part) for part in parts):
        raise Refused(f"its equation is {equation}")
    size = {
        x: n for part, name in zip(parts, node.inputs, strict=True) for x, n in zip(part, w.shape(name), strict=True)
    }
    held = [(w.blob(name), part) for name, part in zip(node.inputs, parts, strict=True)]
    others = [set(result).union(*(p for j, p in enumerate(parts) if j != i)) for i in range(len(parts))]
    held = [_summed(w, blob, part, other, size) for (blob, part), other in zip(held, others, strict=True)]
    if len(held) == 1:
        blob, part = held[0]
        w.give(node.output, _ordered(w, blob, part, result, size))
        return
    (a, left), (b, right) = held
    both = [x for x in left if x in right]
    batch = "".join(x for x in both if x in result)
    inner = "".join(x for x in both if x not in result)
    rows, columns = ("".join(x for x in part if x not in both) for part in (left, right))
    n, m, k, p = (math.prod(size[x] for x in letters) for letters in (batch, rows, inner, columns))
    a = w.view(_ordered(w, a, left, batch + rows + inner, size), (n, m, k) if n > 1 else (m, k))
    b = w.view(_ordered(w, b, right, batch + inner + columns, size), (n, k, p) if n > 1 else (k, p))
    w.give(node.output, _ordered(w, product(w, a, b), batch + rows + columns, result, size))


def _without_dots(w: Writer, node: Node, parts: list[str], result: str) -> tuple[list[str], str]:
    """Letters of their own for the axes that three dots stand for."""
    spare = "ABCDEFGH"
    counts = [len(w.shape(name)) - len(part.replace("...", "")) for name, part in zip(node.inputs, parts, strict=True)]
    dotted = [count for count, part in zip(counts, parts, strict=True) if "..." in part]
    if len(set(dotted)) > 1 or max(dotted) > len(spare):
        raise Refused("its dots stand for different axes")
    axes = spare[: dotted[0]]
    return [part.replace("...", axes) for part in parts], result.replace("...", axes)


def _summed(w: Writer, blob: Blob, part: str, wanted: set[str], size: dict[str, int]) -> tuple[Blob, str]:
    """An operand without the letters that nothing else has."""
    for axis in reversed(range(len(part))):
        if part[axis] not in wanted:
            before, after = (math.prod(size[x] for x in side) for side in (part[:axis], part[axis + 1 :]))
            view = w.view(blob, (before, size[part[axis]], after))
            blob = w.layer("Reduction", [view], (before, 1, after), {0: 0, 1: 0, 3: [1], 4: 1, 5: 1})
            part = part[:axis] + part[axis + 1 :]
    return blob, part


def _ordered(w: Writer, blob: Blob, part: str, wanted: str, size: dict[str, int]) -> Blob:
    return transposed(w, blob, tuple(size[x] for x in part), [part.index(x) for x in wanted])


OPERATORS: dict[str, Callable[[Writer, Node], None]] = {"MatMul": matmul, "Gemm": gemm, "Einsum": einsum}

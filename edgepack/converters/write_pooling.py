"""ncnn layers for ONNX's pooling. A batch is more channels: pooling doesn't mix them."""

import math
from collections.abc import Callable

import numpy as np
from ncnn_writer import Blob, Node, Refused, Shape, Writer
from write_convolutions import Window
from write_elementwise import ADD, MAX, MUL, POW, SQRT, raised
from write_moves import cut, strided

_POOL = {"kernel": (1, 11, 21), "stride": (2, 12, 22), "before": (3, 13, 23), "behind": (14, 15, 16)}
_LOWEST = -3e38  # stands for -inf in the padding before a maximum
_PLACES = 64  # of a dilated window


def pool(w: Writer, node: Node) -> None:
    """A batch is more channels: pooling doesn't mix them."""
    shape, after, op = w.shape(node.input(0)), w.shape(node.output), node.proto.op_type
    kernel = tuple(node.get("kernel_shape"))
    window = Window(node, shape[2:], kernel)
    ceiling = bool(node.get("ceil_mode", 0))
    if len(kernel) > 3:
        raise Refused("it has more than three axes")
    if len(node.proto.output) > 1 and node.proto.output[1]:
        raise Refused("it also gives the places of the largest values")
    channels = shape[0] * shape[1]
    x = w.take(node.input(0), (channels, *shape[2:]))
    inside = bool(node.get("count_include_pad", 0))
    sides = (window.kernel, window.stride, window.dilation, window.before, window.behind)
    steps = zip(shape[2:], after[2:], *sides, strict=True)
    lacking = [(m - 1) * s + (k - 1) * d + 1 - n - a - b for n, m, k, s, d, a, b in steps]
    spill = ceiling and max(lacking) > 0
    y_shape = (channels, *after[2:])
    if op == "MaxPool":
        window.behind = tuple(b + max(more, 0) for b, more in zip(window.behind, lacking, strict=True))
        y = _pooled(w, x, window, y_shape, average=False)
    elif op == "LpPool":
        p, count = int(node.get("p", 2)), math.prod(kernel)
        if spill:
            raise Refused("it rounds its size up")
        powers = raised(w, w.unary(0, x), p)
        mean = _pooled(w, powers, window, y_shape, average=True, inside=True)
        total = w.scalar(MAX, w.scalar(MUL, mean, count), 1e-37)
        y = total if p == 1 else w.unary(SQRT, total) if p == 2 else w.scalar(POW, total, 1 / p)
    elif not spill and (inside or max(window.before + window.behind) == 0):
        y = _pooled(w, x, window, y_shape, average=True, inside=True)
    else:  # sums, divided by how many entries each window has
        window.behind = tuple(b + max(more, 0) for b, more in zip(window.behind, lacking, strict=True))
        mean = _pooled(w, x, window, y_shape, average=True, inside=True)
        counts = _counts(shape[2:], after[2:], window, lacking, inside=inside)
        y = w.binary(MUL, mean, w.memory((math.prod(kernel) / counts).astype(np.float32)[None]))
    w.give(node.output, y)


def _counts(sizes: Shape, after: Shape, window: Window, lacking: list[int], *, inside: bool) -> np.ndarray:
    """How many entries an average is over, for each place of the result."""
    found = np.ones((), np.float64)
    sides = (window.kernel, window.stride, window.dilation, window.before, window.behind)
    for n, m, k, s, d, a, b, more in zip(sizes, after, *sides, lacking, strict=True):
        low, high = (0, n + a + b - max(more, 0)) if inside else (a, a + n)
        places = np.arange(m)[:, None] * s + np.arange(k) * d
        counts = ((places >= low) & (places < high)).sum(1)
        found = found[..., None] * np.maximum(counts, 1)
    return found


def _pooled(w: Writer, x: Blob, window: Window, shape: Shape, *, average: bool, inside: bool = False) -> Blob:
    kind = "Pooling" + {1: "1D", 2: "", 3: "3D"}[len(window.kernel)]
    if set(window.dilation) != {1}:
        return _dilated(w, x, window, shape, average=average)
    behind = zip(shape[1:], x.shape[1:], window.kernel, window.stride, window.before, window.behind, strict=True)
    # Entries that no window reaches: ncnn counts the padding behind from the size, so it is what windows need.
    window.behind = tuple(min(b, (m - 1) * s + k - n - a) for m, n, k, s, a, b in behind)
    for axis, more in enumerate(window.behind, 1):
        if more < 0:
            x = cut(w, x, axis, 0, x.shape[axis] + more)
    window.behind = tuple(max(more, 0) for more in window.behind)
    params: dict[int, object] = {0: int(average), **window.params(_POOL), 5: 1, 6: int(inside)}
    return w.layer(kind, [x], shape, params)


def _dilated(w: Writer, x: Blob, window: Window, shape: Shape, *, average: bool) -> Blob:
    """The largest, or the mean, of what lies at each place of the window: one strided cut for each place."""
    if math.prod(window.kernel) > _PLACES:
        raise Refused("its dilated window is large")
    spans = zip(shape[1:], x.shape[1:], window.kernel, window.stride, window.dilation, window.before, strict=True)
    more = [max((m - 1) * s + (k - 1) * d + 1 - n - a, 0) for m, n, k, s, d, a in spans]
    sizes = [(0, 0), (0, 0), *zip(window.before, more, strict=True)][-3:]
    params: dict[int, object] = dict(zip((7, 8, 0, 1, 2, 3), (n for pair in sizes for n in pair), strict=True))
    after = tuple(n + a + b for n, a, b in zip(x.shape[1:], window.before, more, strict=True))
    x = w.layer("Padding", [x], (x.shape[0], *after), {**params, 4: 0, 5: 0.0 if average else _LOWEST})
    found = None
    for place in np.ndindex(window.kernel):
        part = x
        for axis, (at, m, s, d) in enumerate(zip(place, shape[1:], window.stride, window.dilation, strict=True), 1):
            part = strided(w, part, axis, range(at * d, at * d + (m - 1) * s + 1, s))
        found = part if found is None else w.binary(ADD if average else MAX, found, part)
    assert found is not None
    return w.scalar(MUL, found, 1 / math.prod(window.kernel)) if average else found


def global_pool(w: Writer, node: Node) -> None:
    shape = w.shape(node.input(0))
    channels, average = shape[0] * shape[1], node.proto.op_type == "GlobalAveragePool"
    if len(shape) == 4:
        y = w.layer("Pooling", [w.take(node.input(0), (channels, *shape[2:]))], (channels,), {0: int(average), 4: 1})
    else:
        x = w.take(node.input(0), (channels, math.prod(shape[2:])))
        y = w.layer("Reduction", [x], (channels, 1), {0: 3 if average else 4, 1: 0, 3: [1], 4: 1, 5: 1})
    w.give(node.output, y)


OPERATORS: dict[str, Callable[[Writer, Node], None]] = {
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), global_pool),
}

"""ncnn layers for ONNX convolutions and their transposes.

A batch of several samples is one more axis in depth for a kernel that is 1 deep.
"""

import math
from collections.abc import Callable

import numpy as np
from ncnn_writer import Blob, Node, Refused, Shape, Writer, raw, weight
from write_moves import cut, joined, transposed

# Parameter ids by axis (w, h, d): kernel, dilation, stride, padding before and behind.
_CONV = {
    "kernel": (1, 11, 21),
    "dilation": (2, 12, 22),
    "stride": (3, 13, 23),
    "before": (4, 14, 24),
    "behind": (15, 16, 17),
}


class Window:
    """Kernel, stride, dilation and padding of a node, one number for each axis of the grid."""

    def __init__(self, node: Node, sizes: Shape, kernel: Shape, *, made: Shape = ()) -> None:
        rank = len(sizes)
        self.kernel = tuple(kernel)
        self.stride = tuple(node.get("strides", (1,) * rank))
        self.dilation = tuple(node.get("dilations", (1,) * rank))
        pads = tuple(node.get("pads", (0,) * (2 * rank)))
        auto = str(node.get("auto_pad", "NOTSET"))
        if auto in ("SAME_UPPER", "SAME_LOWER") and not made:
            total = [
                max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
                for size, k, s, d in zip(sizes, kernel, self.stride, self.dilation, strict=True)
            ]
            half = [(n // 2, n - n // 2) for n in total]
            half = half if auto == "SAME_UPPER" else [(b, a) for a, b in half]
            pads = tuple(a for a, _ in half) + tuple(b for _, b in half)
        elif auto == "VALID":
            pads = (0,) * (2 * rank)
        self.before, self.behind = pads[:rank], pads[rank:]

    def params(self, ids: dict[str, tuple[int, ...]]) -> dict[int, object]:
        """As ncnn's parameters: its axes are w, h, d."""
        found: dict[int, object] = {}
        for name, keys in ids.items():
            values = getattr(self, name)
            found |= dict(zip(keys, reversed(values), strict=False))
        return found

    def deep(self) -> None:
        """A first axis of one step, for the batch."""
        for name, value in (("kernel", 1), ("stride", 1), ("dilation", 1), ("before", 0), ("behind", 0)):
            setattr(self, name, (value, *getattr(self, name)))


def conv(w: Writer, node: Node) -> None:
    x, kernel = node.input(0), node.input(1)
    shape, sizes = w.shape(x), w.shape(kernel)
    window, group = Window(node, shape[2:], sizes[2:]), int(node.get("group", 1))
    outputs, after = sizes[0], w.shape(node.output)
    many = shape[0] > 1
    held = _batch_in_depth(w, w.blob(x), shape, window) if many else w.take(x, shape[1:])
    rank = len(window.kernel)
    if rank > 3:
        raise Refused("it has more than three axes and a batch")
    if min(window.before + window.behind) < 0:
        raise Refused("it has a negative padding")
    table, bias = w.constant(kernel), w.known(node, 2, "bias") if w.constant(kernel) is not None else None
    kind = ("ConvolutionDepthWise" if group > 1 else "Convolution") + {1: "1D", 2: "", 3: "3D"}[rank]
    params: dict[int, object] = {0: outputs, **window.params(_CONV), 5: int(bool(node.input(2)))}
    params |= {6: math.prod(sizes)} | ({7: group} if group > 1 else {})
    result = (outputs, *((shape[0],) if many else ()), *after[2:])
    if table is not None:
        y = w.layer(kind, [held], result, params, weight(table), b"" if bias is None else raw(bias))
    else:
        y = w.layer(kind, [held, *_dynamic(w, node, sizes, rank)], result, {**params, 19: 1})
    w.give(node.output, _batch_back(w, y, after) if many else y)


def _dynamic(w: Writer, node: Node, sizes: Shape, rank: int) -> list[Blob]:
    """Weights and bias that are computed, as ncnn takes them."""
    if rank > 2 or len(sizes) != rank + 2:
        raise Refused("its weights are computed")
    bias = [w.take(node.input(2), (sizes[0],))] if node.input(2) else []
    return [w.take(node.input(1), sizes), *bias]


def _batch_in_depth(w: Writer, x: Blob, shape: Shape, window: Window) -> Blob:
    window.deep()
    perm = (1, 0, *range(2, len(shape)))
    return w.view(transposed(w, x, shape, perm), tuple(shape[axis] for axis in perm))


def _batch_back(w: Writer, y: Blob, after: Shape) -> Blob:
    return transposed(w, y, (after[1], after[0], *after[2:]), (1, 0, *range(2, len(after))))


def deconv(w: Writer, node: Node) -> None:
    """The whole result first, then what the padding cuts off: ncnn's own padding can't be uneven everywhere."""
    x, kernel = node.input(0), node.input(1)
    shape, sizes, after = w.shape(x), w.shape(kernel), w.shape(node.output)
    table, bias = w.constant(kernel), w.known(node, 2, "bias")
    window, group = Window(node, shape[2:], sizes[2:], made=after), int(node.get("group", 1))
    spans = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(shape[2:], window.stride, window.kernel, window.dilation, strict=True)
    ]
    extra = tuple(node.get("output_padding", (0,) * len(spans)))
    total = [span + more - size for span, more, size in zip(spans, extra, after[2:], strict=True)]
    before = list(window.before)
    if node.get("output_shape") or str(node.get("auto_pad", "NOTSET")).startswith("SAME"):
        upper = node.get("auto_pad", "NOTSET") == "SAME_UPPER"
        before = [n // 2 if upper else n - n // 2 for n in total]
    many, result = shape[0] > 1, [sizes[1] * group, *spans]
    window.before = window.behind = (0,) * len(spans)
    held = _batch_in_depth(w, w.blob(x), shape, window) if many else w.take(x, shape[1:])
    rank = len(window.kernel)
    if rank > 3:
        raise Refused("it has more than three axes and a batch")
    kind = ("DeconvolutionDepthWise" if group > 1 else "Deconvolution") + {1: "1D", 2: "", 3: "3D"}[rank]
    params: dict[int, object] = {0: sizes[1] * group, **window.params(_CONV), 5: int(bias is not None)}
    params |= {6: math.prod(sizes)} | ({7: group} if group > 1 else {})
    if many:
        result.insert(1, shape[0])
    if table is not None:
        grouped = table.reshape(group, sizes[0] // group, *sizes[1:]).swapaxes(1, 2)
        weights = [weight(np.ascontiguousarray(grouped)), b"" if bias is None else raw(bias)]
        y = w.layer(kind, [held], tuple(result), params, *weights)
    elif group > 1 or rank > 2:
        raise Refused("its weights are computed")
    else:
        bottoms = [held, w.take(kernel, sizes)]  # here ncnn has the input's channels first, as ONNX
        bottoms += [] if bias is None else [w.memory(bias)]
        y = w.layer(kind, bottoms, tuple(result), {**params, 28: 1})
    constant = np.zeros(sizes[1] * group, np.float32) if bias is None else bias
    for axis, (start, size, span) in enumerate(zip(before, after[2:], spans, strict=True), 2 if many else 1):
        y = cut(w, y, axis, start, min(start + size, span))
        lacking = start + size - span
        if lacking > 0:  # output_padding beyond the last product holds the bias alone
            y = joined(w, [y, _filled(w, y.shape, axis, lacking, constant)], axis)
    w.give(node.output, _batch_back(w, y, after) if many else y)


def _filled(w: Writer, shape: Shape, axis: int, size: int, constant: np.ndarray) -> Blob:
    sizes = (*shape[:axis], size, *shape[axis + 1 :])
    return w.memory(np.broadcast_to(constant.reshape(-1, *(1,) * (len(sizes) - 1)), sizes))


OPERATORS: dict[str, Callable[[Writer, Node], None]] = {"Conv": conv, "ConvTranspose": deconv}

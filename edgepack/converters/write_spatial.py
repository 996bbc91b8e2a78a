"""ncnn layers for ONNX operators on grids: convolutions, pooling, resizing, sampling.

A batch of several samples is one more axis in depth for a kernel that is 1 deep.
"""

import math
from collections.abc import Callable

import numpy as np
import onnx
from ncnn_writer import Blob, Node, Refused, Shape, Writer, raw, weight
from onnx.reference import ReferenceEvaluator
from write_elementwise import MAX, MUL, POW, SQRT, raised
from write_moves import cut, joined, transposed
from write_products import product

# Parameter ids by axis (w, h, d): kernel, dilation, stride, padding before and behind.
_CONV = {
    "kernel": (1, 11, 21),
    "dilation": (2, 12, 22),
    "stride": (3, 13, 23),
    "before": (4, 14, 24),
    "behind": (15, 16, 17),
}
_POOL = {"kernel": (1, 11, 21), "stride": (2, 12, 22), "before": (3, 13, 23), "behind": (14, 15, 16)}


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
    if set(window.dilation) != {1}:
        raise Refused("it is dilated")
    inside = bool(node.get("count_include_pad", 0))
    steps = zip(shape[2:], after[2:], window.kernel, window.stride, window.before, window.behind, strict=True)
    lacking = [(m - 1) * s + k - n - a - b for n, m, k, s, a, b in steps]
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
    for n, m, k, s, a, b, more in zip(
        sizes, after, window.kernel, window.stride, window.before, window.behind, lacking, strict=True
    ):
        low, high = (0, n + a + b - max(more, 0)) if inside else (a, a + n)
        starts = np.arange(m) * s
        counts = np.minimum(starts + k, high) - np.maximum(starts, low)
        found = found[..., None] * np.maximum(counts, 1)
    return found


def _pooled(w: Writer, x: Blob, window: Window, shape: Shape, *, average: bool, inside: bool = False) -> Blob:
    kind = "Pooling" + {1: "1D", 2: "", 3: "3D"}[len(window.kernel)]
    behind = zip(shape[1:], x.shape[1:], window.kernel, window.stride, window.before, window.behind, strict=True)
    # Entries that no window reaches: ncnn counts the padding behind from the size, so it is what windows need.
    window.behind = tuple(min(b, (m - 1) * s + k - n - a) for m, n, k, s, a, b in behind)
    for axis, more in enumerate(window.behind, 1):
        if more < 0:
            x = cut(w, x, axis, 0, x.shape[axis] + more)
    window.behind = tuple(max(more, 0) for more in window.behind)
    params: dict[int, object] = {0: int(average), **window.params(_POOL), 5: 1, 6: int(inside)}
    return w.layer(kind, [x], shape, params)


def global_pool(w: Writer, node: Node) -> None:
    shape = w.shape(node.input(0))
    channels, average = shape[0] * shape[1], node.proto.op_type == "GlobalAveragePool"
    if len(shape) == 4:
        y = w.layer("Pooling", [w.take(node.input(0), (channels, *shape[2:]))], (channels,), {0: int(average), 4: 1})
    else:
        x = w.take(node.input(0), (channels, math.prod(shape[2:])))
        y = w.layer("Reduction", [x], (channels, 1), {0: 3 if average else 4, 1: 0, 3: [1], 4: 1, 5: 1})
    w.give(node.output, y)


# Resizing --------------------------------------------------------------------------------------------------------


def resize(w: Writer, node: Node) -> None:
    """ncnn's Interp where it means the same; otherwise a product with the weights of every axis."""
    shape, after = w.shape(node.input(0)), w.shape(node.output)
    mode, place = str(node.get("mode", "nearest")), str(node.get("coordinate_transformation_mode", "half_pixel"))
    scales = w.known(node, 2, "scales")
    axes = [axis for axis in range(len(shape)) if shape[axis] != after[axis]]
    if place == "tf_crop_and_resize":
        axes = list(range(len(shape)))
    exact = scales is None or scales.size in (0, len(axes)) or scales.size == len(shape)
    given = {} if scales is None or scales.size != len(shape) else {a: float(scales[a]) for a in range(len(shape))}
    exact = exact and all(abs(given.get(a, after[a] / shape[a]) * shape[a] - after[a]) < 1e-4 for a in axes)
    params = _interp(node, mode, place, [after[a] / shape[a] for a in axes]) if exact else None
    if params and len(shape) == 4 and axes and min(axes) >= 2 and min(shape[2:]) > 4:
        x = w.take(node.input(0), (shape[0] * shape[1], *shape[2:]))
        params |= {3: after[2], 4: after[3]}
        w.give(node.output, w.layer("Interp", [x], (x.shape[0], *after[2:]), params))
        return
    blob, sizes = w.blob(node.input(0)), list(shape)
    for axis in axes:
        matrix = _weights(w, node, shape, after, axis, given.get(axis))
        before, behind = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
        if behind == 1:
            blob = product(w, w.view(blob, (before, sizes[axis])), w.memory(np.ascontiguousarray(matrix.T)))
        elif before == 1:
            blob = product(w, w.memory(matrix), w.view(blob, (sizes[axis], behind)))
        else:
            blob = transposed(w, blob, (before, sizes[axis], behind), (0, 2, 1))
            blob = product(w, w.view(blob, (before * behind, sizes[axis])), w.memory(np.ascontiguousarray(matrix.T)))
            blob = transposed(w, blob, (before, behind, after[axis]), (0, 2, 1))
        sizes[axis] = after[axis]
    w.give(node.output, blob)


def _interp(node: Node, mode: str, place: str, factors: list[float]) -> dict[int, object] | None:
    """Interp's type and corners, where it means what ONNX does."""
    if node.get("antialias", 0) or node.get("exclude_outside", 0):
        return None
    if mode == "nearest":
        how = str(node.get("nearest_mode", "round_prefer_floor"))
        whole = all(factor == int(factor) for factor in factors)
        plain = (place == "asymmetric" and how == "floor") or (place == "half_pixel" and how.startswith("round"))
        return {0: 1} if whole and plain else None
    if place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    if mode == "cubic" and float(node.get("cubic_coeff_a", -0.75)) != -0.75:
        return None
    return {0: {"linear": 2, "cubic": 3}[mode], 6: int(place == "align_corners")}


def _weights(w: Writer, node: Node, shape: Shape, after: Shape, axis: int, scale: float | None) -> np.ndarray:
    """The matrix [after, before] that resizes one axis: what ONNX's reference makes of rows with a single one."""
    skipped = ("axes", "keep_aspect_ratio_policy")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute if a.name not in skipped}
    n, m = shape[axis], after[axis]
    region = w.known(node, 1, "region")
    feeds = {"x": np.eye(n, dtype=np.float32)}
    inputs = ["x", "", "", "sizes"]
    if scale is not None:
        inputs, feeds = ["x", "", "scales"], {**feeds, "scales": np.float32([1, scale])}
    else:
        feeds["sizes"] = np.array([n, m], np.int64)
    if region is not None and region.size:
        rank = region.size // 2
        place = axis - (len(shape) - rank)
        feeds["roi"] = np.float32([0, region[place], 1, region[place + rank]])
        inputs[1] = "roi"
    values = [
        onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in feeds.items()
    ]
    made = onnx.helper.make_node("Resize", inputs, ["y"], **attributes)
    graph = onnx.helper.make_graph([made], "one", values, [onnx.ValueInfoProto(name="y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)
    (rows,) = ReferenceEvaluator(model).run(None, feeds)
    if rows.shape != (n, m):
        raise Refused(f"it makes {rows.shape[1]} of {n}")
    return np.ascontiguousarray(rows.T, np.float32)


def grid_sample(w: Writer, node: Node) -> None:
    shape, grid, after = w.shape(node.input(0)), w.shape(node.input(1)), w.shape(node.output)
    modes = {"linear": 1, "bilinear": 1, "nearest": 2, "cubic": 3, "bicubic": 3}  # ncnn's page has 1 and 2 swapped
    edges = {"zeros": 1, "border": 2, "reflection": 3}
    if len(shape) not in (4, 5):
        raise Refused("ncnn samples grids of two or three axes")
    params: dict[int, object] = {
        0: modes[str(node.get("mode", "linear"))],
        1: edges[str(node.get("padding_mode", "zeros"))],
        2: int(node.get("align_corners", 0)),
    }
    made = []
    data, places = w.view(w.blob(node.input(0)), _first(shape)), w.view(w.blob(node.input(1)), _first(grid))
    for sample in range(shape[0]):
        x = w.view(cut(w, data, 0, sample * shape[1], (sample + 1) * shape[1]), shape[1:])
        at = w.view(cut(w, places, 0, sample * grid[1], (sample + 1) * grid[1]), grid[1:])
        made.append(w.layer("GridSample", [x, at], after[1:], params))
    w.give(node.output, joined(w, made, 0))


def _first(shape: Shape) -> Shape:
    """Two axes: the first two together, and the rest."""
    return shape[0] * shape[1], math.prod(shape[2:])


def local_response(w: Writer, node: Node) -> None:
    shape, size = w.shape(node.input(0)), int(node.get("size"))
    if len(shape) != 4 or shape[0] != 1 or size % 2 == 0:
        raise Refused("ncnn normalises over an odd number of channels of one sample")
    params: dict[int, object] = {
        0: 0,
        1: size,
        2: float(node.get("alpha", 1e-4)),
        3: float(node.get("beta", 0.75)),
        4: float(node.get("bias", 1.0)),
    }
    x = w.take(node.input(0), shape[1:])
    w.give(node.output, w.layer("LRN", [x], x.shape, params))


OPERATORS: dict[str, Callable[[Writer, Node], None]] = {
    "Conv": conv,
    "ConvTranspose": deconv,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), global_pool),
    "Resize": resize,
    "GridSample": grid_sample,
    "LRN": local_response,
}

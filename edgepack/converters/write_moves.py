"""ncnn layers for ONNX operators that move numbers about: shapes, transposes, cuts, joins, repetitions."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from ncnn_writer import Blob, Node, Refused, Shape, Writer, along
from write_elementwise import MUL, expand

# Permute's order types for four axes: which axis of the input becomes w, h, d, c.
_ORDERS = (
    "WHDC HWDC WDHC DWHC HDWC DHWC WHCD HWCD WCHD CWHD HCWD CHWD WDCH DWCH WCDH CWDH DCWH CDWH HDCW DHCW HCDW CHDW "
    "DCHW CDHW"
).split()


def reshape(w: Writer, node: Node) -> None:
    """Every change of shape: the numbers stay."""
    w.give(node.output, w.blob(node.input(0)))


def transposed(w: Writer, blob: Blob, shape: Shape, perm: Sequence[int]) -> Blob:
    """A tensor of any number of axes with its axes in another order, by as few Permute layers as it takes."""
    kept = [axis for axis in perm if shape[axis] > 1]
    groups: list[list[int]] = []
    for axis in kept:  # neighbours that stay neighbours are one axis
        follows = groups and groups[-1][-1] < axis and all(shape[i] == 1 for i in range(groups[-1][-1] + 1, axis))
        groups[-1].append(axis) if follows else groups.append([axis])
    wanted = [group[0] for group in groups]
    size = {group[0]: math.prod(shape[axis] for axis in group) for group in groups}
    now = sorted(wanted)
    if now == wanted:
        return blob
    if len(now) <= 4:
        return _permute(w, w.view(blob, tuple(size[a] for a in now)), [now.index(a) for a in wanted])
    for place, axis in enumerate(wanted):
        at = now.index(axis)
        if at == place:
            continue
        end = at + 1
        while end < len(now) and now[end] == wanted[place + end - at]:
            end += 1
        parts = [now[:place], now[place:at], now[at:end], now[end:]]
        sizes = [math.prod(size[a] for a in part) for part in parts]
        blob = _permute(w, w.view(blob, tuple(sizes)), [0, 2, 1, 3])
        now = [*parts[0], *parts[2], *parts[1], *parts[3]]
    return blob


def _permute(w: Writer, blob: Blob, perm: Sequence[int]) -> Blob:
    rank = len(perm)
    if rank == 1:
        return blob
    letters = {2: "HW", 3: "CHW", 4: "CDHW"}[rank]
    name = "".join(letters[axis] for axis in reversed(perm))
    if rank == 2:
        order = ("WH", "HW").index(name)
    elif rank == 3:
        order = ("WHC", "HWC", "WCH", "CWH", "HCW", "CHW").index(name)
    else:
        order = _ORDERS.index(name)
    shape = tuple(blob.shape[axis] for axis in perm)
    return blob if order == 0 else w.layer("Permute", [blob], shape, {0: order})


def transpose(w: Writer, node: Node) -> None:
    shape = w.shape(node.input(0))
    perm = list(node.get("perm", list(reversed(range(len(shape))))))
    w.give(node.output, transposed(w, w.blob(node.input(0)), shape, perm))


def cut(w: Writer, blob: Blob, axis: int, start: int, end: int) -> Blob:
    """A piece of one axis."""
    if (start, end) == (0, blob.shape[axis]):
        return blob
    after = (*blob.shape[:axis], end - start, *blob.shape[axis + 1 :])
    return w.layer("Crop", [blob], after, {9: [start], 10: [end], 11: [axis]})


def flip(w: Writer, blob: Blob, axis: int) -> Blob:
    """One axis the other way round."""
    return w.layer("Flip", [blob], blob.shape, {0: [axis]}) if blob.shape[axis] > 1 else blob


def slice_(w: Writer, node: Node) -> None:
    shape = list(w.shape(node.input(0)))
    starts, ends = w.known(node, 1, "starts"), w.known(node, 2, "ends")
    axes, steps = w.known(node, 3, "axes"), w.known(node, 4, "steps")
    if starts is None or ends is None:
        raise Refused("it is of an opset before 10")
    blob = w.blob(node.input(0))
    chosen = range(len(starts)) if axes is None else [int(axis) % len(shape) for axis in axes]
    for place, axis in enumerate(chosen):
        step = 1 if steps is None else int(steps[place])
        taken = range(shape[axis])[slice(*_bounds(int(starts[place]), int(ends[place]), step, shape[axis]))]
        if len(taken) == 0:
            raise Refused("a tensor is empty")
        if (len(taken), step) == (shape[axis], 1):
            continue
        view, at = along(tuple(shape), axis)
        blob = strided(w, w.view(blob, view), at, taken)
        shape[axis] = len(taken)
    w.give(node.output, blob)


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int | None, int | None, int]:
    """ONNX's bounds as Python's: what lies before the first entry is no negative index."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return max(start, 0), max(end, 0), step
    return min(start, size - 1), (None if end < 0 else end), step


def strided(w: Writer, blob: Blob, axis: int, taken: range) -> Blob:
    """Entries of an axis at equal distances, in either direction."""
    backwards = taken.step < 0
    step, count = abs(taken.step), len(taken)
    first = min(taken[0], taken[-1])
    if step == 1:
        found = cut(w, blob, axis, first, first + count)
    else:
        before, after = math.prod(blob.shape[:axis]), math.prod(blob.shape[axis + 1 :])
        result = (*blob.shape[:axis], count, *blob.shape[axis + 1 :])
        blob = w.view(blob, (before, blob.shape[axis], after))
        spare = first + count * step - blob.shape[1]
        if spare > 0:  # the last entry's followers
            blob = w.layer("Padding", [blob], (before, blob.shape[1] + spare, after), {0: 0, 1: spare, 2: 0, 3: 0})
        blob = w.view(cut(w, blob, 1, first, first + count * step), (before, count, step, after))
        found = w.view(cut(w, blob, 2, 0, 1), result)
    return flip(w, found, axis) if backwards else found


def split(w: Writer, node: Node) -> None:
    shape = w.shape(node.input(0))
    view, axis = along(shape, int(node.get("axis", 0)))
    at = int(node.get("axis", 0))
    names = [name for name in node.proto.output if 0 not in w.graph.shapes.get(name, [])]  # without empty parts
    sizes = [w.shape(name)[at] for name in names]
    if sum(sizes) != view[axis]:
        raise Refused("some of its outputs aren't used")
    blob = w.view(w.blob(node.input(0)), view)
    if len(sizes) == 1:
        w.give(names[0], blob)
        return
    shapes = [(*view[:axis], size, *view[axis + 1 :]) for size in sizes]
    parts = w.many("Slice", [blob], shapes, {0: sizes, 1: axis})
    for name, part in zip(names, parts, strict=True):
        w.give(name, part)


def joined(w: Writer, blobs: list[Blob], axis: int) -> Blob:
    """Blobs one behind the other along an axis."""
    if len(blobs) == 1:
        return blobs[0]
    first = blobs[0].shape
    after = (*first[:axis], sum(blob.shape[axis] for blob in blobs), *first[axis + 1 :])
    return w.layer("Concat", blobs, after, {0: axis})


def concat(w: Writer, node: Node) -> None:
    shape = w.shape(node.output)
    at = int(node.get("axis", 0)) % len(shape)
    names = [name for name in node.inputs if 0 not in w.graph.shapes.get(name, [])]
    view, axis = along(shape, at)
    blobs = []
    for name in names:
        size = w.shape(name)[at]
        blobs.append(w.take(name, (*view[:axis], size, *view[axis + 1 :])))
    w.give(node.output, joined(w, blobs, axis))


def pad(w: Writer, node: Node) -> None:
    """One axis after the other, in a view of three axes of which it is the middle one."""
    shape, mode = list(w.shape(node.input(0))), str(node.get("mode", "constant"))
    pads = w.known(node, 1, "pads")
    value, axes = w.known(node, 2, "value"), w.known(node, 3, "axes")
    if pads is None:
        raise Refused("it is of an opset before 11")
    chosen = range(len(shape)) if axes is None else [int(axis) % len(shape) for axis in axes]
    number = 0.0 if value is None or value.size == 0 else float(value.ravel()[0])
    blob = w.blob(node.input(0))
    widths = {axis: (int(pads[i]), int(pads[i + len(pads) // 2])) for i, axis in enumerate(chosen)}
    around = {axis: pair for axis, pair in widths.items() if pair != (0, 0)}
    if len(shape) == 4 and shape[0] == 1 and set(around) <= {2, 3} and mode != "wrap" and _plain(around):
        (top, bottom), (left, right) = (around.get(axis, (0, 0)) for axis in (2, 3))
        view = w.view(blob, tuple(shape[1:]))
        after = (shape[1], shape[2] + top + bottom, shape[3] + left + right)
        _room(mode, around, shape)
        w.give(node.output, w.layer("Padding", [view], after, _padding((top, bottom, left, right), mode, number)))
        return
    for axis, (before, behind) in around.items():
        view = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
        blob = w.view(blob, view)
        if min(before, behind) < 0:
            blob = cut(w, blob, 1, max(-before, 0), view[1] - max(-behind, 0))
            before, behind = max(before, 0), max(behind, 0)
        after = (view[0], blob.shape[1] + before + behind, view[2])
        if mode == "wrap":
            if max(before, behind) > blob.shape[1]:
                raise Refused("it pads by more than the tensor's size")
            size = blob.shape[1]
            ends = [cut(w, blob, 1, size - before, size)] if before else []
            tail = [cut(w, blob, 1, 0, behind)] if behind else []
            blob = joined(w, [*ends, blob, *tail], 1)
        elif before or behind:
            _room(mode, {1: (before, behind)}, list(blob.shape))
            blob = w.layer("Padding", [blob], after, _padding((before, behind, 0, 0), mode, number))
        shape[axis] = after[1]
    w.give(node.output, blob)


def _plain(around: dict[int, tuple[int, int]]) -> bool:
    return all(min(pair) >= 0 for pair in around.values())


def _room(mode: str, around: dict[int, tuple[int, int]], shape: list[int]) -> None:
    if mode == "reflect" and any(max(pair) >= shape[axis] for axis, pair in around.items()):
        raise Refused("it reflects more than the tensor's size")


def _padding(sizes: tuple[int, int, int, int], mode: str, number: float) -> dict[int, object]:
    kinds = {"constant": 0, "edge": 1, "reflect": 2}
    return {**dict(enumerate(sizes)), 4: kinds[mode], 5: float(np.clip(number, -3.4e38, 3.4e38))}


def expanded(w: Writer, node: Node) -> None:
    """Expand: repeat along axes of 1."""
    before, after = w.shape(node.input(0)), w.shape(node.output)
    w.give(node.output, repeated(w, w.blob(node.input(0)), (1,) * (len(after) - len(before)) + before, after))


def repeated(w: Writer, blob: Blob, before: Shape, after: Shape) -> Blob:
    """A tensor repeated along every axis where `after` has a multiple of its size."""
    shape = list(before)
    for axis in reversed(range(len(shape))):
        times = after[axis] // shape[axis]
        if times == 1:
            continue
        # Repeating a whole axis is repeating it and everything inside it, side by side.
        view = (math.prod(shape[:axis]), 1, math.prod(shape[axis:]))
        blob = expand(w, w.view(blob, view), (view[0], times, view[2]))
        shape[axis] = after[axis]
    return blob


def tile(w: Writer, node: Node) -> None:
    w.give(node.output, repeated(w, w.blob(node.input(0)), w.shape(node.input(0)), w.shape(node.output)))


def depth_to_space(w: Writer, node: Node) -> None:
    n, c, h, width = w.shape(node.input(0))
    size = int(node.get("blocksize"))
    rows, columns = (n, size, size, c // size**2, h, width), (n, c // size**2, size, size, h, width)
    crd = node.get("mode", "DCR") == "CRD"
    if n == 1:
        shape = (c // size**2, h * size, width * size)
        x = w.take(node.input(0), (c, h, width))
        w.give(node.output, w.layer("PixelShuffle", [x], shape, {0: size, 1: 0 if crd else 1}))
        return
    perm = (0, 1, 4, 2, 5, 3) if crd else (0, 3, 4, 1, 5, 2)
    w.give(node.output, transposed(w, w.blob(node.input(0)), columns if crd else rows, perm))


def space_to_depth(w: Writer, node: Node) -> None:
    """Blocks of the grid become channels: before the old ones, or (CRD) inside each of them."""
    n, c, h, width = w.shape(node.input(0))
    size = int(node.get("blocksize"))
    crd = node.get("mode", "DCR") == "CRD"
    shape = (n, c, h // size, size, width // size, size)
    w.give(node.output, transposed(w, w.blob(node.input(0)), shape, (0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4)))


def constant(w: Writer, node: Node) -> None:
    """A constant that is an output of the model."""
    value = node.get("value")
    if value is None:
        raise Refused("it holds no tensor")
    w.graph.constants[node.output] = onnx.numpy_helper.to_array(value)
    w.blob(node.output)


def measured(w: Writer, node: Node) -> None:
    """Shape and Size as outputs of the model: they are known."""
    sizes = w.shape(node.input(0))
    part = sizes[int(node.get("start", 0)) : int(node.get("end", len(sizes)))]
    numbers = [math.prod(sizes)] if node.proto.op_type == "Size" else part
    w.give(node.output, w.memory(np.array(numbers, np.float32)))


def triangle(w: Writer, node: Node) -> None:
    """Trilu as a product with a triangle of ones."""
    shape = w.shape(node.input(0))
    k = w.known(node, 1, "k")
    ones = np.ones(shape[-2:], np.float32)
    offset = 0 if k is None else int(k.ravel()[0])
    mask = np.triu(ones, offset) if int(node.get("upper", 1)) else np.tril(ones, offset)
    x = w.take(node.input(0), (math.prod(shape[:-2]), *shape[-2:]))
    w.give(node.output, w.binary(MUL, x, w.memory(mask[None])))


OPERATORS: dict[str, Callable[[Writer, Node], None]] = {
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), reshape),
    "Transpose": transpose,
    "Slice": slice_,
    "Split": split,
    "Concat": concat,
    "Pad": pad,
    "Expand": expanded,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Constant": constant,
    **dict.fromkeys(("Shape", "Size"), measured),
    "Trilu": triangle,
}

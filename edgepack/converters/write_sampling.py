"""ncnn layers for ONNX operators that sample grids (resizing, sampling at computed places), and for LRN."""

import math
from collections.abc import Callable

import numpy as np
import onnx
from ncnn_writer import Node, Refused, Shape, Writer
from onnx.reference import ReferenceEvaluator
from write_moves import cut, joined, transposed
from write_products import product


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
    "Resize": resize,
    "GridSample": grid_sample,
    "LRN": local_response,
}

"""Scales and rounding of a .tflite's weights that change its layers' sums least, from what the layers read."""

import numpy as np
from ai_edge_quantizer.qtyping import BuiltinOperator
from ai_edge_quantizer.utils import tfl_interpreter_utils
from covariance import INPUTS, Covariance, patches, rows_of
from rounding import compensated, least_error, nearest
from tflite_running import feeds
from tflite_weights import Chosen, Layer

SAMPLES = 32


def optimise(request: dict, layers: dict[bytes, Layer], memory_mb: int) -> Chosen:
    """Integers and scales of every layer's weights, as many layers at a time as their covariances fit in memory."""
    waiting: list[dict[bytes, Layer]] = [{}]
    found: Chosen = {}
    free = memory_mb << 20
    for name, layer in layers.items():
        rows = by_rows(layer)
        if rows.shape[2] > INPUTS:
            found[name] = choose(layer, None)
            continue
        size = 8 * rows.shape[0] * rows.shape[2] ** 2
        if waiting[-1] and size > free:
            waiting.append({})
            free = memory_mb << 20
        waiting[-1][name] = layer
        free -= size
    for some in waiting:
        covariances = watch(request, some)
        found |= {name: choose(some[name], covariance.value()) for name, covariance in covariances.items()}
    return found


def by_rows(layer: Layer) -> np.ndarray:
    """The weights as [groups, outputs, inputs]; a convolution's inputs are channels x height x width."""
    values = layer.weights.astype(np.float64)
    if layer.kind == BuiltinOperator.DEPTHWISE_CONV_2D:  # [1, height, width, outputs]
        return np.moveaxis(values[0], 2, 0).reshape(values.shape[3], 1, -1)
    if layer.kind == BuiltinOperator.CONV_2D:  # [outputs, height, width, channels]
        return np.moveaxis(values, 3, 1).reshape(1, len(values), -1)
    return values.reshape(1, *values.shape)


def choose(layer: Layer, covariance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Integers in the file's layout, and scales."""
    rows = by_rows(layer)
    if covariance is not None and len(covariance) not in (1, len(rows)):  # grouped, or several outputs a channel
        if layer.kind == BuiltinOperator.DEPTHWISE_CONV_2D:
            covariance = np.repeat(covariance, len(rows) // len(covariance), axis=0)
        else:
            rows = rows.reshape(len(covariance), -1, rows.shape[2])
    factor = least_error(rows, covariance)
    integers = nearest(rows, factor) if covariance is None else compensated(rows, factor, covariance)
    shape = layer.weights.shape
    if layer.kind == BuiltinOperator.DEPTHWISE_CONV_2D:
        integers = np.moveaxis(integers.reshape(shape[3], shape[1], shape[2]), 0, 2)[None]
    elif layer.kind == BuiltinOperator.CONV_2D:
        integers = np.moveaxis(integers.reshape(shape[0], shape[3], shape[1], shape[2]), 1, 3)
    return np.ascontiguousarray(integers.reshape(shape)), (1.0 / factor.reshape(-1)).astype(np.float32)


def watch(request: dict, layers: dict[bytes, Layer]) -> dict[bytes, Covariance]:
    """The covariance of what each layer reads, over the first samples."""
    interpreter = tfl_interpreter_utils.create_tfl_interpreter(
        request["model"], use_xnnpack=True, num_threads=1, preserve_all_tensors=True
    )
    inputs = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    places = {detail["name"]: detail["index"] for detail in interpreter.get_tensor_details()}
    found: dict[bytes, Covariance] = {}
    for feed, _ in zip(feeds(request), range(SAMPLES), strict=False):
        for name, value in feed.items():
            interpreter.set_tensor(inputs[name], value)
        interpreter.invoke()
        for name, layer in layers.items():
            if layer.input in places:
                values = read_by(layer, interpreter.get_tensor(places[layer.input]))
                found.setdefault(name, Covariance(values.shape[1], values.shape[2])).add(values)
    return found


def read_by(layer: Layer, values: np.ndarray) -> np.ndarray:
    """What a layer's sums read at some positions of one sample, [positions, groups, inputs]."""
    if layer.kind == BuiltinOperator.FULLY_CONNECTED:
        return rows_of(values.reshape(-1, layer.weights.shape[-1]))
    pictures = np.moveaxis(values, 3, 1)
    kernel = list(layer.weights.shape[1:3])
    alone = layer.kind == BuiltinOperator.DEPTHWISE_CONV_2D
    groups = pictures.shape[1] if alone else pictures.shape[1] // layer.weights.shape[3]
    sides = [(0, 0), (0, 0)]
    if layer.same:
        reach = [(size - 1) * step + 1 for size, step in zip(kernel, layer.dilations, strict=True)]
        for axis, (size, stride) in enumerate(zip(pictures.shape[2:], layer.strides, strict=True)):
            total = max((-(-size // stride) - 1) * stride + reach[axis] - size, 0)
            sides[axis] = (total // 2, total - total // 2)
    return patches(pictures, groups, kernel, layer.strides, layer.dilations, sides)

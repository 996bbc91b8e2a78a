"""The .bin of an int8 layer, and the parameters that say so.

The scheme is ncnn's own (its page "quantized-int8-inference"). Scales multiply: ``int8 = round(float * scale)``.
"""

from dataclasses import dataclass

import numpy as np
import rounding
from ncnn_files import ARRAY, FEATURE_MASK, HALF, INT8, NO_WINOGRAD, Block, Layer, finite, raw, tagged
from ncnn_half import fits_half
from ncnn_plan import channels, groups, points
from ncnn_ranges import Coding
from ncnn_watch import Blob, Moments

INT8_TERM, PAD_VALUE = "8", "18"
ADD, BACKWARDS = 0, 7  # operations of BinaryOp: a + b and b - a
WINOGRAD_LIMIT = (2**31 - 1) // 576  # the largest integer sum that survives ncnn's F43


@dataclass
class Rounded:
    """A layer's weights in int8: `integers` [groups, outputs, inputs], one factor for each row."""

    integers: np.ndarray
    factors: np.ndarray  # float32 [groups, outputs]
    bias: np.ndarray  # float32 [outputs], corrected
    corrected: bool

    def sums(self) -> np.ndarray:
        """The sum of each output's weights, as the integers have them, float64 [outputs]."""
        return (self.integers.sum(axis=2, dtype=np.int64) / self.factors.astype(np.float64)).reshape(-1)


def weight_of(layer: Layer, block: Block, weights: np.ndarray) -> np.ndarray:
    """A layer's weights as [groups, outputs, inputs], or [1, groups, ...] where a group has one factor."""
    count = groups(layer)
    return finite(layer, block, weights).reshape(count, layer.int(0) // count, -1)


def round_weights(
    layer: Layer,
    blocks: list[Block],
    weights: np.ndarray,
    blob: Blob,
    moments: Moments | None,
    *,
    effort: str,
    given: np.ndarray | None,
) -> Rounded:
    """Choose a layer's integers, and take what they do to the mean of each output out of its bias.

    Nagel et al. 2019, arXiv:1906.04721, section 4.2, with measured means. `given` are factors that the model came with.
    """
    matrix = weight_of(layer, blocks[0], weights)
    count, outputs = matrix.shape[:2]
    bias = finite(layer, blocks[1], weights) if len(blocks) > 1 else np.zeros(count * outputs, np.float32)
    # ncnn has one factor for each group of a grouped convolution.
    shared = matrix.reshape(count, 1, -1) if layer.type == "ConvolutionDepthWise" else matrix
    covariance = moments.covariance() if moments is not None and moments.count else None
    if given is not None:
        factors = np.broadcast_to(given.reshape(*shared.shape[:2]), (count, outputs)).astype(np.float32)
        integers = rounding.nearest(matrix, factors)
    else:
        alike = shared.shape == matrix.shape
        if effort == "fast":
            factors = rounding.whole_range(shared)
        else:
            factors = rounding.least_error(shared, covariance if alike else None)
        factors = np.broadcast_to(factors, (count, outputs))
        if covariance is None:
            integers = rounding.nearest(matrix, factors)
        else:
            integers = rounding.compensated(matrix, factors, covariance)

    mean = moments.mean() if moments is not None and moments.count else None
    by_channel = blob.mean(channels(layer))
    if mean is None and by_channel is not None:
        mean = np.repeat(by_channel.reshape(count, -1), points(layer), axis=1)
    if mean is not None and given is None:
        error = integers / factors[:, :, None].astype(np.float64) - matrix
        bias = (bias - (error @ mean[:, :, None]).reshape(-1)).astype(np.float32)
    return Rounded(integers, factors, bias, mean is not None or len(blocks) > 1)


def write_layer(layer: Layer, rounded: Rounded, source: Coding, made: Coding | None, *, chained: bool) -> bytes:
    """The layer's part of the .bin in INT8; changes its parameters to say so.

    `source` is the coding of what it reads, `made` of what it writes where that is shifted or handed on as int8.
    """
    bias = rounded.bias.astype(np.float64)
    sign = source.sign
    if source.zero:
        bias = bias + source.shift * source.sign * rounded.sums()
        if any(layer.int(key) for key in (4, 14, 15, 16)):
            layer.params[PAD_VALUE] = str(source.zero)
    if made is not None and made.zero:
        bias = made.sign * bias - made.shift
        sign *= made.sign
        without_activation(layer)
    written = rounded.corrected or bool(source.zero) or (made is not None and bool(made.zero))
    if written:
        layer.params["1" if layer.type == "InnerProduct" else "5"] = "1"

    grouped = layer.type == "ConvolutionDepthWise"
    if layer.type == "Convolution" and (layer.int(1), layer.int(11, layer.int(1))) == (3, 3):
        if int(np.abs(rounded.integers.astype(np.int64)).sum(axis=2).max()) * 127 > WINOGRAD_LIMIT:
            layer.params[FEATURE_MASK] = str(layer.int(int(FEATURE_MASK)) | NO_WINOGRAD)
    layer.params[INT8_TERM] = str((1 if grouped else 2) + (100 if chained else 0))
    factors = rounded.factors[:, 0] if grouped else rounded.factors
    check(layer, factors, source)
    terms = [bias[: len(bias) * written], factors.reshape(-1), source.scale]
    if chained:
        assert made is not None
        terms.append(made.scale)
    return tagged((sign * rounded.integers).astype(np.int8).tobytes(), INT8) + raw(*terms)


def check(layer: Layer, factors: np.ndarray, source: Coding) -> None:
    """ncnn divides by the product of both factors, in float32."""
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        steps = np.float32(1.0) / (factors.astype(np.float32) * np.float32(source.scale))
    if not (np.isfinite(steps).all() and (steps > 0.0).all()):
        raise SystemExit(
            f"the layer {layer.name} can't be quantized: its weights and inputs (blob {layer.bottoms[0]}) are so large "
            "or small that a step of their products is no float32; keep it in float"
        )


def shift_float(layer: Layer, blocks: list[Block], weights: np.ndarray, made: Coding) -> bytes:
    """A layer that stays in float, before a blob with a zero point."""
    bias = finite(layer, blocks[1], weights) if len(blocks) > 1 else np.zeros(layer.int(0), np.float32)
    without_activation(layer)
    layer.params["1" if layer.type == "InnerProduct" else "5"] = "1"
    values = made.sign * finite(layer, blocks[0], weights)
    return narrow(values) + raw(made.sign * bias.astype(np.float64) - made.shift)


def shift_before(layer: Layer, source: Coding) -> Layer:
    """A new layer that gives ``sign * value - shift`` to `layer`, whose input changes to that."""
    bottom = layer.bottoms[0]
    top = f"{bottom}_shifted_{layer.name}"
    layer.bottoms[0] = top
    params = {"0": str(BACKWARDS if source.sign < 0 else ADD), "1": "1", "2": repr(-source.shift)}
    return Layer("BinaryOp", f"{layer.name}_shift", [bottom], [top], params)


def narrow(values: np.ndarray) -> bytes:
    """Weights of a layer that stays in float, in the file as float16 where that holds them."""
    return tagged(values.astype(np.float16).tobytes(), HALF) if fits_half(values) else tagged(raw(values), 0)


def without_activation(layer: Layer) -> None:
    """Leave a ReLU or Clip to the limits of the integers that are made of the output."""
    layer.params.pop("9", None)
    layer.params.pop(str(ARRAY - 10), None)

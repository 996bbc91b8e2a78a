"""Layers of ncnn with int8 weights whose inputs it measures as it runs, or that read a table: Gemm, attention, Embed.

For the weights of a Gemm and for the table of an Embed ncnn has one factor, where columns differ in size by a factor
of ten and more. So columns are evened out before, and a product with what each was divided by follows the layer: two
operators of no weight (MemoryData and BinaryOp) for 4 to 10 dB on a text encoder.
"""

from collections.abc import Callable

import numpy as np
import rounding
from ncnn_files import INT8, Block, Layer, finite, raw, tagged

DYNAMIC_TERM = "18"
PRODUCT = "2"  # operation of BinaryOp
SPREAD = 64.0  # largest over smallest factor of columns: what a sum is multiplied with must not overflow float16
PER_COLUMN = 4  # a Gemm's parameter 10: one addend per column
Written = list[tuple[Layer, bytes]]  # layers in their order, each with its part of the .bin


def write_gemm(layer: Layer, blocks: list[Block], weights: np.ndarray) -> Written:
    """A product with a constant right side; ncnn measures the left side row by row as it runs."""
    by_rows = bool(layer.int(3))
    n, k = layer.int(8), layer.int(9)
    values = finite(layer, blocks[0], weights)
    layer.params[DYNAMIC_TERM] = "2"
    rest = [stored(block, weights) for block in blocks[1:]]
    plain = float(layer.params.get("0", 1)) == 1.0 and not layer.int(11) and not layer.int(14) and n > 1
    added = layer.int(10) if layer.int(6) else -1
    if not plain or added not in (-1, PER_COLUMN) or (layer.int(6) == 0 and len(layer.bottoms) > 1):
        data, factors = whole(values, 1)
        return [(layer, b"".join([data, *rest, raw(factors)]))]
    matrix = values.reshape(n, k) if by_rows else values.reshape(k, n).T
    gains = evening(matrix)
    even = matrix / gains[:, None]
    data, factors = whole(even if by_rows else even.T, 1)
    if added == PER_COLUMN:
        rest = [tagged(raw(finite(layer, blocks[1], weights) / gains), 0)]
    return [(layer, b"".join([data, *rest, raw(factors)])), *multiplied(layer, gains)]


def write_embed(layer: Layer, blocks: list[Block], weights: np.ndarray) -> Written:
    """A table of rows."""
    columns = layer.int(0)
    table = finite(layer, blocks[0], weights).reshape(-1, columns)
    gains = evening(table.T) if columns > 1 else np.ones(1, np.float32)
    data, factors = whole(table / gains, 1)
    layer.params[DYNAMIC_TERM] = "2"
    bias = raw(finite(layer, blocks[1], weights) / gains) if len(blocks) > 1 else b""
    return [(layer, data + bias + raw(factors)), *multiplied(layer, gains)]


def write_attention(layer: Layer, blocks: list[Block], weights: np.ndarray) -> Written:
    """The four projections: a factor per row for query, key and value, one for the output."""
    inner = layer.int(0)
    written, tail = b"", b""
    for index, (weight, bias) in enumerate(zip(blocks[::2], blocks[1::2], strict=True)):
        data, factors = whole(finite(layer, weight, weights), inner if index < 3 else 1)
        written += data + stored(bias, weights)
        tail += raw(factors)
    layer.params[DYNAMIC_TERM] = "2"
    return [(layer, written + tail)]


def evening(rows: np.ndarray) -> np.ndarray:
    """What to divide each row by so that their largest values are alike, float32, from 1/`SPREAD` to 1."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    return np.clip(largest / max(largest.max(initial=0.0), rounding.TINY), 1.0 / SPREAD, 1.0).astype(np.float32)


def multiplied(layer: Layer, gains: np.ndarray) -> Written:
    """Layers that multiply each column of what `layer` gives; they give what it gave before."""
    if (gains == 1.0).all():
        return []
    top, even, constant = layer.tops[0], f"{layer.tops[0]}_even", f"{layer.tops[0]}_gains"
    layer.tops[0] = even
    params = {"0": str(len(gains)), "1": "1"}
    memory = Layer("MemoryData", f"{layer.name}_gains", [], [constant], params)
    product = Layer("BinaryOp", f"{layer.name}_uneven", [even, constant], [top], {"0": PRODUCT})
    return [(memory, raw(gains)), (product, b"")]


def stored(block: Block, weights: np.ndarray) -> bytes:
    """An array as it is in the .bin."""
    return weights[block.start : block.end].tobytes()


def whole(values: np.ndarray, count: int) -> tuple[bytes, np.ndarray]:
    """Weights cut into `count` rows, each over the whole range of int8, and the rows' factors."""
    matrix = values.reshape(1, count, -1)
    factors = rounding.whole_range(matrix)
    return tagged(rounding.nearest(matrix, factors).tobytes(), INT8), factors


DYNAMIC: dict[str, Callable[[Layer, list[Block], np.ndarray], Written]] = {
    "Embed": write_embed,
    "Gemm": write_gemm,
    "MultiHeadAttention": write_attention,
}

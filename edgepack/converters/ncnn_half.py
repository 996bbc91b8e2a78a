"""float16 weights for ncnn.

pnnx can write them too, but flushes what is below 6.1e-5 to zero. PP-OCR's detector has a layer whose weights are
nearly all below that, and its output became noise. Here such a layer stays float32, in the file and in the arithmetic.
"""

from typing import BinaryIO

import numpy as np
from ncnn_files import FEATURE_MASK, HALF, Block, Layer, floats, tagged

NO_HALF = 0b11  # neither float16 arithmetic nor storage
HALF_LARGEST, HALF_SMALLEST = 65504.0, 6.104e-5
HALF_LOSS = 1e-5  # share of the weights' power: 50 dB


def halve(request: dict, layers: list[Layer], blocks: list[list[Block]], weights: np.ndarray, file: BinaryIO) -> dict:
    """Write the .bin with tagged arrays as float16. Returns the layers that stay float32."""
    kept = []
    for layer, arrays in zip(layers, blocks, strict=True):
        largest = max((block.count for block in arrays), default=0)
        for block in arrays:
            values = floats(block, weights) if block.tagged else None
            if values is not None and fits_half(values):
                file.write(tagged(values.astype(np.float16).tobytes(), HALF))
                continue
            file.write(weights[block.start : block.end].tobytes())
            if values is not None and 2 * block.count >= largest:  # the weights themselves, not a bias beside them
                layer.params[FEATURE_MASK] = str(layer.int(int(FEATURE_MASK)) | NO_HALF)
                kept += [] if layer in kept else [layer]
    give_float32_inputs(layers, kept)
    return {"float32": [layer.name for layer in kept]}


def give_float32_inputs(layers: list[Layer], kept: list[Layer]) -> None:
    """Put a layer that ncnn has no float16 form of before each input of the kept layers.

    ncnn hands a float16 blob to a layer whose feature mask forbids float16 storage as it is, and that layer then reads
    past its end as if it were float32 (heap corruption on Arm CPUs with asimdhp). Before a layer without float16
    support it does cast to float32, and Dropout with its default scale of 1 changes no value.
    """
    for layer in kept:
        place = next(index for index, each in enumerate(layers) if each is layer)
        for position, bottom in enumerate(list(layer.bottoms)):
            top = f"{bottom}_float32_{position}"
            cast = Layer("Dropout", f"{layer.name}_float32_{position}", [bottom], [top], {})
            layers.insert(place + position, cast)
            layer.bottoms[position] = top


def fits_half(values: np.ndarray) -> bool:
    """Whether float16 holds these numbers well enough when a reader takes its subnormal numbers for zero."""
    size = np.abs(values)
    if not np.isfinite(values).all() or size.max(initial=0.0) > HALF_LARGEST:
        return False
    lost = np.square(values[size < HALF_SMALLEST], dtype=np.float64).sum()
    return bool(lost <= HALF_LOSS * np.square(values, dtype=np.float64).sum())

"""Made-up samples for verification when the user gives no data: the same bytes for the same model, every time.

Pictures are smooth noise in the declared range, or of mean 0 and deviation 1 without a declaration; other floats are
normal; whole numbers are 0..9 (of 8 bits: any), masks are 1, sample rates are 16000. They show whether a float
conversion computes the same, and say nothing about accuracy on real data; INT8 is never calibrated on them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import preprocess
from edgepack.errors import CalibrationError
from edgepack.types import Preprocess, TensorSpec

Array = npt.NDArray[Any]
IDS = 10  # whole numbers stay below this: vocabularies and lists of classes are longer
SAMPLE_RATES = ("sr", "sample_rate", "sampling_rate")
OCTAVES = ((4, 0.5), (16, 0.3), (64, 0.2))  # (cells a side, share of the amplitude)


def sample(spec: TensorSpec, declared: Preprocess | None, random: np.random.Generator) -> Array:
    """One sample of `spec`: its shape, its dtype."""
    dtype = np.dtype(spec.dtype)
    name = spec.name.lower()
    if declared is not None:
        try:
            return _declared_image(spec, replace(declared, resize=None, crop=None, pad=None), random)
        except CalibrationError:
            pass  # the declaration doesn't fit this input: that is said where pictures are used
    if dtype.kind == "b":
        return random.integers(0, 2, spec.shape).astype(dtype)
    if dtype.kind in "iu":
        if "mask" in name:
            return np.ones(spec.shape, dtype)
        if name in SAMPLE_RATES:
            return np.full(spec.shape, min(16000, np.iinfo(dtype).max), dtype)
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max + 1) if dtype.itemsize == 1 else (0, IDS)
        return random.integers(low, high, spec.shape).astype(dtype)
    layout = preprocess.guess_layout(spec.shape)
    if layout is None:
        return np.asarray(random.standard_normal(spec.shape)).astype(dtype)
    sizes = dict(zip(layout, spec.shape, strict=True))
    image = _smooth(sizes["H"], sizes["W"], sizes["C"], random)
    image = (image - image.mean()) / max(float(image.std()), 1e-6)
    inner = tuple("HWC".index(axis) for axis in layout if axis != "N")
    return np.ascontiguousarray(np.transpose(image, inner)).astype(dtype).reshape(spec.shape)


def _declared_image(spec: TensorSpec, declared: Preprocess, random: np.random.Generator) -> Array:
    axes = preprocess.axes_of(declared, spec.shape)
    image = _smooth(spec.shape[axes.index("H")], spec.shape[axes.index("W")], 3, random)
    return preprocess.apply(np.rint(image).astype(np.uint8), declared, spec.shape, spec.dtype)


def _smooth(height: int, width: int, channels: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Noise of three octaves in 0..255, [height, width, channels]: structure at several scales, like a photograph's."""
    total = np.zeros((height, width, channels), np.float32)
    for cells, weight in OCTAVES:
        grid = random.random((cells, cells, channels), np.float32) * 255
        total += np.float32(weight) * preprocess.bilinear(grid, (height, width))
    return total

"""Whether a classifier is surer of its answers when red and blue are exchanged.

A network that gets pictures in the wrong order still answers, with less confidence: EfficientNet-Lite0 on 20 pictures
of ImageNet with 0.61 instead of 0.73. So the float model answers coloured samples in both orders, and when it is
clearly surer in the other one, that is said. *Clearly* is by at least `SURER` in confidence and `DEVIATIONS` standard
errors of the paired logarithms (Student 1908, "The probable error of a mean"), on at least `LEAST` samples. Nothing is
said of models that give no probabilities, gray pictures, or close results: they don't tell.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import arrays, preprocess
from edgepack.lint import declared_for
from edgepack.types import Model, Preprocess, TensorSpec

Array = npt.NDArray[Any]
LEAST, MOST = 16, 48  # samples
CLASSES = 3  # of fewer the largest probability tells little
SURER = 0.05
DEVIATIONS = 3.0
COLOURED = 0.05  # the least difference of red and blue, as a share of the sample's deviation


def picture(model: Model, declared: Mapping[str, Preprocess]) -> tuple[int, int] | None:
    """The index of the input that is a colour picture and its channel axis, where `model` is a classifier with one."""
    found = []
    for index, spec in enumerate(model.inputs):
        how = declared_for(spec, model.inputs, declared)
        layout = preprocess.axes_of(how, spec.shape) if how is not None else preprocess.guess_layout(spec.shape)
        if layout is not None and "C" in layout and spec.shape[layout.index("C")] == 3 and spec.dtype == "float32":
            found.append((index, layout.index("C")))
    one_answer = len(model.outputs) == 1 and _is_answer(model.outputs[0])
    return found[0] if one_answer and len(found) == 1 else None


def both_orders(
    samples: Path, model: Model, place: tuple[int, int], declared: Mapping[str, Preprocess], out: Path
) -> int:
    """Write up to `MOST` coloured samples as they are, then the same with red and blue exchanged; returns how many.

    What is exchanged are the picture's channels: a declared mean and std stay where they are.
    """
    found = [next(iter(arrays.open_arrays(samples / f"{i}.npy").values())) for i in range(len(model.inputs))]
    index, axis = place
    how = declared_for(model.inputs[index], model.inputs, declared)
    every = range(found[index].shape[0])
    chosen = [n for n, row in zip(every, found[index].rows(every), strict=True) if _coloured(row, axis)]
    chosen = chosen[:: -(-len(chosen) // MOST) or 1]
    if len(chosen) < LEAST:
        return 0
    for number, (array, each) in enumerate(zip(found, model.inputs, strict=True)):
        again = array.rows(chosen)
        other = (exchanged(row, axis, how) for row in again) if number == index else again
        both = itertools.chain(array.rows(chosen), other)
        arrays.write_rows(out / f"{number}.npy", each.dtype, each.shape, 2 * len(chosen), both)
    return len(chosen)


def exchanged(row: Array, axis: int, how: Preprocess | None) -> Array:
    """`row` as it would be had the picture's first and last channel been exchanged before mean and std."""
    if how is None:
        return np.ascontiguousarray(np.flip(row, axis))
    sizes = [3 if each == axis else 1 for each in range(row.ndim)]
    mean, std = (np.broadcast_to(np.asarray(part, np.float32), (3,)).reshape(sizes) for part in (how.mean, how.std))
    result: Array = (np.flip(row * std + mean, axis) - mean) / std
    return np.ascontiguousarray(result.astype(row.dtype))


def judge(answers: Array, count: int) -> tuple[float, float] | None:
    """Mean confidence as given and exchanged, where the latter is clearly better.

    `answers` is [2 * count, 1, ..., classes], of the samples of `both_orders`.
    """
    values = answers.reshape(2 * count, -1, answers.shape[-1]).astype(np.float64)
    if not np.allclose(values.sum(axis=-1), 1.0, atol=0.01) or values.min() < 0:
        if values.shape[1] > 1:
            return None  # many rows that are no probabilities: boxes, features
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        values /= values.sum(axis=-1, keepdims=True)
    confidence = np.maximum(values.max(axis=-1), 1e-12)
    gain = np.log(confidence).mean(axis=1)
    difference = gain[count:] - gain[:count]
    error = difference.std(ddof=1) / np.sqrt(count)
    given, other = float(confidence[:count].mean()), float(confidence[count:].mean())
    clear = difference.mean() >= DEVIATIONS * error > 0 and other >= given * (1 + SURER)
    return (given, other) if clear else None


def sentence(label: str, spec: TensorSpec, how: Preprocess | None, count: int, given: float, other: float) -> str:
    """What the user is told."""
    if how is None or how.color == "GRAY":
        cure = "are red and blue exchanged in the arrays? Reverse the channel axis"
    else:
        cure = f'declare color = "{"RGB" if how.color == "BGR" else "BGR"}" in place of "{how.color}"?'
    return (
        f"the float model is surer of {count} samples of {label} with red and blue exchanged (mean confidence "
        f"{other:.2f} instead of {given:.2f}): input {json.dumps(spec.name)}: {cure}"
    )


def _is_answer(spec: TensorSpec) -> bool:
    long = spec.shape[-1] if spec.shape else 0
    return np.dtype(spec.dtype).kind == "f" and long >= CLASSES and 2 <= len(spec.shape) <= 3 and spec.shape[0] == 1


def _coloured(row: Array, axis: int) -> bool:
    first, last = np.take(row, 0, axis), np.take(row, 2, axis)
    return bool(np.abs(first - last).mean() > COLOURED * row.std())

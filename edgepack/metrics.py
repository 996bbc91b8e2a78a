"""Scores of a model's outputs on evaluation data, read sample by sample: what `--metric` names.

- ``top1``: percent of samples whose largest score is the label's, or without labels the float model's own. Of equal
  scores the first is the largest; a sample with NaN among its scores counts as wrong.
- ``cosine``: between outputs and the float model's, pooled over the samples; the worst output counts.
- ``sqnr``: ``10 log10`` of signal over error power in dB, pooled likewise.
- ``module:function``: the user's own, computed in a process of its own (`converters/run_metric.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import converter
from edgepack.errors import MetricError
from edgepack.types import TensorSpec

Array = npt.NDArray[Any]
BUILT_IN = ("top1", "cosine", "sqnr")
UNITS = {"top1": "%", "sqnr": "dB"}
PERFECT = {"top1": 100.0, "cosine": 1.0}
PERFECT_DB = 200.0


def is_function(metric: str) -> bool:
    """Whether a metric is the user's ``module:function``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", metric) is not None


def score(metric: str, outputs: tuple[TensorSpec, ...], reference: Path, got: Path, labels: Array | None) -> float:
    """The score of the tensor folder `got`; `reference` holds the float model's outputs.

    Raises `MetricError` where the metric doesn't fit the outputs, or the outputs have NaN where there is no score.
    """
    if metric == "top1":
        return _top1(outputs, reference, got, labels)
    pooled = [_pool(spec, _load(reference, i), _load(got, i)) for i, spec in enumerate(outputs)]
    return min(p[0 if metric == "cosine" else 1] for p in pooled)


def scores_index(outputs: tuple[TensorSpec, ...]) -> int:
    """The one output that is a vector of scores. Raises `MetricError`."""
    found = [i for i, spec in enumerate(outputs) if _is_vector(spec)]
    if len(found) != 1:
        listed = ", ".join(f"{spec.name!r} {spec.dtype} {list(spec.shape)}" for spec in outputs)
        raise MetricError(
            f"The metric top1 needs a model with one vector of scores; this one gives {listed}.",
            "Use --metric cosine, sqnr, or module:function of your own.",
        )
    return found[0]


def _is_vector(spec: TensorSpec) -> bool:
    return np.dtype(spec.dtype).kind == "f" and bool(spec.shape) and math.prod(spec.shape) == spec.shape[-1] >= 2


def _top1(outputs: tuple[TensorSpec, ...], reference: Path, got: Path, labels: Array | None) -> float:
    index = scores_index(outputs)
    exact, values = _load(reference, index), _load(got, index)
    classes = outputs[index].shape[-1]
    if labels is not None and labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise MetricError(
            f"The labels go from {labels.min()} to {labels.max()}, but the model has {classes} classes.",
            "Labels are numbers from 0 on. Folders of classes count in the order of their names, unless all names "
            "are whole numbers: then those are the classes.",
        )
    right = 0
    for number in range(len(exact)):
        row = values[number].ravel()
        wanted = int(labels[number]) if labels is not None else int(exact[number].argmax())
        right += not np.isnan(row).any() and int(row.argmax()) == wanted
    return 100.0 * right / len(exact)


def _pool(spec: TensorSpec, reference: Array, got: Array) -> tuple[float, float]:
    """Cosine and SQNR of one output."""
    signal = power = both = noise = 0.0
    for number in range(len(reference)):
        exact, value = (rows[number].ravel().astype(np.float64) for rows in (reference, got))
        numbers = np.isfinite(exact)
        alike = np.array_equal(value[~numbers], exact[~numbers], equal_nan=True)
        if not np.isfinite(value[numbers]).all() or not alike:
            raise MetricError(f"Output {spec.name!r} of evaluation sample {number} has NaN or infinite values.")
        exact, value = np.where(numbers, exact, 0.0), np.where(numbers, value, 0.0)
        signal += float(exact @ exact)
        power += float(value @ value)
        both += float(exact @ value)
        noise += float(np.square(exact - value).sum())
    size = math.sqrt(signal * power)
    cosine = min(1.0, both / size) if size else float(signal == power)
    if noise == 0.0:
        return cosine, PERFECT_DB
    return cosine, max(-PERFECT_DB, 10.0 * math.log10(signal / noise)) if signal else -PERFECT_DB


def _load(folder: Path, index: int) -> Array:
    found: Array = np.load(folder / f"{index}.npy", mmap_mode="r", allow_pickle=False)
    return found


def own_score(
    function: str, reference: Path, got: Path, labels: Path | None, out: Path, python: Path | None, site: Sequence[str]
) -> float:
    """What the user's ``module:function`` says of the tensor folder `got`; it runs in a process of its own.

    Raises `MetricError` when it can't be found, raises, or returns anything but a finite number.
    """
    request = {
        "function": function,
        "reference": str(reference),
        "outputs": str(got),
        "labels": str(labels) if labels is not None else None,
        "cwd": str(Path.cwd()),
        "pythonpath": list(site),
    }
    # Any environment with numpy will do where the user names none.
    interpreter = python if python is not None else converter.environment("run_onnxruntime")
    found = converter.convert("run_metric", request, out, python=interpreter)
    if "error" in found:
        raise MetricError(found["error"], found["hint"])
    return float(found["score"])

"""Outputs against the source's: the numbers that decide whether a variant may ship.

SQNR is ``10 log10(sum(reference^2) / sum((reference - output)^2))`` in dB, pooled over all samples; cosine is
pooled the same way. A classifier-like output is one float vector of at least three values a sample; its top-1
agreement counts samples whose arg-max is the source's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.types import Bound, Metric, TensorSpec, Verdict

Array = npt.NDArray[Any]
PERFECT_DB = 200.0  # what an exact match is reported as: JSON has no infinity
QUIET = 0.01  # a sample below this share of the largest one's norm is next to nothing
WORST_SAMPLE = 0.5  # how much further than the pooled bound (1 - cosine) one single sample may be, times ten


def compare(
    specs: tuple[TensorSpec, ...], reference: Path, outputs: Path, zero_points: tuple[int, ...] = ()
) -> tuple[Metric, ...]:
    """Compare two tensor folders output by output; `zero_points` are what quantized outputs hold for 0."""
    return tuple(
        measure(
            spec.name,
            np.load(reference / f"{index}.npy", mmap_mode="r", allow_pickle=False),
            np.load(outputs / f"{index}.npy", mmap_mode="r", allow_pickle=False),
            zero_points[index] if zero_points else 0,
        )
        for index, spec in enumerate(specs)
    )


def measure(name: str, reference: Array, output: Array, zero_point: int = 0) -> Metric:
    """Compare one output; both arrays are [samples, *shape]. Raises `ValueError` when the shapes differ."""
    if reference.shape != output.shape:
        raise ValueError(f"output {name!r} has shape {output.shape[1:]}, the source's is {reference.shape[1:]}")
    wanted = reference.reshape(len(reference), -1).astype(np.float64) - zero_point
    got = output.reshape(len(output), -1).astype(np.float64) - zero_point
    # NaN and infinities of the source ask for the same; they say nothing about the numbers beside them.
    numbers = np.isfinite(wanted)
    finite = bool(np.isfinite(got[numbers]).all() and np.array_equal(got[~numbers], wanted[~numbers], equal_nan=True))
    if not finite:
        return Metric(
            output=name,
            cosine=0.0,
            cosine_min=0.0,
            sqnr_db=-PERFECT_DB,
            max_abs=float(np.finfo(np.float32).max),
            top1=None,
            finite=False,
        )
    wanted, got = np.where(numbers, wanted, 0.0), np.where(numbers, got, 0.0)
    error = got - wanted
    return Metric(
        output=name,
        cosine=_cosine(wanted.ravel(), got.ravel()),
        cosine_min=_worst_cosine(wanted, got),
        sqnr_db=_sqnr(float((wanted**2).sum()), float((error**2).sum())),
        max_abs=float(np.abs(error).max(initial=0.0)),
        top1=_top1(wanted, got) if _classifier_like(reference) else None,
        finite=finite,
    )


def judge(metrics: tuple[Metric, ...], bound: Bound, samples: int) -> Verdict:
    """Hold the metrics against a bound; the reason names the first output that misses it, with figures."""
    reason = ""
    for metric in metrics:
        reason = _miss(metric, bound)
        if reason:
            break
    return Verdict(metrics=metrics, bound=bound, samples=samples, passed=not reason, reason=reason)


def worst_sample_bound(bound: Bound) -> float:
    """The least cosine of any single sample: ten times as far from 1 as the pooled bound, but at least 0.5."""
    return max(WORST_SAMPLE, 1.0 - 10.0 * (1.0 - bound.cosine))


def _miss(metric: Metric, bound: Bound) -> str:
    name = f"output {metric.output!r}"
    if not metric.finite:
        return f"{name} has NaN or infinite values where the source has none, or none where the source has"
    if metric.cosine < bound.cosine:
        return f"{name} has cosine {metric.cosine:.4f} to the source, the bound is {bound.cosine}"
    if metric.cosine_min < worst_sample_bound(bound):
        return (
            f"{name} has cosine {metric.cosine_min:.4f} on its worst sample, "
            f"the bound is {worst_sample_bound(bound):.4g}"
        )
    if bound.sqnr_db is not None and metric.sqnr_db < bound.sqnr_db:
        return f"{name} has SQNR {metric.sqnr_db:.1f} dB, the bound is {bound.sqnr_db:g} dB"
    if bound.top1 is not None and metric.top1 is not None and metric.top1 < bound.top1:
        return f"{name} keeps the source's top-1 on {metric.top1:.1%} of samples, the bound is {bound.top1:.1%}"
    return ""


def _cosine(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return min(1.0, float(a @ b) / norms)


def _worst_cosine(wanted: Array, got: Array) -> float:
    """The least cosine of any sample that matters.

    A sample whose wanted and given values both are next to nothing beside the other samples' (a detector on an
    empty image) has no direction worth comparing; its error is in the pooled SQNR.
    """
    sizes = np.linalg.norm(wanted, axis=1)
    quiet = np.maximum(sizes, np.linalg.norm(got, axis=1)) < QUIET * sizes.max(initial=0.0)
    return min((_cosine(w, g) for w, g, q in zip(wanted, got, quiet, strict=True) if not q), default=1.0)


def _sqnr(signal: float, noise: float) -> float:
    if noise == 0.0:
        return PERFECT_DB
    if signal == 0.0:
        return -PERFECT_DB
    return max(-PERFECT_DB, min(PERFECT_DB, 10.0 * math.log10(signal / noise)))


def _classifier_like(reference: Array) -> bool:
    shape = reference.shape[1:]
    return reference.dtype.kind == "f" and bool(shape) and shape[-1] >= 3 and math.prod(shape) == shape[-1]


def _top1(wanted: Array, got: Array) -> float:
    return float((wanted.argmax(axis=1) == got.argmax(axis=1)).mean())

"""How near outputs are to those of the float model, with bootstrap intervals over what the inputs were cut from."""

from __future__ import annotations

from typing import Any

import numpy as np

DRAWS = 2000
SURE = 0.5  # probability of the float model's largest class from which it counts as sure


def agreement(wanted: list[np.ndarray], got: list[np.ndarray], groups: np.ndarray) -> dict[str, Any]:
    """SQNR of the worst output in dB with its 95 % interval; for one vector of scores the share of equal top-1 too."""
    count = len(wanted[0])
    ratios = []
    for exact, value in zip(wanted, got, strict=True):
        if exact.dtype.kind == "f":
            flat = exact.reshape(count, -1).astype(np.float64)
            noise = np.square(flat - value.reshape(count, -1)).sum(axis=1)
            ratios.append((np.square(flat).sum(axis=1), noise))
    power, noise = min(ratios, key=lambda pair: decibels(pair[0].sum(), pair[1].sum()))
    found: dict[str, Any] = {"sqnr": decibels(power.sum(), noise.sum())}
    names = np.unique(groups)
    draws = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    members = [np.flatnonzero(groups == name) for name in names]
    powers, noises = (np.array([v[m].sum() for m in members]) for v in (power, noise))
    found["sqnr_interval"] = interval([decibels(powers[d].sum(), noises[d].sum()) for d in draws])
    scores = wanted[0].reshape(count, -1)
    if len(wanted) == 1 and scores.shape[1] >= 3 and max(wanted[0].shape[1:]) == scores.shape[1]:
        kept = scores.argmax(axis=1) == got[0].reshape(count, -1).argmax(axis=1)
        found["top1"] = float(kept.mean())
        share, sizes = (np.array([f(kept[m]) for m in members]) for f in (np.sum, len))
        found["top1_interval"] = interval([share[d].sum() / sizes[d].sum() for d in draws])
        stretched = np.exp(scores - scores.max(axis=1, keepdims=True))
        sure = (stretched / stretched.sum(axis=1, keepdims=True)).max(axis=1) > SURE
        found["sure"] = [int(kept[sure].sum()), int(sure.sum())]
    return found


def decibels(power: float, noise: float) -> float:
    return float(min(200.0, 10.0 * np.log10(max(power, 1e-30) / max(noise, 1e-30))))


def interval(values: list[float]) -> list[float]:
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]

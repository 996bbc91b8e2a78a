"""Percentiles, intervals and comparisons that hold for latencies: skewed, with spikes, drifting, not independent.

Nothing here assumes a normal distribution. Where samples that follow each other resemble each other (they always
do), the unit of evidence is a *block*: one run of a harness, of which only the median counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COVERAGE = 0.95  # of the interval beside a median
LEVEL = 0.01  # chance that two equal variants are called different
LEAST = 0.01  # differences below 1 % are called a tie: no user would act on them
UNSTEADY = math.log(1.05)


def samples_needed(quantile: float, confidence: float = 0.95) -> int:
    """How many samples a quantile needs: 29 for p90, 59 for p95, 299 for p99 (at 95 %).

    The smallest n of which the largest sample is at or above the quantile with `confidence`: ``1 - q^n``. With fewer,
    the sample may well hold nothing of the tail that the percentile speaks of. (Wilks, "Determination of sample
    sizes for setting tolerance limits", 1941; MLPerf's early stopping uses the same argument.)
    """
    if not 0 < quantile < 1:
        raise ValueError("a quantile is between 0 and 1")
    return math.ceil(math.log(1 - confidence) / math.log(quantile))


def percentile(samples: Sequence[int] | npt.NDArray[Any], quantile: float) -> int | None:
    """The sample at `quantile`, or None where the samples are too few to speak of it.

    One of the samples, never a mix of two: the inverse of the empirical distribution function (definition 1 of
    Hyndman & Fan, "Sample quantiles in statistical packages", 1996). The median needs one sample only.
    """
    n = len(samples)
    if n == 0 or (quantile > 0.5 and n < samples_needed(quantile)):
        return None
    return int(np.partition(np.asarray(samples), (k := max(math.ceil(quantile * n - 1e-9), 1) - 1))[k])


def quantile_interval(
    samples: Sequence[float] | npt.NDArray[Any], quantile: float = 0.5, coverage: float = COVERAGE
) -> tuple[float, float, float] | None:
    """(low, high, its coverage) for the quantile of what independent `samples` were drawn from; None: too few.

    Two of the samples; which, says the binomial distribution, whatever the samples' own is (David & Nagaraja, "Order
    Statistics", 2003, section 7.1). At most ``(1 - coverage) / 2`` lies beyond either end.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n, tail = len(ordered), (1 - coverage) / 2
    below = _binomial_cdf(n, quantile)  # below[k] = P(at most k samples are below the quantile)
    low = int(np.searchsorted(below, tail, side="right"))  # P(at most low - 1) <= tail
    high = int(np.searchsorted(below, 1 - tail - 1e-12)) + 1  # P(at most high - 1) >= 1 - tail
    if n == 0 or low < 1 or high > n:
        return None
    return float(ordered[low - 1]), float(ordered[high - 1]), float(below[high - 1] - below[low - 1])


def steady_start(samples: Sequence[int] | npt.NDArray[Any], width: int = 5) -> int:
    """How many of the first samples are warm-up: at most half of them.

    The first sample that is within 5 % of the median of the second half and from which the median of `width` samples
    is so, too. A spike later on is no warm-up (it doesn't move a median of five): the tail of the distribution stays.
    """
    values = np.asarray(samples, np.float64)
    half = len(values) // 2
    if half < width:
        return 0
    logs = np.log(np.maximum(values, 1.0))
    level = float(np.median(logs[half:]))
    windows = np.lib.stride_tricks.sliding_window_view(logs[: half + width - 1], width)
    near = (np.abs(np.median(windows, axis=1) - level) <= UNSTEADY) & (np.abs(logs[:half] - level) <= UNSTEADY)
    return int(np.argmax(near)) if near.any() else half


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How long B takes relative to A: `ratio` with an interval (None: unbounded, the rounds are too few).

    ``verdict`` speaks of B: faster, slower or tie.
    """

    ratio: float
    low: float | None
    high: float | None
    level: float
    verdict: str


def compare(
    a: Sequence[float] | Floats, b: Sequence[float] | Floats, *, level: float = LEVEL, least: float = LEAST
) -> Comparison:
    """Compare two variants by their rounds: ``a[i]`` and ``b[i]`` are logarithms of how long round i took.

    A round holds both variants forwards and backwards (A B B A), its two blocks of a variant averaged, so that a
    drift that is straight over the round cancels exactly. The ratio is the median of the rounds' ratios, its interval
    that of the sign test (`quantile_interval`), of coverage ``1 - level``: it holds whatever the distribution is, a
    round that was disturbed weighs no more than any other, and a fifth of them may be. Different is what the interval
    says *and* is at least `least`.
    """
    ratios = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    centre = float(np.median(ratios)) if len(ratios) else 0.0
    low, high, _ = quantile_interval(ratios, 0.5, 1 - level) or (-math.inf, math.inf, 1.0)
    verdict = "tie"
    if centre >= math.log1p(least) and low > 0:
        verdict = "slower"
    elif centre <= -math.log1p(least) and high < 0:
        verdict = "faster"
    bounds = {name: math.exp(value) if math.isfinite(value) else None for name, value in (("low", low), ("high", high))}
    return Comparison(ratio=math.exp(centre), level=level, verdict=verdict, **bounds)


def rounds_needed(level: float = LEVEL, disturbed: int = 4) -> int:
    """How many rounds a comparison at `level` needs to stand that many rounds that say the opposite."""
    n = disturbed + 1
    while 2 * _binomial_cdf(n, 0.5)[disturbed] > level:
        n += 1
    return n


def round_factors(blocks: npt.NDArray[Any]) -> Floats:
    """How much slower than usual each round was: [rounds]; `blocks` are logarithms of times [cases, rounds].

    The same work is done in every round, so this is the canary: heat and other programs slow all cases alike.
    """
    usual = np.median(blocks, axis=1, keepdims=True)
    factors: Floats = np.exp(np.median(blocks - usual, axis=0))
    return factors


def drift(factors: npt.NDArray[Any]) -> float:
    """The last third of the rounds against the first third, as a ratio."""
    third = max(len(factors) // 3, 1)
    return float(np.median(factors[-third:]) / np.median(factors[:third]))


def _binomial_cdf(n: int, p: float) -> Floats:
    """P(X <= k) for k = 0..n."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    mass = np.exp(logs[n] - logs - logs[::-1] + k * math.log(p) + (n - k) * math.log1p(-p))
    cdf: Floats = np.minimum(np.cumsum(mass), 1.0)
    return cdf

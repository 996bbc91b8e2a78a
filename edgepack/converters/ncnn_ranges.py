"""From what was seen of a blob to the integers that stand for its values."""

from dataclasses import dataclass

import numpy as np
from activations import BINS, Seen
from ncnn_watch import Blob

TINY = 1e-8  # a range below this is a dead blob: nothing but zeros is ever seen
LEVELS = 254.0  # steps between the two ends of int8, -127 and 127
RULES: dict[str, float | None] = {"mse": None, "percentile": 1e-4, "minmax": 0.0}  # share of values left outside


@dataclass(frozen=True)
class Coding:
    """``integer = sign * round(value * scale) + zero``, saturated to [-127, 127]; `zero` isn't negative.

    `zero` pads a blob, and ncnn 20261020 pads int8 blobs wrongly with a negative number (Padding_x86::forward_int8 and
    its siblings put the sign's bits over the other seven channels). So a blob of positive values is held negated.
    """

    scale: float
    zero: int = 0
    sign: int = 1

    @property
    def shift(self) -> float:
        """What is taken from ``sign * value`` so that the integers have no zero point."""
        return -self.zero / self.scale


def coding(blob: Blob, rule: str, *, shiftable: bool) -> Coding:
    """The integers of one blob. Never a factor of zero or infinity: a dead blob gets 1."""
    low, high = ends(blob, rule, shiftable=shiftable)
    return affine(low, high) if shiftable else symmetric(low, high)


def symmetric(low: float, high: float) -> Coding:
    """Integers around zero that hold a range."""
    largest = max(-low, high)
    return Coding(single(LEVELS / 2.0 / largest)) if largest > TINY else Coding(1.0)


def affine(low: float, high: float) -> Coding:
    """Integers that hold a range and zero, exactly: zeros pad, and half of what a ReLU gives are zeros."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= TINY:
        return Coding(1.0)
    scale = single(LEVELS / (high - low))
    zero = round(float(np.clip(-LEVELS / 2.0 - low * scale, -127.0, 127.0)))
    return Coding(scale, abs(zero), -1 if zero < 0 else 1)


def single(value: float) -> float:
    """As the file holds it."""
    return float(np.float32(value))


def ends(blob: Blob, rule: str, *, shiftable: bool) -> tuple[float, float]:
    """The range of one blob: where integers lie around zero, that of its values and of their negatives."""
    if rule == "average":
        low, high = blob.ends / max(blob.count, 1)
        return float(low), float(high)
    seen = blob.seen
    if not shiftable:
        seen = Seen(seen.name, None)
        seen.counts, seen.limit = blob.seen.counts + blob.seen.counts[::-1], blob.seen.limit
        seen.highest = max(-blob.seen.lowest, blob.seen.highest)
        seen.lowest = -seen.highest
    if rule == "entropy":
        return entropy(seen)
    return seen.range(RULES[rule])


def entropy(seen: Seen) -> tuple[float, float]:
    """The range whose integers tell least apart from the values, by relative entropy (Migacz 2017, as ncnn2table).

    A candidate keeps the inner bins and puts what lies outside into its last ones; as integers, the same
    counts are spread evenly over the bins that share an integer.
    """
    width = seen.limit / BINS
    first = int(np.clip(np.floor((min(seen.lowest, 0.0) + seen.limit) / width), 0, 2 * BINS))
    last = int(np.clip(np.ceil((max(seen.highest, 0.0) + seen.limit) / width), 0, 2 * BINS))
    zero, counts = BINS, seen.counts.astype(np.float64)
    counts[zero] = counts[zero + 1] if zero + 1 < len(counts) else 0.0  # zeros (of a ReLU) are exact in any range
    best, least = (seen.lowest, seen.highest), np.inf
    for part in np.linspace(0.1, 1.0, 91):
        low, high = zero - round((zero - first) * part), zero + max(1, round((last - zero) * part))
        kept = counts[low:high].copy()
        if kept.size <= LEVELS or not kept.any():
            continue
        inner = kept.copy()
        kept[0] += counts[:low].sum()
        kept[-1] += counts[high:].sum()
        place = (np.arange(kept.size) * (LEVELS + 1) / kept.size).astype(np.int64)
        there = inner > 0
        total = np.bincount(place, inner)
        used = np.bincount(place, there)
        spread = np.where(there, (total / np.maximum(used, 1))[place], 0.0)
        share, other = kept / kept.sum(), spread / spread.sum()
        both = (share > 0) & (other > 0)
        lost = share[(share > 0) & ~both].sum()
        divergence = (share[both] * np.log(share[both] / other[both])).sum() + lost * 30.0
        if divergence < least:
            best, least = ((low - zero) * width, (high - zero) * width), divergence
    return best

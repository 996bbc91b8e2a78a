"""What calibration sees of one activation: a histogram, and the means of its channels. Shared by the quantizers.

Everything is gathered sample by sample: memory doesn't grow with the number of samples.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BINS = 4096  # of the final histogram on each side of zero; at least half of them are in use
PICKED = 1 << 14  # values of one tensor and sample that enter the histogram; minimum and maximum see all
RULES: dict[str, float | None] = {"mse": None, "percentile": 1e-4, "minmax": 0.0}  # share of values left outside
FORGETTING = 0.01  # weight of the newest sample in a moving average
ENTROPY_STEP = 16  # bins between two candidates for the relative entropy
LEVELS = 128  # of int8 on one side of zero, for the relative entropy
HUGE = 1e30  # what pads a maximum pooling or masks an attention is no value to measure


def rows(path: Path) -> Iterator[np.ndarray]:
    """The entries of an .npy file's first axis, one at a time. A mapped file would grow into memory as it is read."""
    mapped = np.load(path, mmap_mode="r")
    count, shape, dtype, offset = len(mapped), mapped.shape[1:], mapped.dtype, mapped.offset
    del mapped
    with path.open("rb") as file:
        file.seek(offset)
        for _ in range(count):
            yield np.fromfile(file, dtype, math.prod(shape)).reshape(shape)


def room(wanted: list[list[np.ndarray]], most: int, memory_mb: int) -> bool:
    """Whether the outputs of one more sample may be kept: at most `most` samples, and a quarter of the memory."""
    size = sum(value.nbytes for value in wanted[0]) if wanted else 0
    return not wanted or (len(wanted) < most and (len(wanted) + 1) * size <= memory_mb << 18)


class Seen:
    """What calibration saw of one tensor: counts of values in equal bins over [-limit, limit), and channel means.

    `limit` is a power of two that doubles as needed.
    """

    def __init__(self, name: str, axis: int | None) -> None:
        self.name, self.axis = name, axis
        self.lowest, self.highest = math.inf, -math.inf
        self.limit = 0.0
        self.counts = np.zeros(2 * BINS, np.int64)
        self.means: np.ndarray | None = None
        self.samples = 0
        self.average = (0.0, 0.0)  # lowest and highest, smoothed over the samples
        self.smoothed = 0

    def add(self, values: np.ndarray) -> None:
        """Count the values of one sample."""
        flat = values.ravel()
        if not flat.size:
            return
        lowest, highest = float(flat.min()), float(flat.max())
        if (lowest <= -HUGE or highest >= HUGE) and math.isfinite(lowest) and math.isfinite(highest):
            return self.add(values[np.abs(values) < HUGE])
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise SystemExit(
                f"a calibration sample makes the model compute NaN or infinity in {self.name}: it can't be quantized"
            )
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self.smoothed += 1
        newest = max(FORGETTING, 1.0 / self.smoothed)  # a plain mean at first, so that no sample counts for more
        low, high = self.average
        self.average = (low + newest * (lowest - low), high + newest * (highest - high))
        self._cover(max(abs(lowest), abs(highest)))
        step = -(-flat.size // PICKED)
        while math.gcd(step, flat.size) != 1 and step < flat.size:  # else it meets the same channels each time
            step += 1
        index = ((flat[::step] + np.float32(self.limit)) * np.float32(BINS / self.limit)).astype(np.int32)
        self.counts += np.bincount(np.clip(index, 0, 2 * BINS - 1), minlength=2 * BINS)
        if self.axis is not None and values.ndim > 1:
            axis = self.axis % values.ndim
            means = values.mean(axis=tuple(i for i in range(values.ndim) if i != axis)).astype(np.float64)
            self.means = means if self.means is None else self.means + means
            self.samples += 1

    def mean(self) -> np.ndarray | None:
        """The mean of each channel over all samples; None where nobody asked for it."""
        return None if self.means is None else self.means / self.samples

    def _cover(self, largest: float) -> None:
        if not self.limit:
            self.limit = 2.0 ** math.ceil(math.log2(max(largest, 1e-30)) + 1e-9)
        while largest > self.limit:
            half = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(half, BINS // 2)
            self.limit *= 2.0

    def chosen(self, rule: str) -> tuple[float, float]:
        """The range by a rule's name: minmax, average, percentile (99.99 %), entropy or mse.

        average: the moving average of each sample's lowest and highest value (Jacob et al. 2018, arXiv:1712.05877).
        """
        if rule == "average":
            return self.average
        return self._entropy() if rule == "entropy" else self.range(RULES[rule])

    def range(self, share: float | None) -> tuple[float, float]:
        """Lowest and highest value, without the share of values at the two ends together; None: of least error."""
        total = self.counts.sum()
        if not total:
            return 0.0, 0.0
        if share is None:
            return self._least_error()
        if share == 0.0:
            return self.lowest, self.highest
        below = np.cumsum(self.counts)
        width = self.limit / BINS
        first = int(np.searchsorted(below, total * share / 2, side="right"))
        last = int(np.searchsorted(below, total * (1.0 - share / 2), side="left"))
        return max(self.lowest, first * width - self.limit), min(self.highest, (last + 1) * width - self.limit)

    def _least_error(self) -> tuple[float, float]:
        """The range with the least squared error: a twelfth of a step squared inside, the way to the edge outside.

        Zeros (half of what a Relu gives) have no error in any range.
        """
        width = self.limit / BINS
        places = (np.arange(2 * BINS) + 0.5) * width - self.limit
        counts = self.counts.astype(np.float64)
        counts[BINS] *= self.lowest < 0.0
        sums = [np.concatenate([[0.0], np.cumsum(counts * places**power)]) for power in range(3)]

        def cut(edges: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
            """How many values lie beyond each edge, and the sum of their squared ways to it."""
            index = np.clip(np.rint((edges + self.limit) / width), 0, 2 * BINS).astype(int)
            zero, one, two = ((s[-1] - s[index]) if sign > 0 else s[index] for s in sums)
            return zero, two - 2.0 * edges * one + edges**2 * zero

        steps = np.linspace(0.2, 1.0, 81)
        lows = min(self.lowest, 0.0) * steps if self.lowest < 0.0 else np.zeros(1)
        highs = max(self.highest, 0.0) * steps if self.highest > 0.0 else np.zeros(1)
        (out_low, loss_low), (out_high, loss_high) = cut(lows, -1), cut(highs, 1)
        inside = counts.sum() - out_low[:, None] - out_high[None, :]
        noise = ((highs[None, :] - lows[:, None]) / 255.0) ** 2 / 12.0 * inside
        error = noise + loss_low[:, None] + loss_high[None, :]
        low, high = np.unravel_index(int(error.argmin()), error.shape)
        return float(lows[low]), float(highs[high])

    def _entropy(self) -> tuple[float, float]:
        """The range whose integers tell least apart from the values, by relative entropy (Migacz, GTC 2017, s7310).

        On the histogram of magnitudes: a candidate keeps the first bins and moves what lies outside into its last;
        merged to 128 levels and spread evenly over the bins that weren't empty, it is compared with itself.
        """
        counts = (self.counts[BINS:] + self.counts[:BINS][::-1]).astype(np.float64)
        counts = counts.reshape(-1, 2).sum(axis=1)
        width = 2.0 * self.limit / BINS
        largest = max(-self.lowest, self.highest)
        if not counts.sum() or not largest > 0.0:
            return self.range(0.0)
        used = min(len(counts), int(largest / width) + 1)
        counts[0] = counts[1]  # zeros have no error in any range
        best, least = used, math.inf
        for kept in range(LEVELS, used + 1, ENTROPY_STEP):
            found = divergence(counts[:used], kept)
            if found < least:
                best, least = kept, found
        edge = largest if best == used else best * width
        return max(self.lowest, -edge), min(self.highest, edge)


def divergence(counts: np.ndarray, kept: int) -> float:
    """Relative entropy of the first `kept` bins, the rest added to the last of them, and of their 128 levels."""
    inside = counts[:kept]
    exact = inside.copy()
    exact[-1] += counts[kept:].sum()
    starts = np.minimum(np.arange(LEVELS) * (kept // LEVELS), kept - 1)
    filled = exact > 0.0
    sizes = np.diff(np.append(starts, kept))
    shares = np.add.reduceat(inside, starts) / np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1.0)
    coded = np.where(filled, np.repeat(shares, sizes), 0.0)
    if not exact.sum() or not coded.sum():
        return math.inf
    p, q = exact / exact.sum(), coded / coded.sum()
    if np.any(q[filled] == 0.0):  # a level is empty where something was moved to
        return math.inf
    return float((p[filled] * np.log(p[filled] / q[filled])).sum())

"""What calibration sees of one activation: a histogram, and the means of its channels. Shared by the quantizers.

Everything is gathered sample by sample: memory doesn't grow with the number of samples.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BINS = 4096  # of the final histogram on each side of zero; at least half of them are in use
PICKED = 1 << 14  # values of one tensor and sample that enter the histogram; minimum and maximum see all
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

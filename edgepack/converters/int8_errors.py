"""How far a tensor is from what it should be, and what of it a scale can hold, summed over samples."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

PERFECT_DB = 200.0


class Error:
    """Signal, noise and the way they point, summed over samples."""

    def __init__(self) -> None:
        self.signal = self.noise = self.both = self.got = 0.0

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        """One sample."""
        exact, value = wanted.ravel().astype(np.float64), got.ravel().astype(np.float64)
        self.signal += float(exact @ exact)
        self.noise += float(np.square(exact - value).sum())
        self.both += float(exact @ value)
        self.got += float(value @ value)

    def db(self) -> float:
        """Signal over noise."""
        if not math.isfinite(self.noise):
            return -PERFECT_DB
        if self.noise == 0.0:
            return PERFECT_DB
        return max(-PERFECT_DB, min(PERFECT_DB, 10.0 * math.log10(max(self.signal, 1e-30) / self.noise)))

    def cosine(self) -> float:
        """Between what was wanted and what came."""
        size = math.sqrt(self.signal * self.got)
        if not math.isfinite(size) or size == 0.0:
            return 1.0 if self.signal == self.got == 0.0 else 0.0
        return min(1.0, self.both / size)

    def share(self) -> float:
        """Noise over signal."""
        if not math.isfinite(self.noise):
            return 1e30
        return self.noise / self.signal if self.signal else (1e30 if self.noise else 0.0)


class Range:
    """What a scale can hold (its lowest and highest value and its step; None where there is none), and what came."""

    def __init__(self, scale: tuple[float, float, float] | None) -> None:
        self.scale = scale
        self.lowest, self.highest, self.beyond, self.count = math.inf, -math.inf, 0, 0

    def add(self, values: np.ndarray) -> None:
        """One sample."""
        if values.size and values.dtype.kind == "f":
            self.lowest, self.highest = min(self.lowest, float(values.min())), max(self.highest, float(values.max()))
            self.count += values.size
            if self.scale is not None:
                low, high, step = self.scale
                self.beyond += int(((values < low - step / 2.0) | (values > high + step / 2.0)).sum())

    def facts(self) -> dict[str, float | None]:
        """For the row of the layer that reads it."""
        low, high, _ = self.scale or (None, None, None)
        finite = math.isfinite(self.lowest) and math.isfinite(self.highest)
        return {
            "low": low,
            "high": high,
            "lowest": self.lowest if finite else None,
            "highest": self.highest if finite else None,
            "saturated": self.beyond / self.count if self.scale is not None and self.count else None,
        }


class Compared:
    """A layer of an engine's INT8 model against the same layer of the engine's float model.

    `how` is "int8", "dynamic" (int8 weights; ranges are measured at run time) or "float".
    """

    def __init__(self, how: str, scale: tuple[float, float, float] | None) -> None:
        self.how, self.error, self.range = how, Error(), Range(scale)

    def add(self, read: np.ndarray, wanted: np.ndarray, got: np.ndarray) -> None:
        """One sample: what the float layer reads and gives, and what the other gives."""
        self.range.add(read)
        self.error.add(wanted, got)

    def facts(self) -> dict[str, Any]:
        """For the layer's row."""
        return {
            "how": self.how,
            "kernel_db": self.error.db(),
            "kernel_cosine": self.error.cosine(),
            **self.range.facts(),
        }


def evenly(items: Iterable[Any], count: int, most: int) -> Iterator[Any]:
    """At most `most` of `count` items, evenly spaced."""
    wanted = set(range(count)) if count <= most else {(2 * i + 1) * count // (2 * most) for i in range(most)}
    return (item for number, item in enumerate(items) if number in wanted)

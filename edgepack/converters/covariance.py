"""The covariance of what a layer's sums read, gathered sample by sample; for `rounding`. Pure numpy."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

POSITIONS = 512  # of one sample at which a layer's inputs are looked at
INPUTS = 2400  # of one sum; where there are more, the covariance takes too long to invert


class Covariance:
    """Of what one layer's sums read: [groups, inputs, inputs]."""

    def __init__(self, groups: int, inputs: int) -> None:
        self.squares = np.zeros((groups, inputs, inputs))
        self.sums = np.zeros((groups, inputs))
        self.count = 0

    def add(self, values: np.ndarray) -> None:
        """See one sample's `values` [positions, groups, inputs]."""
        by_group = values.transpose(1, 0, 2)
        self.squares += by_group.transpose(0, 2, 1) @ by_group
        self.sums += values.sum(axis=0, dtype=np.float64)
        self.count += len(values)

    def value(self) -> np.ndarray:
        """The covariance of what was seen."""
        mean = self.sums / self.count
        return self.squares / self.count - mean[:, :, None] * mean[:, None, :]


def rows_of(values: np.ndarray) -> np.ndarray:
    """What a matrix product reads of one sample [..., inputs]: [positions, 1, inputs]."""
    flat = values.reshape(-1, 1, values.shape[-1])
    return flat[:: max(1, -(-len(flat) // POSITIONS))]


def patches(
    values: np.ndarray,
    groups: int,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    sides: list[tuple[int, int]],
) -> np.ndarray:
    """What a convolution reads of one sample [1, channels, ...] at some positions: [positions, groups, inputs].

    `sides` are the zeros before and after each axis of the picture.
    """
    rank = values.ndim - 2
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    padded = np.pad(values, [(0, 0), (0, 0), *sides])
    windows = sliding_window_view(padded, reach, axis=tuple(range(2, values.ndim)))
    every = (slice(None), slice(None))
    windows = windows[(*every, *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))]
    places = windows.shape[2 : 2 + rank]
    count = int(np.prod(places))
    chosen = np.unravel_index(np.arange(0, count, max(1, -(-count * len(values) // POSITIONS))), places)
    picked = windows[(*every, *chosen)]  # [samples, channels, positions, *kernel]
    inputs = values.shape[1] // groups * int(np.prod(kernel))
    return np.ascontiguousarray(np.moveaxis(picked, 2, 1)).reshape(-1, groups, inputs)

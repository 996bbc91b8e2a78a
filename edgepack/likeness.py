"""Which samples are nearly the same: within one set (they teach INT8 nothing new), or in calibration and evaluation.

A sample is known by the digest of its bytes, and by at most `VALUES` of its values at fixed random places, which stand
for the whole to within a few percent (W. B. Johnson, J. Lindenstrauss 1984, "Extensions of Lipschitz mappings").
Two samples are *near* when their distance is below `NEAR` of their own deviations' geometric mean, in every input;
whole numbers and inputs of a few numbers must be equal. 0.1 is what JPEG at quality 75 does to a photograph; frames of
a still camera are nearer, two photographs of one scene are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import arrays, preprocess
from edgepack.lint import FEW, Report
from edgepack.types import TensorSpec

Array = npt.NDArray[Any]
VALUES = 4096
PIECE = 256  # samples whose values are held at once
SMALL = 64  # fewer values than these come close by chance
NEAR = 0.1
MANY = 0.1  # the share of near-equal samples from which that is worth a warning
NOISE = 0.1  # neighbouring pixels of a picture are never less correlated than this
Namer = Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """One set of samples. `values[i]` is [samples, places] of input i, `whole[i]` whether those are whole numbers."""

    digests: tuple[str, ...]
    values: tuple[Array, ...]
    whole: tuple[bool, ...]
    roughness: float  # 1 - mean correlation of neighbouring pixels over the pictures; 0 where no input is a picture

    def chosen(self, indices: list[int]) -> Fingerprints:
        """The samples `indices` alone."""
        return Fingerprints(
            digests=tuple(self.digests[i] for i in indices),
            values=tuple(values[indices] for values in self.values),
            whole=self.whole,
            roughness=self.roughness,
        )


def fingerprints(folder: Path, inputs: tuple[TensorSpec, ...], part: slice = slice(None)) -> Fingerprints:
    """Read a tensor folder (see `edgepack.interfaces`), or a part of it, sample by sample."""
    digests: list[Any] = []
    values, roughness = [], 0.0
    for index, spec in enumerate(inputs):
        (array,) = arrays.open_arrays(folder / f"{index}.npy").values()
        size = int(np.prod(spec.shape))
        places = np.unique(np.random.default_rng(0).integers(0, size, VALUES)) if size > VALUES else slice(None)
        kept, correlations = [], []
        for number, row in enumerate(array.rows(range(array.shape[0])[part])):
            if len(digests) <= number:
                digests.append(hashlib.sha256())
            digests[number].update(row.tobytes())
            kept.append(row.ravel()[places].astype(np.float64))
            correlations.append(_neighbours(row, spec))
        values.append(np.stack(kept))
        roughness = max(roughness, 1.0 - float(np.mean(correlations)))
    return Fingerprints(
        digests=tuple(each.hexdigest() for each in digests),
        values=tuple(values),
        whole=tuple(np.dtype(spec.dtype).kind != "f" for spec in inputs),
        roughness=roughness,
    )


def pieces(folder: Path, inputs: tuple[TensorSpec, ...], count: int) -> Iterator[Fingerprints]:
    """The fingerprints of a tensor folder of `count` samples, so many at a time that memory doesn't grow with them."""
    for start in range(0, count, PIECE):
        yield fingerprints(folder, inputs, slice(start, start + PIECE))


def near(a: Fingerprints, b: Fingerprints) -> npt.NDArray[np.bool_]:
    """[samples of a, samples of b]: whether the two are nearly the same."""
    found = np.ones((len(a.digests), len(b.digests)), np.bool_)
    for left, right, whole in zip(a.values, b.values, a.whole, strict=True):
        if whole or left.shape[1] < SMALL:
            keys = {row.tobytes(): number for number, row in enumerate((*left, *right))}
            first, second = (np.array([keys[row.tobytes()] for row in side]) for side in (left, right))
            found &= first[:, None] == second[None, :]
            continue
        middle = left.mean(axis=0)
        x, y = left - middle, right - middle
        squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None, :] - 2.0 * (x @ y.T)
        spread = np.sqrt(_spread(left)[:, None] * _spread(right)[None, :])
        slack = 1e-12 * (np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1)[None, :])  # of rounding
        found &= squares <= NEAR**2 * spread + slack
    return found


def check_distinct(prints: Fingerprints, source: str, name: Namer, report: Report) -> None:
    """Warn where many samples repeat an earlier one, where few different ones are left, where pictures are noise."""
    count = len(prints.digests)
    if prints.roughness > 1.0 - NOISE:
        report.warn(
            f"the pictures of {source} look like random noise (neighbouring pixels have nothing in common): INT8 "
            "ranges learned from noise are wrong for real inputs"
        )
    alike = np.tril(near(prints, prints), -1)
    repeats = np.flatnonzero(alike.any(axis=1))
    different = count - len(repeats)
    if not len(repeats) or (len(repeats) < MANY * count and different >= FEW):
        return
    later = int(repeats[0])
    earlier = int(np.flatnonzero(alike[later])[0])
    report.warn(
        f"{len(repeats)} of the {count} samples of {source} nearly repeat another, such as {name(later)} and "
        f"{name(earlier)}: INT8 learns from {different} different one{'s' * (different != 1)}"
        + (", and wants some tens" if different < FEW else "")
    )


def check_disjoint(
    calibration: Fingerprints, evaluation: Iterable[Fingerprints], what: str, names: tuple[Namer, Namer], report: Report
) -> None:
    """Warn where samples that measure INT8 were also used to make it. `what` says which set was compared with which.

    `evaluation` may come in pieces. `names` call a sample of the evaluation, and one of the calibration.
    """
    known = set(calibration.digests)
    total, same = 0, 0
    example: dict[bool, tuple[int, int]] = {}  # the first that is the same to the bit, and the first that is near
    touched = 0
    for piece in evaluation:
        alike = near(piece, calibration)
        for index in np.flatnonzero(alike.any(axis=1)):
            touched += 1
            equal = piece.digests[index] in known
            same += equal
            example.setdefault(equal, (total + int(index), int(np.flatnonzero(alike[index])[0])))
        total += len(piece.digests)
    if not touched:
        return
    first, other = example.get(True) or example[False]
    report.warn(
        f"{touched} of the {total} {what} ({same} the same to the bit), such as {names[0](first)} and "
        f"{names[1](other)}: figures measured with them flatter INT8"
    )


def _spread(values: Array) -> Array:
    """The squared deviation of each sample's values from their own mean, summed."""
    result: Array = np.square(values - values.mean(axis=1, keepdims=True)).sum(axis=1)
    return result


def _neighbours(row: Array, spec: TensorSpec) -> float:
    """The correlation of pixels with their right neighbours; 1 for what is no picture or has one colour only."""
    layout = preprocess.guess_layout(spec.shape) if row.dtype.kind == "f" else None
    if layout is None:
        return 1.0
    pixels = np.moveaxis(row, layout.index("W"), -1).astype(np.float64)
    pixels = pixels - pixels.mean()
    power = float(np.square(pixels).mean())
    return float((pixels[..., 1:] * pixels[..., :-1]).mean()) / power if power > 0 else 1.0

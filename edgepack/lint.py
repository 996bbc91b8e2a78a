"""What is wrong with samples, told before INT8 is calibrated on them or accuracy is measured with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import log, preprocess
from edgepack.errors import CalibrationError
from edgepack.types import DEFAULT_INT8, Model, Preprocess, TensorSpec

Array = npt.NDArray[Any]
ANY_INPUT = "*"
FEW = 16  # below this many samples INT8 ranges and figures of accuracy are guesses
SLACK = 0.05  # how far outside the declared range arrays may lie, as a share of it
ENGINE_MB = 80  # an interpreter with an engine: 70 to 75 MB were measured
WEIGHTS = 6  # times the weights: what the leanest engine took on EfficientNet-Lite0
IMAGENET = np.array([123.675, 116.28, 103.53])  # means of red, green and blue, on the scale 0..255
NARROW = 0.02  # arrays that fill less than this share of the declared range are on another scale


@dataclass
class Report:
    """What was found odd but usable: said at once, and kept so that a build that reuses the samples says it again.

    A `quiet` one only keeps it.
    """

    quiet: bool = False
    said: list[tuple[str, str]] = field(default_factory=list)

    def note(self, message: str) -> None:
        """Something worth knowing that needs no action."""
        self._say("note", message)

    def warn(self, message: str) -> None:
        """Something the user may want to act on."""
        self._say("warning", message)

    def _say(self, kind: str, message: str) -> None:
        self.said.append((kind, message))
        if not self.quiet:
            say_again([(kind, message)])


def say_again(said: Iterable[Iterable[str]]) -> None:
    """Repeat what a `Report` kept."""
    for kind, message in said:
        (log.warn if kind == "warning" else log.note)(message)


class Seen:
    """What passed by of one input: its range, and whether anything ever changed."""

    def __init__(self, spec: TensorSpec, source: str) -> None:
        self.spec, self.source = spec, source
        self.low, self.high = np.inf, -np.inf
        self.first: Array | None = None
        self.identical = True

    def watch(self, rows: Iterable[Array]) -> Iterator[Array]:
        """Pass `rows` on. Raises `CalibrationError` at a value that is not finite."""
        for number, row in enumerate(rows):
            if row.dtype.kind == "f" and not np.isfinite(row).all():
                what = "NaN" if np.isnan(row).any() else "an infinite value"
                raise CalibrationError(
                    f"Sample {number} of the input {self.spec.name!r} from {self.source} has {what}.",
                    "Remove that sample, or find out why its preparation divides by zero.",
                )
            if row.size:
                self.low, self.high = min(self.low, float(row.min())), max(self.high, float(row.max()))
            if self.first is None:
                self.first = row.copy()
            elif self.identical:
                self.identical = np.array_equal(self.first, row)
            yield row

    def check_range(self, declared: Preprocess | None, report: Report) -> None:
        """Hold ready-made arrays against the range that the declaration gives pictures."""
        if declared is None or np.dtype(self.spec.dtype).kind != "f":
            return
        low, high = preprocess.value_range(declared)
        slack = SLACK * (high - low)
        span = f"values from {self.low:.4g} to {self.high:.4g}"
        meant = f"the declared mean and std give {low:.4g} to {high:.4g}"
        if self.low < low - slack or self.high > high + slack:
            raise CalibrationError(
                f"The input {self.spec.name!r} from {self.source} has {span}, but {meant}.",
                "Arrays are used as they are: save them after (x - mean) / std, or correct mean and std.",
            )
        if self.high - self.low < NARROW * (high - low):
            report.warn(
                f"input {self.spec.name!r} from {self.source} has only {span}; {meant}: is that the same scale?"
            )


def check_varied(watched: list[Seen], source: str, count: int, report: Report) -> None:
    """Constant inputs teach nothing. One that never changes among others that do (a mask, a sample rate) is normal."""
    if all(seen.low == seen.high for seen in watched):
        raise CalibrationError(
            f"Every value of every sample in {source} is the same number.",
            "Check how the data were prepared; INT8 ranges can't be learned from a constant.",
        )
    if count > 1 and all(seen.identical for seen in watched):
        raise CalibrationError(
            f"All {count} samples of {source} are identical.", "Give different ones, some tens of real inputs."
        )
    for seen in watched:
        if count > 1 and seen.identical and np.dtype(seen.spec.dtype).kind == "f":
            report.warn(f"input {seen.spec.name!r} is the same in all {count} samples of {source}")
    if count < FEW:
        report.warn(f"{source} holds only {count} sample(s): INT8 ranges and accuracy figures want some tens")


def check_memory(model: Model, memory_mb: int) -> None:
    """Refuse a bound of INT8's memory below what one sample needs. The default gives way to a large model."""
    tensors = (*model.inputs, *model.outputs)
    sample = sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in tensors)
    needed = ENGINE_MB + ((WEIGHTS * model.path.stat().st_size + 4 * sample) >> 20)
    if memory_mb < needed and memory_mb != DEFAULT_INT8.memory_mb:
        raise CalibrationError(
            f"--memory {memory_mb} is too little: INT8 of this model needs at least {needed} MB for one sample at a "
            f"time ({ENGINE_MB} MB for an engine, the rest for weights and activations).",
            f"Give --memory {needed} or more, or leave it out.",
            id="EP325",
        )


def check_means(declared: Mapping[str, Preprocess], report: Report) -> None:
    """Warn where ImageNet's means stand in the other order than the colours."""
    for name, how in declared.items():
        means = np.asarray(how.mean)
        wanted = IMAGENET[::-1] if how.color == "BGR" else IMAGENET
        if how.color == "GRAY" or means.shape != (3,) or np.allclose(means, wanted, atol=2.0):
            continue
        if np.allclose(means, wanted[::-1], atol=2.0):
            report.warn(
                f"the input {name!r} is declared as {how.color} with ImageNet's means in the order "
                f"{'RGB' if how.color == 'BGR' else 'BGR'}: mean = {list(how.mean)}"
            )


def check_declared(inputs: tuple[TensorSpec, ...], declared: Mapping[str, Preprocess]) -> None:
    """Refuse a declaration for an input that the model doesn't have."""
    names = [spec.name for spec in inputs]
    for name in declared:
        if name == ANY_INPUT and len(inputs) > 1 and name not in names:
            raise CalibrationError(
                f'The preprocess declaration [input."*"] is for a model with one input; this one has {len(inputs)}.',
                f"Name the input: {', '.join(map(repr, names))}.",
            )
        if name != ANY_INPUT and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise CalibrationError(
                f"The preprocess declaration names the input {name!r}, which the model doesn't have.{guess}",
                f"The model's inputs: {', '.join(map(repr, names))}.",
            )


def declared_for(
    spec: TensorSpec, inputs: tuple[TensorSpec, ...], declared: Mapping[str, Preprocess]
) -> Preprocess | None:
    """The declaration of one input, or None."""
    return declared.get(spec.name) or (declared.get(ANY_INPUT) if len(inputs) == 1 else None)

"""The repair of an INT8 variant that misses its bounds or its gate: the fewest multiply-accumulates stay in float.

Ranges by another rule come first, for they cost nothing on the device. Then layers are ranked by what each does to the
outputs when it alone is quantized, per cost of leaving it in float; the shortest beginning of that list with which the
real engine passes is found by bisection, and what isn't needed in it is taken out again. Every try is a new quantized
file and a run of it, so few are made: bisection halves the decibels that the ranking predicts, not the layers, and ends
where nothing worth having is left between; then the quietest layers are tried without, until some in a row are needed.
The same question always gets the same answers: nothing here is random or depends on time.

The same ranking decides for NNCF's accuracy control and AIMET's AutoQuant; there it is measured by leaving a layer out,
here by quantizing it alone, which also finds two neighbours that share one bad range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from edgepack.explain import WEIGHTED, Layer
from edgepack.types import Int8Options, KeptFloat

Ranges = Literal["auto", "minmax", "average", "percentile", "entropy", "mse"]
OTHER_RANGES: tuple[Ranges, ...] = ("mse", "percentile", "minmax")
CLEARLY = 0.5  # dB by which ranges by another rule must be better to be gone on with
EXPLAINS = 0.99  # of all noise: layers that make the rest of it are not worth a border between float and integers
BORDER = 1e-4  # what such a border costs, as a share of all MACs
SIZE = 0.5  # what a share of the weights in float costs against the same share of the MACs
FINE = 1e-3  # a cost that isn't worth another try
ENOUGH = 3  # quiet layers that are needed one after the other; louder ones will be, too
MOST_TRIES = 12


class Attempt(Protocol):
    """One way of making the variant, measured."""

    @property
    def int8(self) -> Int8Options:
        """How it was made."""

    @property
    def passed(self) -> bool:
        """Whether it holds its bounds and its gate."""

    @property
    def sqnr_db(self) -> float:
        """How near its outputs are to the source's."""

    @property
    def rule(self) -> str:
        """The rule for ranges that it was made with: what ``auto`` came to."""

    @property
    def in_float(self) -> frozenset[str]:
        """Which of the layers that should stay in float the engine has in float: it may not know all by name."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """How a repair ended: the attempt that passed, or None; the layers in float; how many ways were tried, and the
    SQNR in dB of the nearest."""

    passed: Attempt | None
    kept: tuple[KeptFloat, ...]
    tries: int
    nearest_db: float


class Search:
    """The tries of one repair, counted and never made twice."""

    def __init__(self, make: Callable[[Int8Options], Attempt | None]) -> None:
        self._make = make
        self._made: dict[Int8Options, Attempt | None] = {}

    @property
    def tries(self) -> int:
        """How many different ways were tried."""
        return len(self._made)

    def ended(self, passed: Attempt | None, layers: Sequence[Layer] = ()) -> Repair:
        """The repair that these tries come to."""
        nearest = max((a.sqnr_db for a in self._made.values() if a is not None), default=-math.inf)
        return Repair(passed=passed, kept=tuple(map(kept, layers)), tries=self.tries, nearest_db=nearest)

    def __call__(self, int8: Int8Options) -> Attempt | None:
        """The attempt at `int8`; None where the engine can't make it."""
        if int8 not in self._made:
            self._made[int8] = self._make(int8)
        return self._made[int8]


def repair(
    first: Attempt,
    make: Callable[[Int8Options], Attempt | None],
    explain: Callable[[Int8Options], Sequence[Layer]],
    most_macs: float,
) -> Repair:
    """Find a way to make the variant that passes.

    `first` is the attempt that missed, `make` tries another (None: the engine can't), `explain` measures the layers at
    given options, `most_macs` is the share of the MACs (0 to 1) that may stay in float.
    """
    search = Search(make)
    best = first
    free = first.int8.ranges == "auto"
    for ranges in OTHER_RANGES if free else ():
        if ranges == first.rule:
            continue  # that is what was made
        tried = search(replace(first.int8, ranges=ranges))
        if tried is not None and tried.passed:
            return search.ended(tried)
        if tried is not None and tried.sqnr_db == first.sqnr_db:
            free = False  # nothing in it has ranges that were measured beforehand
            break
        if tried is not None and tried.sqnr_db > best.sqnr_db + CLEARLY:
            best = tried
    order = candidates(explain(best.int8), most_macs)

    def attempt(layers: Sequence[Layer], ranges: Ranges) -> Attempt | None:
        names = sorted({*first.int8.keep_float, *(layer.layer for layer in layers)})
        return search(replace(first.int8, ranges=ranges, keep_float=tuple(names)))

    passed = None
    # Without the worst layers another rule may be the best.
    for ranges in dict.fromkeys((best.int8.ranges, *(OTHER_RANGES if free else ()))):
        if not order or (ranges == first.rule and best.int8.ranges == "auto"):
            continue  # no layer that the engine could keep in float, or what ``auto`` came to
        found = attempt(order, ranges)
        if found is None:
            continue
        order = [layer for layer in order if layer.layer in found.in_float]
        if found.passed:
            passed = found
            break
    if passed is None or not order:
        return search.ended(passed)
    ranges = passed.int8.ranges
    too_few, chosen = 0, order
    while sum(map(cost, order[too_few : len(chosen) - 1])) > FINE and search.tries < MOST_TRIES:
        count = middle(order, too_few, len(chosen))
        found = attempt(order[:count], ranges)
        if found is not None and found.passed:
            passed, chosen = found, order[:count]
        else:
            too_few = count
    needed = 0
    for layer in sorted((x for x in chosen[:-1] if cost(x) > FINE), key=lambda x: x.noise):
        if search.tries >= MOST_TRIES or needed == ENOUGH:
            break
        rest = [other for other in chosen if other is not layer]
        found = attempt(rest, ranges)
        if found is not None and found.passed:
            passed, chosen, needed = found, rest, 0
        else:
            needed += 1
    return search.ended(passed, chosen)


def middle(order: Sequence[Layer], too_few: int, enough: int) -> int:
    """The count between both that leaves the geometric mean of the noise that they leave: half of the decibels."""
    left = [sum(layer.noise for layer in order[count:]) for count in range(len(order) + 1)]
    rest = left[0] * (1.0 - EXPLAINS) or 1e-30  # of the layers that are not in the list
    wanted = math.sqrt((left[too_few] + rest) * (left[enough] + rest))
    return min(range(too_few + 1, enough), key=lambda count: abs(math.log((left[count] + rest) / wanted)))


def cost(layer: Layer) -> float:
    """What leaving a layer in float costs, as a share of the whole model."""
    return layer.macs + SIZE * layer.weights + BORDER


def candidates(layers: Sequence[Layer], most_macs: float) -> list[Layer]:
    """The layers worth leaving in float, most noise per cost first, that together fit into `most_macs`."""
    noisy = sorted((x for x in layers if x.op in WEIGHTED and x.noise > 0.0), key=lambda layer: -layer.noise)
    total = sum(layer.noise for layer in noisy)
    worth, explained = [], 0.0
    for layer in noisy:
        if explained >= EXPLAINS * total:
            break
        worth.append(layer)
        explained += layer.noise
    fitting, macs = [], 0.0
    for layer in sorted(worth, key=lambda layer: -layer.noise / (layer.macs + BORDER)):
        if macs + layer.macs <= most_macs:
            fitting.append(layer)
            macs += layer.macs
    return sorted(fitting, key=lambda layer: -layer.noise / cost(layer))


def kept(layer: Layer) -> KeptFloat:
    """A layer as the report lists it."""
    return KeptFloat(layer=layer.layer, op=layer.op, macs=layer.macs, weights=layer.weights, single_db=layer.single_db)

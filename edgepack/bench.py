"""How a bundle's variants are measured: interleaved, watched, repeated where the machine wasn't itself.

Every block is a process of its own: how a process happens to lie in memory changes its speed by a percent or two for
its whole life (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong", 2009), so one long
process for each variant would make equal variants differ. A round runs all variants forwards and backwards (A B B A).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepack import conditions, log, stats
from edgepack.bundle import Bundle, golden_of
from edgepack.errors import DeviceFailed, UsageError
from edgepack.figures import figures, level, round_levels
from edgepack.measuring import Answer, Block, Order, Place, measure
from edgepack.types import Measurement, Probe

SECONDS = 5.0  # of timed runs of each variant
BLOCK_RUNS = 5  # at least
ALONE_ROUNDS = 4  # of a variant that is compared with none: eight processes
WARM_ROUNDS = 1 / 3  # of the rounds, at most, may be warm-up
REDO = 2
COOLER = 2000  # millidegrees above the start that count as cooled down
PATIENCE = 120  # seconds to wait for that
BLIND_PATIENCE = 10  # seconds where the device tells no temperature
BLOCK_LIMIT = 300.0  # seconds that one block may take before it counts as hung
EMULATED_LIMIT = 900.0
CALL_SECONDS = 120.0  # after which a round trip ends: what is lost with a link, and told by nobody meanwhile
ANSWER_BYTES = 3_000_000  # of one answer; transports keep the last 4 MiB
HELD = 600  # seconds for which a place is ours at first
SHORTEST_RUN = 20e-6  # seconds, for the first answer's size


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure."""

    variant: str
    engine: str
    precision: str
    threads: int
    input_set: str = ""

    def __str__(self) -> str:
        return f"{self.variant} x{self.threads}"


@dataclass(kw_only=True)
class Attempt:
    """All blocks of one try, by case; ``errors`` are cases that failed on the device."""

    answers: list[Answer] = field(default_factory=list)
    blocks: dict[int, list[tuple[int, int, Block]]] = field(default_factory=dict)  # case -> (position, round, block)
    errors: dict[int, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    warm_rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a bench found: figures, and for each case that has none why."""

    measurements: tuple[Measurement, ...]
    failures: tuple[tuple[Case, str], ...]
    seconds: float
    measuring_seconds: float


def bench(
    place: Place,
    bundle: Bundle,
    *,
    variants: Sequence[str] = (),
    threads: Sequence[int] = (1,),
    cores: str = "all",
    min_time: float = SECONDS,
) -> Result:
    """Measure variants (default: all) of a bundle that is at `place`.

    Raises `UsageError` (no such variant or cores), `DeviceFailed` (every variant failed, or the device did) and
    `DeviceUnreachable`; the clocks are put back in each case.
    """
    started = time.monotonic()
    cases = _cases(bundle, variants, threads)
    mask = mask_of(cores, place.probe)
    plan = Plan(place=place, cases=cases, min_time=min_time, mask=mask)
    attempts: list[Attempt] = []
    start_heat: int | None = None
    while True:
        again = len(attempts)
        cool = _cool(start_heat) if again else (0, 0)
        what = f"{len(cases)} variant{'s' if len(cases) > 1 else ''}"
        with log.step(f"{place.device.name}: measure {what}{f', again ({again} of {REDO})' if again else ''}"):
            attempt = plan.run(cool)
        attempts.append(attempt)
        start_heat = start_heat or attempt.answers[0].states[0].hottest
        for doubt in attempt.doubts:
            log.warn(f"{place.device.name}: {doubt}")
        if not attempt.doubts or again == REDO or len(attempt.errors) == len(cases):
            break
    failures = tuple((cases[index], why) for index, why in sorted(attempt.errors.items()))
    if len(failures) == len(cases):
        words = "; ".join(f"{case}: {why}" for case, why in failures)
        raise DeviceFailed(f"{place.device.name}: no variant could be measured. {words}.", "", id="EP632")
    _tell_stuck(place, attempts)
    return Result(
        measurements=tuple(figures(place, bundle, cases, attempts, cores)),
        failures=failures,
        seconds=time.monotonic() - started,
        measuring_seconds=sum(_seconds(attempt) for attempt in attempts),
    )


@dataclass(kw_only=True)
class Plan:
    """Which blocks, in which order, by how many round trips."""

    place: Place
    cases: list[Case]
    min_time: float
    mask: str
    old_options: bool = False  # a harness of before --min-seconds
    started: float = field(default_factory=time.monotonic)  # when the device was last held, and for how many seconds
    held: float = HELD

    @property
    def emulated(self) -> bool:
        """Then one run of each is enough: the times say nothing."""
        return self.place.how == "emulated"

    @property
    def rounds(self) -> int:
        """How often all cases run forwards and backwards."""
        if self.emulated:
            return 1
        return stats.rounds_needed(level(len(self.cases))) if len(self.cases) > 1 else ALONE_ROUNDS

    @property
    def block_seconds(self) -> float:
        """A quarter more than it takes, for what turns out to be warm-up."""
        return 0.0 if self.emulated else 1.25 * self.min_time / (2 * self.rounds)

    def program(self, case: Case) -> tuple[str, ...]:
        """The words that run the harness once."""
        runs = 1 if self.emulated else BLOCK_RUNS
        words = [f"./bin/edgepack-{case.engine}", "bench", "--variant", f"variants/{case.variant}"]
        words += ["--golden", golden_of(case.input_set), "--threads", str(case.threads), "--min-runs", str(runs)]
        seconds = f"{self.block_seconds:.3f}"
        if self.old_options:
            return (*words, "--min-time", seconds)
        return (*words, "--min-seconds", seconds, "--warmup", "0" if self.emulated else "3")

    def run(self, cool: tuple[int, int]) -> Attempt:
        """Measure everything once; cases that fail are left out from then on."""
        attempt = Attempt()
        pending = interleaved(len(self.cases), self.rounds, once=self.emulated)
        total = position = 0
        per_block = self.block_seconds / SHORTEST_RUN * 6 + 1500
        while pending:
            take = max(1, int(ANSWER_BYTES / per_block))
            answer = self._call([case for _, case in pending[:take]], cool)
            cool = (0, 0)
            if not self.old_options and self._too_old(answer):
                self.old_options = True
                continue
            attempt.answers.append(answer)
            for (turn, case), block in zip(pending, answer.blocks, strict=False):
                if block.error:
                    attempt.errors[case] = block.error
                attempt.blocks.setdefault(case, []).append((position, turn, block))
                position += 1
                total += sum(len(str(sample)) + 1 for sample in block.samples)
            if not answer.blocks:
                raise DeviceFailed(f"{self.place.device.name}: nothing was measured.", "", id="EP631")
            per_block = 1.5 * total / position + 1500
            pending = [each for each in pending[len(answer.blocks) :] if each[1] not in attempt.errors]
        self._judge(attempt)
        return attempt

    def _call(self, order: list[int], cool: tuple[int, int]) -> Answer:
        limit = EMULATED_LIMIT if self.emulated else BLOCK_LIMIT + 3 * self.block_seconds
        deadline = CALL_SECONDS + limit
        if self.started + self.held < time.monotonic() + deadline + cool[1]:
            self.held = deadline + cool[1] + HELD
            self.place.keep(int(self.held))
            self.started = time.monotonic()
        return measure(
            self.place,
            Order(
                programs=tuple(self.program(case) for case in self.cases),
                order=tuple(order),
                limit=limit,
                deadline=deadline,
                govern=not self.emulated,
                cool=cool,
                mask=self.mask,
            ),
        )

    def _too_old(self, answer: Answer) -> bool:
        return any("has no option '--min-seconds'" in block.error for block in answer.blocks)

    def _judge(self, attempt: Attempt) -> None:
        """Find the warm-up rounds and the reasons to doubt."""
        good = [case for case in range(len(self.cases)) if case not in attempt.errors]
        if self.emulated or not good:
            return
        for answer in attempt.answers:
            attempt.doubts += [doubt for doubt in conditions.throttled(answer) if doubt not in attempt.doubts]
        table = round_levels(attempt, good, 0.25)
        most = int(table.shape[1] * WARM_ROUNDS)
        for skip in range(most + 1):
            factors = stats.round_factors(table[:, skip:])
            if max(drift := stats.drift(factors), 1 / drift) <= conditions.DRIFT:
                attempt.warm_rounds = skip
                break
        else:
            drift = stats.drift(stats.round_factors(table))
            attempt.doubts.append(
                f"the same work took {drift:.2f}x as long at the end as at the beginning: heat, or other programs"
            )
        for case in good:
            blocks = attempt.blocks[case]
            steady = sum(sum(b.samples[stats.steady_start(b.samples) :]) for _, turn, b in blocks) / 1e9
            if steady < self.min_time / 2:
                attempt.doubts.append(f"only {steady:.1f} of {self.min_time:g} s of {self.cases[case]} were steady")


def interleaved(cases: int, rounds: int, *, once: bool = False) -> list[tuple[int, int]]:
    """(round, case) of every block: a round runs all cases and then (unless `once`) all backwards.

    Which case comes first changes from round to round like the Thue-Morse sequence, so that what is left of a drift
    that isn't straight favours none.
    """
    everything = []
    for turn in range(rounds):
        row = [(turn // 2 + i) % cases for i in range(cases)]
        if turn.bit_count() % 2:
            row.reverse()
        everything += [(turn, case) for case in (row if once else row + row[::-1])]
    return everything


def mask_of(cores: str, probe: Probe) -> str:
    """taskset's mask (hexadecimal) of ``all`` (empty), ``big``, ``little`` or CPU numbers such as ``4-7``.

    ``little`` are the CPUs of the lowest top clock, ``big`` all others. Raises `UsageError`.
    """
    if cores == "all":
        return ""
    tops = {index: top for index, top, _ in probe.cpus if top}
    if cores in ("big", "little"):
        if len(set(tops.values())) < 2:
            raise UsageError(
                f"--cores {cores}: the device has one kind of core, as far as it tells.",
                "Use --cores all, or the CPUs' numbers, such as 0-3.",
                id="EP260",
            )
        slowest = min(tops.values())
        chosen = {index for index, top in tops.items() if (top == slowest) == (cores == "little")}
    else:
        try:
            chosen = conditions.parse_cpus(cores)
        except ValueError:
            chosen = set()
        known = {index for index, _, _ in probe.cpus}
        if not chosen or max(chosen) > 1023 or (known and not chosen <= known):
            there = f"CPUs 0 to {max(known)}" if known else "the CPUs' numbers"
            raise UsageError(f"--cores {cores!r} means no CPU of the device.", f"Use {there}.", id="EP260")
    return f"{sum(1 << index for index in chosen):x}"


def _cases(bundle: Bundle, variants: Sequence[str], threads: Sequence[int]) -> list[Case]:
    for name in variants:
        bundle.variant(name)  # says which there are
    items = [item for item in bundle.manifest["variants"] if not variants or item["name"] in variants]
    if not items:
        raise UsageError(f"The bundle {bundle.path.name} has no variant.", "Build it again.", id="EP230")
    return [
        Case(
            variant=item["name"],
            engine=item["engine"],
            precision=item["precision"],
            threads=count,
            input_set=item.get("input_set", ""),
        )
        for item in items
        for count in dict.fromkeys(threads)
    ]


def _cool(start: int | None) -> tuple[int, int]:
    """(millidegree, seconds to wait for it at most) of a second try."""
    return (start + COOLER, PATIENCE) if start is not None else (0, BLIND_PATIENCE)


def _seconds(attempt: Attempt) -> float:
    """What the harnesses themselves took: between the looks before and after each."""
    return sum(block.after.uptime - block.before.uptime for blocks in attempt.blocks.values() for _, _, block in blocks)


def _tell_stuck(place: Place, attempts: Sequence[Attempt]) -> None:
    for answer in (answer for attempt in attempts for answer in attempt.answers):
        for file, value in answer.stuck.items():
            log.warn(f"{place.device.name}: {file} could not be put back; it is {value!r} now. Restart the device.")

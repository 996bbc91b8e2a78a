"""How a bundle's variants are measured: interleaved, watched, repeated where the machine wasn't itself.

Every block is a process of its own: how a process happens to lie in memory changes its speed by a percent or two for
its whole life (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong", 2009), so one long
process for each variant would make equal variants differ. A round runs all variants forwards and backwards (A B B A).
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from edgepack import __version__, conditions, log, stats
from edgepack.bundle import Bundle, canonical
from edgepack.cache import sha256_text
from edgepack.errors import DeviceFailed, UsageError
from edgepack.measuring import Answer, Block, Order, Place, measure
from edgepack.types import MeasuredBlock, Measurement, Probe

SCHEMA = 1
SECONDS = 5.0  # of timed runs of each variant
BLOCK_RUNS = 5  # at least
ALONE_ROUNDS = 4  # of a variant that is compared with none: eight processes
WARM_ROUNDS = 1 / 3  # of the rounds, at most, may be warm-up
REDO = 2
COOLER = 2000  # millidegrees above the start that count as cooled down
PATIENCE = 120  # seconds to wait for that
BLIND_PATIENCE = 10  # seconds where the device tells no temperature
BLOCK_LIMIT = 60.0  # seconds that a block may take beside its timed runs: loading, checking the outputs
EMULATED_LIMIT = 600.0
ANSWER_BYTES = 3_000_000  # of one answer; transports keep the last 4 MiB
HELD = 600  # seconds for which a place is ours at first
SHORTEST_RUN = 20e-6  # seconds, for the first answer's size
QUANTILES = (("median", 0.5), ("lower quartile", 0.25))  # of a block, by which variants are compared

Compared = dict[tuple[int, int], tuple[str, stats.Comparison]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure."""

    variant: str
    engine: str
    precision: str
    threads: int

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
    figures = _figures(plan, bundle, attempts, cores)
    return Result(
        measurements=tuple(figures),
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
        return stats.rounds_needed(_level(len(self.cases))) if len(self.cases) > 1 else ALONE_ROUNDS

    @property
    def block_seconds(self) -> float:
        """A quarter more than it takes, for what turns out to be warm-up."""
        return 0.0 if self.emulated else 1.25 * self.min_time / (2 * self.rounds)

    def program(self, case: Case) -> tuple[str, ...]:
        """The words that run the harness once."""
        runs = 1 if self.emulated else BLOCK_RUNS
        words = [f"./bin/edgepack-{case.engine}", "bench", "--variant", f"variants/{case.variant}"]
        words += ["--golden", "golden", "--threads", str(case.threads), "--min-runs", str(runs)]
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
        patience = len(order) * (limit if self.emulated else 3 * self.block_seconds + 10) + limit
        if self.started + self.held < time.monotonic() + patience:
            self.place.keep(int(patience))
            self.started, self.held = time.monotonic(), patience
        return measure(
            self.place,
            Order(
                programs=tuple(self.program(case) for case in self.cases),
                order=tuple(order),
                limit=limit,
                deadline=patience,
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


def round_levels(attempt: Attempt, cases: Sequence[int], quantile: float) -> stats.Floats:
    """Logarithms of a quantile of the steady runs [cases, rounds]; the blocks of a round are averaged."""
    table = []
    for case in cases:
        rounds: dict[int, list[float]] = {}
        for _, turn, block in attempt.blocks[case]:
            steady = block.samples[stats.steady_start(block.samples) :]
            rounds.setdefault(turn, []).append(math.log(max(float(np.quantile(steady, quantile)), 1.0)))
        table.append([sum(rounds[turn]) / len(rounds[turn]) for turn in sorted(rounds)])
    return np.array(table)


def versus(attempt: Attempt, cases: Sequence[int]) -> Compared:
    """(which quantile, comparison) of each case with each other one: how long the second takes relative to the first.

    By the medians of the blocks; where these can't tell, by their lower quartiles: other programs only ever make runs
    slower, so a busy machine blurs the lower quartile last. Both together are wrong as rarely as `stats.LEVEL` says,
    over all pairs (Bonferroni). Where they contradict each other it is a tie.
    """
    found: Compared = {}
    tables = {name: round_levels(attempt, cases, q)[:, attempt.warm_rounds :] for name, q in QUANTILES}
    for i, a in enumerate(cases):
        for j, b in enumerate(cases):
            if a == b:
                continue
            both = [(name, stats.compare(t[i], t[j], level=_level(len(cases)))) for name, t in tables.items()]
            verdicts = {told.verdict for _, told in both} - {"tie"}
            chosen = next((each for each in both if {each[1].verdict} == verdicts), both[0])
            found[a, b] = chosen if len(verdicts) < 2 else (chosen[0], replace(chosen[1], verdict="tie"))
    return found


def _level(cases: int) -> float:
    """Each pair is compared twice."""
    return stats.LEVEL / (cases * (cases - 1))


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
        Case(variant=item["name"], engine=item["engine"], precision=item["precision"], threads=count)
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


# --- from blocks to figures -----------------------------------------------------------------------------------------


def _figures(plan: Plan, bundle: Bundle, attempts: Sequence[Attempt], cores: str) -> Iterator[Measurement]:
    attempt, place = attempts[-1], plan.place
    good = [index for index in range(len(plan.cases)) if index not in attempt.errors]
    files = {file["path"]: file["sha256"] for file in bundle.manifest["files"]}
    cpus = len(place.probe.cpus) or 1
    shared: dict[str, Any] = {
        "schema": SCHEMA,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "session": uuid.uuid4().hex,
        "edgepack": __version__,
        "model": bundle.manifest["name"],
        "bundle": bundle.manifest["digest"],
        "target": bundle.manifest["target"]["name"],
        "cores": cores,
        "allowed_cpus": attempt.answers[0].allowed,
        "how": place.how,
        "emulator": " ".join(place.prefix),
        "conditions": conditions.record(attempt.answers),
        "warmup_rounds": attempt.warm_rounds,
        "valid": not attempt.doubts,
        "reason": "; ".join(attempt.doubts),
        "attempts": tuple("; ".join(each.doubts) for each in attempts),
        "notes": tuple(conditions.notes(attempt.answers, cpus)),
    }
    compared = versus(attempt, good) if not plan.emulated and not attempt.doubts else {}
    for index in good:
        case = plan.cases[index]
        context = attempt.blocks[index][0][2].context
        prefix = f"variants/{case.variant}/"
        yield Measurement(
            **shared,
            variant=case.variant,
            engine=case.engine,
            engine_version=str(context.get("engine_version", "")),
            precision=case.precision,
            threads=case.threads,
            harness_sha256=files.get(f"bin/edgepack-{case.engine}", ""),
            model_sha256=sha256_text(canonical({p: sha for p, sha in files.items() if p.startswith(prefix)})),
            device=_device(place, str(context.get("cpu", ""))),
            blocks=(blocks := _blocks(attempt.blocks[index])),
            statistics=statistics(blocks, attempt.warm_rounds),
            comparisons=tuple(
                {"with": str(plan.cases[a]), "of": name, **asdict(told)}
                for (a, b), (name, told) in compared.items()
                if b == index
            ),
            rank=_rank(compared, index),
        )


def _blocks(blocks: Sequence[tuple[int, int, Block]]) -> tuple[MeasuredBlock, ...]:
    return tuple(
        MeasuredBlock(
            position=position,
            round=turn,
            warmup=stats.steady_start(block.samples),
            samples_ns=block.samples,
            load_ns=block.load_ns,
            first_ns=block.first_ns,
            peak_rss_bytes=block.peak_rss_bytes,
        )
        for position, turn, block in blocks
    )


def statistics(blocks: Sequence[MeasuredBlock], warm_rounds: int) -> dict[str, Any]:
    """What a record's blocks come to: the median with its interval, percentiles (None: too few samples), the rest.

    The interval is that of the median over processes, from the medians of the blocks: runs of one process resemble each
    other, so that many of them don't make the figure surer than a few processes do.
    """
    counted = [block for block in blocks if block.round >= warm_rounds]
    series = [np.array(block.samples_ns[block.warmup :]) for block in counted]
    pooled = np.concatenate(series)
    median = stats.percentile(pooled, 0.5)
    assert median is not None
    interval = stats.quantile_interval([float(np.median(each)) for each in series])
    low, high, coverage = interval or (None, None, None)

    def middle(name: str) -> int | None:
        values = [value for block in blocks if (value := getattr(block, name)) is not None]
        return stats.percentile(values, 0.5) if values else None

    return {
        "samples": len(pooled),
        "seconds": float(pooled.sum()) / 1e9,
        "median_ns": median,
        "interval_ns": None if low is None or high is None else [min(low, median), max(high, median)],
        "interval_coverage": coverage,
        **{f"p{round(q * 100)}_ns": stats.percentile(pooled, q) for q in (0.9, 0.95, 0.99)},
        "fastest_ns": int(pooled.min()),
        "slowest_ns": int(pooled.max()),
        "load_ns": middle("load_ns"),
        "first_ns": middle("first_ns"),
        "peak_rss_bytes": max((b.peak_rss_bytes for b in blocks if b.peak_rss_bytes is not None), default=None),
    }


def _rank(compared: Compared, case: int) -> int | None:
    """One more than how many are faster, or None where nothing was compared."""
    others = [told for (_, b), (_, told) in compared.items() if b == case]
    return 1 + sum(told.verdict == "slower" for told in others) if others else None


def _device(place: Place, cpu: str) -> dict[str, Any]:
    probe = place.probe
    return {
        "name": place.device.name,
        "transport": place.device.transport,
        "machine": probe.machine,
        "cpu": cpu,
        "clusters": [list(cluster) for cluster in probe.clusters],
        "kernel": probe.kernel,
        "os": probe.os,
        "libc": f"{probe.libc} {probe.libc_version}".strip(),
        "memory_mb": probe.memory_mb,
        "npu": probe.npu,
    }

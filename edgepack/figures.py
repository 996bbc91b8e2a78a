"""From blocks to figures: what a measurement's samples come to, and which variant is faster."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack import __version__, conditions, stats
from edgepack.bundle import Bundle, canonical
from edgepack.cache import sha256_text
from edgepack.measuring import Block, Place
from edgepack.types import MeasuredBlock, Measurement

if TYPE_CHECKING:
    from edgepack.bench import Attempt, Case

SCHEMA = 1
QUANTILES = (("median", 0.5), ("lower quartile", 0.25))  # of a block, by which variants are compared

Compared = dict[tuple[int, int], tuple[str, stats.Comparison]]


def figures(
    place: Place, bundle: Bundle, cases: Sequence[Case], attempts: Sequence[Attempt], cores: str
) -> Iterator[Measurement]:
    """A record for each case that didn't fail, from the last attempt."""
    attempt = attempts[-1]
    good = [index for index in range(len(cases)) if index not in attempt.errors]
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
    compared = versus(attempt, good) if place.how == "native" and not attempt.doubts else {}
    same = {pair: told for pair, told in compared.items() if cases[pair[0]].input_set == cases[pair[1]].input_set}
    for index in good:
        case = cases[index]
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
                {"with": str(cases[a]), "of": name, **asdict(told)}
                for (a, b), (name, told) in same.items()
                if b == index
            ),
            rank=_rank(same, index),
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


# --- which is faster -----------------------------------------------------------------------------------------------


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
            both = [(name, stats.compare(t[i], t[j], level=level(len(cases)))) for name, t in tables.items()]
            verdicts = {told.verdict for _, told in both} - {"tie"}
            chosen = next((each for each in both if {each[1].verdict} == verdicts), both[0])
            found[a, b] = chosen if len(verdicts) < 2 else (chosen[0], replace(chosen[1], verdict="tie"))
    return found


def level(cases: int) -> float:
    """The chance of a false alarm that one comparison may have: each pair of the cases is compared twice."""
    return stats.LEVEL / (cases * (cases - 1))

"""results.jsonl: one measurement a line, complete without any other file; and the table of a session."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from edgepack import stats
from edgepack.bench import Result
from edgepack.cache import out_of_space
from edgepack.errors import IntegrityError
from edgepack.figures import SCHEMA
from edgepack.report import columns
from edgepack.types import MeasuredBlock, Measurement, set_of


def append(path: Path, measurements: Sequence[Measurement]) -> None:
    """Add lines to a file, each in one write: programs that append at the same time don't mix theirs."""
    with out_of_space(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            for measurement in measurements:
                line = (json.dumps(document(measurement), allow_nan=False) + "\n").encode()
                if os.write(descriptor, line) != len(line):
                    raise OSError(28, "the line was written in part", str(path))
        finally:
            os.close(descriptor)


def document(measurement: Measurement) -> dict[str, Any]:
    """A measurement as JSON; docs/measurement.schema.json describes it."""
    return asdict(measurement)


def read(path: Path) -> list[Measurement]:
    """All measurements of a file. Raises `IntegrityError` (names the line)."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            found.append(_measurement(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            raise IntegrityError(
                f"{path}, line {number} is no measurement of schema {SCHEMA}.", "Remove the line.", id="EP803"
            ) from None
    return found


def _measurement(content: Mapping[str, Any]) -> Measurement:
    if content["schema"] != SCHEMA or set(content) != {each.name for each in fields(Measurement)}:
        raise ValueError("another schema")
    blocks = tuple(MeasuredBlock(**{**b, "samples_ns": tuple(b["samples_ns"])}) for b in content["blocks"])
    tuples = {name: tuple(content[name]) for name in ("comparisons", "attempts", "notes")}
    return Measurement(**{**content, "blocks": blocks, **tuples})


# --- for people -----------------------------------------------------------------------------------------------------


def table(result: Result) -> str:
    """The figures of one session: ranked where they may be, and what makes one doubtful."""
    headers = ("variant", "threads", "median ms", "interval", "p90", "p99", "load ms", "first ms", "RSS MB", "rank")
    ordered = sorted(result.measurements, key=lambda m: (m.rank or 0, m.statistics["median_ns"]))
    lines = [columns(headers, [_row(m, ordered) for m in ordered])]
    lines += [f"{case}: failed: {why}" for case, why in result.failures]
    first = ordered[0]
    if first.how == "emulated":
        lines.append(f"EMULATED by {first.emulator.split()[0]}: these times say nothing of a device; no ranks.")
    if not first.valid:
        lines.append(f"NOT VALID: {first.reason}. Tried {len(first.attempts)} times; no ranks.")
    fastest = {set_of(m.variant): m for m in reversed(ordered)}
    pairs = [(fastest[set_of(m.variant)], m) for m in ordered]
    lines += [_versus(best, other) for best, other in pairs if other is not best and best.comparisons]
    if len(fastest) > 1 and first.rank is not None:
        lines.append("Ranks are among the variants of one input set: another one's inputs are other work.")
    lines += [f"note: {note}" for note in first.notes]
    if first.warmup_rounds:
        lines.append(f"note: the first {first.warmup_rounds} rounds were warm-up")
    short = [m for m in ordered if m.statistics["p99_ns"] is None and m.how != "emulated"]
    if short:
        lines.append(
            f"p90 needs {stats.samples_needed(0.9)} runs, p99 {stats.samples_needed(0.99)}: give more --min-time."
        )
    lines.append(_conditions(first))
    return "\n".join(lines)


def _row(m: Measurement, session: Sequence[Measurement]) -> tuple[str, ...]:
    s = m.statistics
    interval = s["interval_ns"]
    return (
        m.variant,
        str(m.threads),
        _ms(s["median_ns"]) + ("" if m.valid and m.how != "emulated" else " ?"),
        f"{_ms(interval[0])} to {_ms(interval[1])}" if interval else "-",
        _ms(s["p90_ns"]),
        _ms(s["p99_ns"]),
        _ms(s["load_ns"]),
        _ms(s["first_ns"]),
        f"{s['peak_rss_bytes'] / 1e6:.1f}" if s["peak_rss_bytes"] else "-",
        _rank(m, session),
    )


def _rank(m: Measurement, session: Sequence[Measurement]) -> str:
    if m.rank is None:
        return "-"
    equals = {name(each) for each in session if each.rank == m.rank and set_of(each.variant) == set_of(m.variant)}
    tie = any(told["verdict"] == "tie" and told["with"] in equals for told in m.comparisons)
    return f"{m.rank} tie" if tie else str(m.rank)


def _versus(first: Measurement, other: Measurement) -> str:
    """The fastest against another, in words."""
    told = next(each for each in other.comparisons if each["with"] == name(first))
    low, high = ("?" if bound is None else f"{bound:.3f}" for bound in (told["low"], told["high"]))
    if told["verdict"] == "tie":
        return f"{name(other)}: tie with {name(first)} ({told['ratio']:.3f} times as long, {low} to {high})"
    return f"{name(other)}: {told['ratio']:.3f} times as long as {name(first)} ({low} to {high}, {told['of']}s)"


def name(m: Measurement) -> str:
    """What a session calls a measurement."""
    return f"{m.variant} x{m.threads}"


def _conditions(m: Measurement) -> str:
    c = m.conditions
    parts = [f"{m.device['name']}: {m.device['cpu'] or m.device['machine']}", f"Linux {m.device['kernel']}"]
    parts.append(f"CPUs {m.allowed_cpus}")
    for clock in c["clocks"]:
        if clock["highest_khz"]:
            parts.append(f"{clock['governor']} {clock['lowest_khz'] // 1000} to {clock['highest_khz'] // 1000} MHz")
    if c["temperatures"]:
        hot = max(c["temperatures"], key=lambda zone: zone["highest"])
        parts.append(
            f"{hot['zone']} {hot['before'] / 1000:.0f}, {hot['highest'] / 1000:.0f}, {hot['after'] / 1000:.0f} °C"
        )
    parts.append(f"load {c['load_before']:.1f} to {c['load_after']:.1f}")
    return "; ".join(parts)


def _ms(ns: int | None) -> str:
    """Milliseconds with three or four digits that count."""
    if ns is None:
        return "-"
    ms = ns / 1e6
    return f"{ms:.3f}" if ms < 10 else f"{ms:.2f}" if ms < 100 else f"{ms:.1f}"

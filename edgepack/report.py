"""Outcomes -> a table for people and a document for programs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgepack import __version__, payoff
from edgepack.types import Outcome, Precision, SelfTest, Status, TensorSpec

if TYPE_CHECKING:
    from edgepack.pipeline import BuildResult

SCHEMA = 1
LISTED = 10  # layers that a line names
LONGEST_NAME = 60


def document(command: str, **content: Any) -> dict[str, Any]:
    """The one JSON document of a command; `error` is None when it went well."""
    return {"schema": SCHEMA, "command": command, "version": __version__, "error": None, **content}


def build_document(result: BuildResult) -> dict[str, Any]:
    """The result of `edgepack build` for programs."""
    return document(
        "build",
        bundle=str(result.bundle) if result.bundle else None,
        digest=result.digest,
        target=result.plan.target.name,
        samples=result.samples,
        synthetic=result.synthetic,
        input_sets=[
            {
                "name": each.name,
                "inputs": [asdict(spec) for spec in each.inputs],
                "outputs": [asdict(spec) for spec in each.outputs],
                "samples": each.samples,
                "synthetic": each.synthetic,
                "size": _set_size(result, each.name),
            }
            for each in result.input_sets
        ],
        seconds=round(result.seconds, 3),
        outcomes=[outcome_document(outcome) for outcome in result.outcomes],
        notes=payoff.notes(result.outcomes, result.digest, result.plan.results),
    )


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """One outcome for programs; times are of this host, `host_latency_ms` is no device's latency."""
    return {
        "variant": str(outcome.variant),
        "input_set": outcome.variant.input_set,
        "status": outcome.status,
        "reason": outcome.reason,
        "hint": outcome.hint,
        "size": outcome.size,
        "runtime_size": outcome.runtime_size,
        "full_size": outcome.full_size,
        "verdict": asdict(outcome.verdict) if outcome.verdict else None,
        "self_test": asdict(outcome.self_test) if outcome.self_test else None,
        "host_latency_ms": outcome.host_latency_ms,
        "gate": asdict(outcome.gate) if outcome.gate else None,
        "int8": asdict(outcome.int8) if outcome.int8 else None,
        "seconds": round(outcome.seconds, 3),
    }


def table(result: BuildResult) -> str:
    """The table at the end of a build, as text."""
    headers = (
        "variant", "outcome", "size MB", "% of fp32", "runtime MB", "cosine", "SQNR dB", "top-1",
        "self-test", "host ms", "time s",
    )  # fmt: skip
    float_sizes = {
        (outcome.variant.engine, outcome.variant.input_set): outcome.size
        for outcome in result.outcomes
        if outcome.variant.precision is Precision.FP32 and outcome.size
    }
    rows = [_row(o, float_sizes.get((o.variant.engine, o.variant.input_set))) for o in result.outcomes]
    lines = [columns(headers, rows)]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for outcome in result.outcomes:
        if outcome.status is not Status.BUILT:
            why = (str(outcome.status), outcome.reason, outcome.hint)
            grouped.setdefault(why, []).append(str(outcome.variant))
    for (status, reason, hint), names in grouped.items():
        lines.append(f"{', '.join(names)}: {status}: {reason}")
        if hint:
            lines.append(f"    {hint}")
    for outcome in result.outcomes:
        lines += _gated(outcome) + _kept(outcome)
    lines += [f"note: {note}" for note in payoff.notes(result.outcomes, result.digest, result.plan.results)]
    kind = _samples(result.samples, result.synthetic)
    lines.append(f"Compared with the source model on {kind}; host ms is this machine, not the device.")
    lines += _sets(result)
    if any(outcome.full_size for outcome in result.outcomes):
        lines.append('runtime "a of b": the harness and its libraries, and what they would be with the whole engine.')
    if result.bundle:
        lines.append(f"Bundle: {result.bundle}  ({result.seconds:.1f} s)")
    return "\n".join(lines)


def _samples(count: int, synthetic: bool) -> str:
    kind = "synthetic samples (give --calib or --samples for real ones)" if synthetic else "real samples"
    return f"{count} {kind}"


def _sets(result: BuildResult) -> list[str]:
    """What each input set is, and what it adds to the bundle: every variant has files of its own."""
    whole = sum(outcome.size for outcome in result.outcomes if outcome.status is Status.BUILT)
    shapes = {
        each.name: ", ".join(f"{plain(s.name)} {list(s.shape)}" for s in each.inputs) for each in result.input_sets
    }
    return [
        f"input set {each.name}: {shapes[each.name]}; its variants are "
        f"{_megabytes(_set_size(result, each.name))} of the {_megabytes(whole)} MB of all variants; "
        f"compared on {_samples(each.samples, each.synthetic)}."
        for each in result.input_sets
    ]


def _inputs(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{plain(spec.name)} {list(spec.shape)}" for spec in specs)


def _set_size(result: BuildResult, name: str) -> int:
    mine = [o for o in result.outcomes if o.variant.input_set == name and o.status is Status.BUILT]
    return sum(outcome.size for outcome in mine)


def plain(name: str) -> str:
    """A model's name with every character that a terminal would act on replaced by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def short(name: str) -> str:
    """A model's name for a line or a table: the middle of a long one, such as TFLite's fused layers, is left out."""
    name = plain(name)
    return name if len(name) <= LONGEST_NAME else f"{name[:27]}...{name[-30:]}"


def _gated(outcome: Outcome) -> list[str]:
    """How a variant that was built did at its gate; what missed it is among the reasons."""
    gate = outcome.gate
    if gate is None or gate.score is None or outcome.status is not Status.BUILT:
        return []
    unit = f" {gate.unit}" if gate.unit else ""
    own = "" if gate.metric == "sqnr" else f", the float model's is {gate.source:.4g}{unit}"
    data = "labelled samples" if gate.labelled else "samples without labels"
    return [
        f"{outcome.variant}: {gate.metric} {gate.score:.4g}{unit} on {gate.samples} {data}{own}, "
        f"the gate is {gate.limit:.4g}{unit}."
    ]


def _kept(outcome: Outcome) -> list[str]:
    """What a repair did, and its cost."""
    facts = outcome.int8
    if facts is None or outcome.status is not Status.BUILT or not facts.tries:
        return []
    if not facts.kept_float:
        return [f"{outcome.variant}: repaired with {facts.ranges} ranges, no layer in float."]
    names = [short(k.layer) for k in facts.kept_float[:LISTED]]
    more = len(facts.kept_float) - len(names)
    rule = "" if facts.ranges == "auto" else f", {facts.ranges} ranges"
    return [
        f"{outcome.variant}: repaired: {len(facts.kept_float)} layers stay in float "
        f"({sum(k.macs for k in facts.kept_float):.2%} of the MACs, {(facts.size - facts.full_int8_size) / 1e6:+.2f} MB"
        f"{rule}): {', '.join(names)}{f' and {more} more' if more else ''}."
    ]


def _row(outcome: Outcome, float_size: int | None) -> tuple[str, ...]:
    verdict = outcome.verdict
    worst = min(verdict.metrics, key=lambda m: m.cosine) if verdict and verdict.metrics else None
    agreements = [m.top1 for m in verdict.metrics if m.top1 is not None] if verdict else []
    return (
        str(outcome.variant),
        str(outcome.status),
        _megabytes(outcome.size),
        f"{outcome.size / float_size:.0%}" if outcome.size and float_size else "-",
        _runtime(outcome),
        f"{_floor(worst.cosine)}" if worst else "-",
        f"{min(m.sqnr_db for m in verdict.metrics):.1f}" if verdict and worst else "-",
        f"{min(agreements):.2f}" if agreements else "-",
        _tested(outcome.self_test),
        f"{outcome.host_latency_ms:.2f}" if outcome.host_latency_ms is not None else "-",
        f"{outcome.seconds:.1f}",
    )


def _runtime(outcome: Outcome) -> str:
    """What ships, and what it would be with the whole engine."""
    size = _megabytes(outcome.runtime_size)
    return f"{size} of {_megabytes(outcome.full_size)}" if outcome.full_size else size


def _tested(test: SelfTest | None) -> str:
    if test is None:
        return "-"
    if test.passed is None:
        return test.how
    noise = [m["sqnr_db"] for m in test.metrics if m.get("sqnr_db") is not None]
    return f"ok ({test.how}, {min(noise):.0f} dB)" if noise else f"ok ({test.how})"


def _floor(value: float) -> str:
    """Four digits, rounded down: 0.99996 must not read as 1."""
    return f"{math.floor(value * 1e4) / 1e4:.4f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}" if size else "-"


def columns(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table as text: the first two columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = []
    for row in (headers, tuple("-" * w for w in widths), *rows):
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)

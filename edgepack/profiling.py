"""`edgepack profile`: where one variant of a bundle spends its time, operator by operator, as its engine tells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgepack import elf, emulator, process
from edgepack.bundle import golden_of, open_bundle, target_from
from edgepack.errors import DeviceFailed, ToolMissing

SECONDS = 1800.0
Line = dict[str, Any]


def profile(path: Path, variant: str, *, runs: int, threads: int, cores: str = "") -> dict[str, Any]:
    """Profile `variant` on the bundle's first golden sample, on this machine.

    `cores` is a list of CPUs as the harness takes it ("4-7,0"); empty for no choice. Returns ``status`` ("ok" or
    "unsupported", then with a ``reason``), ``how`` ("native" or "emulated"), times in integer nanoseconds over all
    `runs` (``total_ns`` by the clock, ``sum_ns`` of all operators, ``plain_ns`` without the engine's timer),
    ``operators`` in the order in which they run and ``kinds``, the same by type. Raises `UsageError` (no such
    variant), `ToolMissing` (a foreign architecture and no emulator) and `DeviceFailed` (the harness said no).
    """
    bundle = open_bundle(path)
    folder = bundle.variant(variant)
    target = target_from(bundle.manifest["target"])
    item = bundle.facts(variant)
    program = path.resolve() / item["harness"]
    runner = emulator.find(target, static=elf.needs(program).static)
    if runner is None:
        raise ToolMissing(f"This machine can't run {target.arch} programs: {emulator.why_not(target)}.", "")
    argv = [str(program), "profile", "--variant", str(folder.resolve()), "--golden"]
    argv += [str(path.resolve() / golden_of(item.get("input_set", "")))]
    argv += ["--runs", str(runs), "--threads", str(threads), *(["--cores", cores] if cores else [])]
    try:
        done = runner.run(argv, SECONDS)
    except process.TimedOut as error:
        raise DeviceFailed(f"The harness of {variant} was killed after {error.seconds:.0f} s.", "") from None
    lines = emulator.json_lines(done.stdout)
    summary = next((line for line in lines if line.get("type") == "profile"), None)
    if done.returncode != 0 or summary is None or lines[-1].get("type") != "end":
        words = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise DeviceFailed(f"The harness of {variant} ended with {done.returncode}: {words[0]}", "")
    facts = {"variant": variant, "how": runner.how, "threads": threads, **summary}
    del facts["type"]
    if summary["status"] == "ok":
        operators = [_operator(line) for line in lines if line.get("type") == "operator"]
        facts |= {"operators": operators, "kinds": by_kind(operators)}
    return facts


def by_kind(operators: Iterable[Line]) -> list[Line]:
    """Operators of one type taken together, the most time first."""
    sums: dict[str, Line] = defaultdict(lambda: {"ns": 0, "share": 0.0, "calls": 0})
    for operator in operators:
        for key, value in sums[operator["op"]].items():
            sums[operator["op"]][key] = value + operator[key]
    kinds = [{"op": op, **values} for op, values in sums.items()]
    return sorted(kinds, key=lambda kind: (-kind["ns"], kind["op"]))


def text(facts: dict[str, Any]) -> str:
    """A table for people: types by share, then the ten slowest operators. Times are per inference."""
    if facts["status"] != "ok":
        return f"{facts['variant']}: {facts['reason']}"
    runs, emulated = facts["runs"], " (emulated: no measure of the device)" if facts["how"] == "emulated" else ""
    head = (
        f"{facts['variant']}, {runs} runs on {facts['threads']} thread{'s' * (facts['threads'] > 1)}{emulated}: "
        f"{_ms(facts['plain_ns'], runs)} ms per inference, {_ms(facts['total_ns'], runs)} ms with the engine's timer"
    )
    rows = [head, "", f"{'share':>6} {'ms':>9} {'calls':>6}  type"]
    rows += [_row(kind, runs, kind["op"]) for kind in facts["kinds"]]
    rows += ["", f"{'share':>6} {'ms':>9} {'calls':>6}  operator"]
    slowest = sorted(facts["operators"], key=lambda operator: -operator["ns"])[:10]
    rows += [_row(each, runs, f"{each['index']:>4} {each['op']} {each['name']!r}") for each in slowest]
    if facts["reason"]:
        rows += ["", f"Note: {facts['reason']}."]
    return "\n".join(rows)


def _operator(line: Line) -> Line:
    name = bytes.fromhex(line["name_hex"]).decode("utf-8", "backslashreplace")
    return {"index": line["index"], "name": name, **{key: line[key] for key in ("op", "ns", "share", "calls")}}


def _row(entry: Line, runs: int, label: str) -> str:
    return f"{entry['share']:>6.1%} {_ms(entry['ns'], runs):>9} {entry['calls'] / runs:>6g}  {label}"


def _ms(ns: int, runs: int) -> str:
    return f"{ns / runs / 1e6:.3f}"

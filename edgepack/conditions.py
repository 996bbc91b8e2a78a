"""Was the machine itself while it was measured? Clocks, heat and the canary -> reasons to doubt, and a record."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from edgepack.measuring import Answer, Policy, State

DRIFT = 1.10  # the canary's bound: Jetpack Microbenchmark's ThrottleDetector has the same
_CPU_COOLING = re.compile(r"processor|cpu", re.I)
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_PI_FLAGS = ((1, "under-voltage"), (2, "the clock is capped"), (4, "throttled"), (8, "soft temperature limit"))


def throttled(answer: Answer) -> list[str]:
    """What sysfs says of throttling while `answer` was measured, as clauses."""
    return list(dict.fromkeys(_throttled(answer)))


def _throttled(answer: Answer) -> Iterator[str]:
    states = answer.states
    fixed = _fixed(answer)
    for index, policy in enumerate(answer.policies):
        if not _used(policy, answer.allowed):
            continue
        limits = _column(states, "limits", index)
        if limits and min(limits) < limits[0] * 0.999:
            low, high = min(limits) / 1000, limits[0] / 1000
            yield f"the clock of CPUs {policy.cpus} was capped at {low:.0f} of {high:.0f} MHz"
        clocks = _column(_working(answer), "clocks", index)
        if policy.name in fixed and clocks and min(clocks) < max(clocks) * 0.97:
            low, high = min(clocks) / 1000, max(clocks) / 1000
            yield f"CPUs {policy.cpus} ran at {low:.0f} to {high:.0f} MHz under the performance governor"
    for index, (_, kind) in enumerate(answer.coolings):
        levels = _column(states, "cooling", index)
        if _CPU_COOLING.search(kind) and levels and max(levels) > 0:
            yield f"the cooling device {kind} slowed the processor (state {max(levels)})"
    for index, (trip, kind) in enumerate(answer.zones):
        hottest = max(_column(states, "temperatures", index), default=0)
        if trip and hottest >= trip:
            yield f"{kind} reached {hottest / 1000:.1f} °C; the kernel slows down from {trip / 1000:.1f} °C on"
    yield from _flags(states)


def _flags(states: Sequence[State]) -> Iterator[str]:
    pi = _column(states, "flags", 0)
    for bit, words in _PI_FLAGS:
        if any(value & bit for value in pi):
            yield f"the firmware says: {words}"
    intel = _column(states, "flags", 1)
    if intel and intel[-1] > intel[0]:
        yield f"the processor throttled itself {intel[-1] - intel[0]} times"


def record(answers: Sequence[Answer]) -> dict[str, Any]:
    """The conditions of a measurement, JSON-ready: kHz, millidegree Celsius, load averages."""
    first = answers[0]
    states = [state for answer in answers for state in answer.states]
    working = [state for answer in answers for state in _working(answer)] or states
    temperatures = []
    for index, (trip, kind) in enumerate(first.zones):
        values = _column(states, "temperatures", index)
        if values:
            temperatures.append(
                {"zone": kind, "before": values[0], "highest": max(values), "after": values[-1], "trip": trip or None}
            )
    clocks = []
    for index, policy in enumerate(first.policies):
        values = _column(working, "clocks", index)
        limits = _column(states, "limits", index)
        clocks.append(
            {
                "cpus": policy.cpus,
                "governor_before": policy.governor,
                "governor": "performance" if policy.name in _fixed(first) else policy.governor,
                "top_khz": policy.top or None,
                "limit_khz": min(limits, default=None),
                "lowest_khz": min(values, default=None),
                "highest_khz": max(values, default=None),
            }
        )
    changed = {file: value for answer in answers for file, value in answer.changed.items()}
    stuck = {file: value for answer in answers for file, value in answer.stuck.items()}
    return {
        "clocks": clocks,
        "temperatures": temperatures,
        "load_before": states[0].load if states else None,
        "load_after": states[-1].load if states else None,
        "changed": changed,
        "refused": {file: value for answer in answers for file, value in answer.refused.items()},
        "restored": not stuck and all(set(a.changed) <= set(a.restored) for a in answers) if changed else None,
        "cooled_seconds": sum(answer.cooled or 0 for answer in answers) or None,
    }


def notes(answers: Sequence[Answer], cpus: int) -> list[str]:
    """What a reader of the figures should know although it makes none of them wrong."""
    found = []
    first = answers[0]
    if first.refused and first.policies:
        governors = sorted({policy.governor for policy in first.policies})
        why = next((value for file, value in first.refused.items() if file == "-"), "the device doesn't permit more")
        found.append(f"clocks were not set (governor {', '.join(governors)}): {why}")
    if not first.policies:
        found.append("the device tells nothing of its clocks")
    if not first.zones:
        found.append("the device tells no temperature")
    if first.states and first.states[0].load > 0.3 * cpus:
        found.append(f"the machine was busy before: load {first.states[0].load:.2f} on {cpus} CPUs")
    if any(answer.leftover for answer in answers):
        found.append("clocks that an earlier measurement had left were put back first")
    if any(answer.moved for answer in answers):
        found.append("another program changed the clocks meanwhile")
    return found


def _fixed(answer: Answer) -> set[str]:
    """Policies that ran under the performance governor."""
    changed = {
        file.split("/")[-2].removeprefix("policy")
        for file, value in answer.changed.items()
        if file.endswith("/scaling_governor")
    }
    return changed | {policy.name for policy in answer.policies if policy.governor == "performance"}


def _working(answer: Answer) -> list[State]:
    return [block.after for block in answer.blocks]


def _column(states: Sequence[State], name: str, index: int) -> list[int]:
    """The known values of one policy, zone or device over time."""
    rows = (getattr(state, name) for state in states)
    return [row[index] for row in rows if index < len(row) and row[index] is not None]


def _used(policy: Policy, allowed: str) -> bool:
    return not allowed or bool(parse_cpus(policy.cpus) & parse_cpus(allowed)) or not policy.cpus


def parse_cpus(text: str) -> set[int]:
    """``0-3,6`` or ``0 1 2`` as numbers; raises `ValueError`."""
    found: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        if part:
            low, _, high = part.partition("-")
            found |= set(range(int(low), int(high or low) + 1))
    return found

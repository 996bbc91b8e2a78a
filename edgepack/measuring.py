"""One round trip that measures: the command line of templates/device/measure.sh, and what it answers.

The script runs the harness again and again in a given order, looks at clocks, temperatures and cooling devices in
between, sets the clocks to their highest where it may and puts them back, also when the link is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepack import process
from edgepack.errors import DeviceFailed
from edgepack.interfaces import Transport
from edgepack.transports.remote import script
from edgepack.types import Device, Probe

SLACK = 30.0  # seconds that a script may take beside the programs that it runs
_MESSAGES = {
    66: "the bundle's folder is not there",
    67: "there is no taskset, or it refused the cores",
    68: "edgepack's own folder can't be written",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where to measure: a device, and a bundle that lies in `folder` there.

    ``root`` is edgepack's own folder there. ``how`` is ``native`` or ``emulated``; ``prefix`` are the words in front of
    a program (an emulator's). ``sysfs`` stands in front of /sys and /proc. ``keep`` holds the device for that many
    seconds more.
    """

    device: Device
    probe: Probe
    transport: Transport
    root: str
    folder: str
    how: str = "native"
    prefix: tuple[str, ...] = ()
    sysfs: str = ""
    keep: Callable[[int], None] = lambda seconds: None


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to run: `programs` (words each) in an `order`, each for `limit` seconds and all for `deadline` at most.

    What can't be begun ``limit`` seconds before the deadline is left out, and so is all after a program that failed.
    ``cool`` is (millidegree Celsius to wait for, seconds to wait at most), ``mask`` taskset's.
    """

    programs: tuple[tuple[str, ...], ...]
    order: tuple[int, ...]
    limit: float
    deadline: float
    govern: bool = True
    cool: tuple[int, int] = (0, 0)
    mask: str = ""


@dataclass(frozen=True, kw_only=True)
class State:
    """The machine at one moment: kHz by policy, millidegree by zone, states of cooling devices; None: unknown."""

    uptime: float
    load: float
    clocks: tuple[int | None, ...] = ()
    limits: tuple[int | None, ...] = ()
    temperatures: tuple[int | None, ...] = ()
    cooling: tuple[int | None, ...] = ()
    flags: tuple[int | None, ...] = ()

    @property
    def hottest(self) -> int | None:
        """The largest temperature in millidegree Celsius."""
        return max((t for t in self.temperatures if t is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One run of a harness: of which program, its timed runs in ns, and the machine before and after."""

    program: int
    context: Mapping[str, Any]
    samples: tuple[int, ...]
    load_ns: int | None
    first_ns: int | None
    peak_rss_bytes: int | None
    error: str
    before: State
    after: State


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A clock domain: its largest kHz, governor as found, and CPUs."""

    name: str
    top: int
    governor: str
    cpus: str


@dataclass(kw_only=True)
class Answer:
    """All that measure.sh said. ``changed`` are clocks that were set, ``refused`` those that the device kept."""

    policies: list[Policy] = field(default_factory=list)
    zones: list[tuple[int, str]] = field(default_factory=list)
    coolings: list[tuple[int, str]] = field(default_factory=list)
    allowed: str = ""
    blocks: list[Block] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    restored: dict[str, str] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)
    leftover: int = 0
    cooled: int | None = None


def measure(place: Place, order: Order) -> Answer:
    """Run the script. Raises `DeviceFailed` (it can't run, or its answer is cut off) and `DeviceUnreachable`."""
    words = [
        place.root,
        place.folder,
        place.sysfs,
        "yes" if order.govern else "no",
        str(max(int(order.limit), 1)),
        str(max(int(order.deadline), 1)),
        str(order.cool[0]),
        str(order.cool[1]),
        order.mask,
        script("restore"),
        " ".join(map(str, order.order)),
    ]
    for program in order.programs:
        words += [str(len(place.prefix) + len(program)), *place.prefix, *program]
    seconds = order.deadline + order.cool[1] + SLACK
    try:
        done = place.transport.run(["sh", "-c", script("measure"), "edgepack", *words], seconds)
    except process.TimedOut as error:
        raise DeviceFailed(
            f"{place.device.name}: measuring took more than {error.seconds:.0f} s and was ended.",
            "Give less to measure: --min-time, or fewer variants at a time.",
            id="EP630",
        ) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:]
        why = _MESSAGES.get(done.returncode, said[0] if said else process.describe_exit(done.returncode))
        raise DeviceFailed(f"{place.device.name}: measuring failed: {why}.", "", id="EP630")
    return parse(done.stdout, place.device.name)


def parse(text: str, device: str) -> Answer:
    """Understand the script's lines; what a login shell says before them is skipped. Raises `DeviceFailed`."""
    _, found, body = text.replace("\r\n", "\n").rpartition("edgepack-measure 1\n")
    lines = body.rstrip("\n").split("\n")
    if not found or lines[-1] != "end":
        raise DeviceFailed(
            f"{device}: the answer of the measuring is {'cut off' if found else 'not there'}.",
            "Was it interrupted there? Measure again.",
            id="EP631",
        )
    answer = Answer()
    program: int | None = None
    output: list[str] = []
    for line in lines[:-1]:
        word, _, rest = line.partition(" ")
        if program is not None and word not in ("state", "block"):
            output.append(line)
            continue
        try:
            if word == "state":
                answer.states.append(_state(rest))
                if program is not None:
                    answer.blocks.append(_block(program, output, answer.states[-2], answer.states[-1]))
                program, output = None, []
            elif word == "block":
                program = int(rest)
            else:
                _fact(answer, word, rest)
        except (ValueError, KeyError, IndexError):
            raise DeviceFailed(
                f"{device}: the measuring said {line[:80]!r}, which is not understood.", "", id="EP631"
            ) from None
    return answer


def _fact(answer: Answer, word: str, rest: str) -> None:
    if word == "policy":
        name, top, governor, cpus = (*rest.split(" ", 3), "")[:4]
        answer.policies.append(Policy(name=name, top=int(top), governor=governor, cpus=cpus))
    elif word in ("zone", "cooling"):
        number, _, kind = rest.partition(" ")
        (answer.zones if word == "zone" else answer.coolings).append((int(number), kind))
    elif word == "allowed":
        answer.allowed = rest.strip()
    elif word == "leftover":
        answer.leftover += 1
    elif word == "cooled":
        answer.cooled = int(rest)
    elif word in ("set", "refused", "moved", "restored", "stuck"):
        file, _, value = rest.partition(" ")
        facts: dict[str, str] = getattr(answer, "changed" if word == "set" else word)
        facts[file] = value
    else:
        raise ValueError(word)


def _state(rest: str) -> State:
    head, *parts = rest.split(";")
    uptime, load = (*head.split(), "", "")[:2]
    lists = {name: tuple(map(_number, values)) for name, *values in (part.split() for part in parts)}
    return State(
        uptime=float(uptime or 0),
        load=float(load or 0),
        clocks=lists["clock"],
        limits=lists["most"],
        temperatures=lists["temp"],
        cooling=lists["cool"],
        flags=lists["flag"],
    )


def _number(text: str) -> int | None:
    """A number of /sys: decimal, or hexadecimal (the Raspberry Pi's flags)."""
    if text.startswith("0x"):
        return int(text, 16)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _block(program: int, output: list[str], before: State, after: State) -> Block:
    """Read a harness's JSON lines. No ``end`` line means that it died: an error, never a shorter result."""
    samples: list[int] = []
    records: dict[str, dict[str, Any]] = {}
    wrong = 0
    code = None
    stderr: list[str] = []
    for line in output:
        if line.isdigit():
            samples.append(int(line))
        elif line.startswith("exit "):
            code = int(line[5:])
        elif line.startswith("stderr "):
            stderr.append(line[7:])
        elif record := _record(line):
            wrong += record["type"] == "golden" and record.get("status") != "ok"
            records[record["type"]] = record
    error = ""
    if code != 0 or records.get("end", {}).get("status") != "ok":
        ended = process.describe_exit(128 - code if code is not None and code > 128 else code or 0)
        error = f"the harness ended with {ended}: {_last_words(stderr)}"
    if wrong:
        error = "its outputs differ from the golden ones by more than the bound"
    elif not error and not samples:
        error = "the harness timed no run"
    return Block(
        program=program,
        context=records.get("context", {}),
        samples=tuple(samples),
        load_ns=records.get("load", {}).get("ns", records.get("context", {}).get("load_ns")),
        first_ns=records.get("first", {}).get("ns"),
        peak_rss_bytes=records.get("end", {}).get("peak_rss_bytes"),
        error=error,
        before=before,
        after=after,
    )


def _record(line: str) -> dict[str, Any] | None:
    """A JSON line of the harness; None for one that was cut off, which the missing ``end`` tells of."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "type" in record else None


def _last_words(stderr: list[str]) -> str:
    """The harness's own sentence, else its engine's last line."""
    own = [line.removeprefix("edgepack: ") for line in stderr if line.startswith("edgepack: ")]
    return (own or [line for line in stderr if line.strip()] or ["it said nothing"])[-1]

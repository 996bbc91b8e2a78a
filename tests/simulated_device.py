"""A device that exists in memory only: clocks, governors, heat and a harness, with a clock of its own.

It stands in for a transport and answers measure.sh's command line as the script would (which is tested for itself in
tests/integration/test_measuring.py); what bench.py makes of a warm, throttling or vanishing device is tested with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgepack.errors import DeviceUnreachable
from edgepack.measuring import Place
from edgepack.types import Completed, Device, Probe
from tests.sysfs import CPUS, RK3588, THERMAL

AMBIENT = 40.0


@dataclass
class SimulatedDevice:
    """`latency` gives seconds of one run by variant; heat moves towards `hot` degrees with `warm_seconds`."""

    latency: Mapping[str, float]
    tree: dict[str, str] = field(default_factory=lambda: dict(RK3588))
    hot: float = 60.0
    warm_seconds: float = 10.0
    throttle_at: float = 85.0
    slow_when_throttled: float = 0.6  # share of the clock that is left
    slow_when_warm: float = 0.0  # of a device that doesn't say so
    noise: float = 0.01
    permits_governor: bool = True
    cut_after: int | None = None  # blocks after which the link is lost
    interrupt_after: int | None = None  # blocks after which the user presses ctrl-C
    fails: Mapping[str, str] = field(default_factory=dict)  # variant -> stderr of its harness
    wrong: Sequence[str] = ()
    warmup_runs: int = 0
    disturb: Callable[[float], float] = lambda now: 1.0
    only_old_options: bool = False
    seed: int = 1

    name, version = "simulated", "1"

    def __post_init__(self) -> None:
        self.now = 0.0
        self.temperature = AMBIENT
        self.random = np.random.default_rng(self.seed)
        self.calls: list[list[str]] = []
        self.programs: list[list[str]] = []
        self.blocks = 0

    # --- the transport's side

    def run(self, argv: list[str], timeout: float, *, stdin: bytes | None = None) -> Completed:
        assert argv[:2] == ["sh", "-c"] and argv[3] == "edgepack"
        self.calls.append(argv)
        govern, cool, patience, mask, order, rest = argv[7], argv[10], argv[11], argv[12], argv[14], argv[15:]
        programs = []
        while rest:
            count = int(rest[0])
            programs.append(rest[1 : count + 1])
            rest = rest[count + 1 :]
        self.programs = programs
        text = "\n".join(self._measure(programs, order, govern == "yes", (int(cool), int(patience)), mask))
        return Completed(argv=tuple(argv), returncode=0, stdout=f"{text}\n", stderr="", seconds=0)

    def push(self, local: Path, remote: str, *, offset: int = 0) -> None:
        """Nothing is pushed."""

    def pull(self, remote: str, local: Path) -> None:
        """Nothing is pulled."""

    def close(self) -> None:
        """Nothing to close."""

    # --- the device's side

    def governors(self) -> set[str]:
        return {text for name, text in self.tree.items() if name.endswith("/scaling_governor")}

    def _policies(self) -> list[str]:
        return [name.rsplit("/", 1)[0] for name in self.tree if name.endswith("/scaling_governor")]

    def _measure(
        self, programs: list[list[str]], order: str, govern: bool, cool: tuple[int, int], mask: str
    ) -> list[str]:
        lines = ["edgepack-measure 1"]
        for policy in self._policies():
            top, governor = self.tree[f"{policy}/cpuinfo_max_freq"], self.tree[f"{policy}/scaling_governor"]
            lines.append(f"policy {policy[-1]} {top} {governor} {self.tree[f'{policy}/related_cpus']}")
        for zone in self._zones():
            lines.append(f"zone {self.tree.get(f'{zone}/trip_point_0_temp', '0')} {self.tree[f'{zone}/type']}")
        for cooling in self._coolings():
            lines.append(f"cooling {self.tree[f'{cooling}/max_state']} {self.tree[f'{cooling}/type']}")
        lines.append(self._state())
        if cool[1]:
            waited = 0
            while waited < cool[1] and (not self._zones() or self.temperature * 1000 > cool[0]):
                self._pass(1.0, working=False)
                waited += 1
            lines += [f"cooled {waited}", self._state()]
        before = dict(self.tree)
        try:
            if govern:
                for policy in self._policies():
                    if self.permits_governor:
                        self.tree[f"{policy}/scaling_governor"] = "performance"
                    lines.append(
                        f"{'set' if self.permits_governor else 'refused'} {policy}/scaling_governor performance"
                    )
            lines += ["allowed 0-7", self._state()]
            for turn in order.split():
                lines += self._block(int(turn), programs[int(turn)])
                lines.append(self._state())
                if any(line.startswith("exit ") and line != "exit 0" for line in lines[-30:]):
                    break
        finally:  # restore.sh's part: also when the link is lost
            for name in before:
                if name.endswith("/scaling_governor") and self.tree[name] != before[name]:
                    self.tree[name] = before[name]
                    lines.append(f"restored {name} {before[name]}")
        return [*lines, "end"]

    def _zones(self) -> list[str]:
        return [name.rsplit("/", 1)[0] for name in self.tree if name.startswith(THERMAL) and name.endswith("/temp")]

    def _coolings(self) -> list[str]:
        return [name.rsplit("/", 1)[0] for name in self.tree if name.endswith("/cur_state")]

    def _state(self) -> str:
        for zone in self._zones():
            self.tree[f"{zone}/temp"] = str(int(self.temperature * 1000))
        throttled = self.temperature >= self.throttle_at
        for cooling in self._coolings():
            if "cpufreq" in self.tree[f"{cooling}/type"]:
                self.tree[f"{cooling}/cur_state"] = "3" if throttled else "0"
        clocks = [int(int(self.tree[f"{policy}/cpuinfo_max_freq"]) * self._speed()) for policy in self._policies()]
        parts = [
            ["clock", *clocks],
            ["most", *clocks],
            ["temp", *(self.tree[f"{zone}/temp"] for zone in self._zones())],
            ["cool", *(self.tree[f"{cooling}/cur_state"] for cooling in self._coolings())],
            ["flag", "-", "-"],
        ]
        return ";".join([f"state {self.now:.2f} 0.10", *(" ".join(map(str, part)) for part in parts)])

    def _speed(self) -> float:
        return self.slow_when_throttled if self.temperature >= self.throttle_at else 1.0

    def _pass(self, seconds: float, *, working: bool) -> None:
        goal = self.hot if working else AMBIENT
        self.now += seconds
        self.temperature = goal + (self.temperature - goal) * math.exp(-seconds / self.warm_seconds)

    def _block(self, index: int, words: list[str]) -> list[str]:
        if self.blocks == self.cut_after:
            raise DeviceUnreachable("board: the link was lost.", "Try again.", id="EP520")
        if self.blocks == self.interrupt_after:
            raise KeyboardInterrupt
        self.blocks += 1
        lines = [f"block {index}"]
        if self.only_old_options and "--min-seconds" in words:
            return [*lines, "exit 2", "stderr edgepack: bench has no option '--min-seconds'", "stderr usage: ..."]
        options = dict(zip(words[(at := words.index("bench") + 1) :: 2], words[at + 1 :: 2], strict=True))
        variant = options["--variant"].removeprefix("variants/")
        lines.append(
            json.dumps({"type": "context", "schema": 1, "engine_version": "9", "cpu": "Sim", "load_ns": 5_000_000})
        )
        if variant in self.fails:
            return [*lines, "exit 139", f"stderr edgepack: {self.fails[variant]}"]
        lines.append(json.dumps({"type": "first", "variant": 0, "ns": int(3e9 * self.latency[variant])}))
        good = variant not in self.wrong
        lines.append(json.dumps({"type": "golden", "index": 0, "status": "ok" if good else "failed"}))
        if not good:
            return [*lines, json.dumps({"type": "end", "status": "failed", "peak_rss_bytes": 1}), "exit 1"]
        self._pass(0.02, working=False)
        seconds = float(options.get("--min-seconds", options.get("--min-time", "0")))
        spent, runs = 0.0, 0
        while spent < seconds or runs < int(options["--min-runs"]):
            warm = (self.temperature - AMBIENT) / (self.hot - AMBIENT)
            took = self.latency[variant] / self._speed() * (1 + self.slow_when_warm * warm) * self.disturb(self.now)
            took *= math.exp(self.random.normal(0, self.noise)) * (1.5 if runs < self.warmup_runs else 1)
            self._pass(took, working=True)
            spent += took
            runs += 1
            lines.append(str(int(took * 1e9)))
        return [*lines, json.dumps({"type": "end", "status": "ok", "peak_rss_bytes": 12_000_000}), "exit 0"]


def probe_of(tree: Mapping[str, str]) -> Probe:
    """What a probe finds on a tree: the CPUs of its policies."""
    cpus = []
    for name, governor in tree.items():
        if name.startswith(CPUS) and name.endswith("/scaling_governor"):
            folder = name.rsplit("/", 1)[0]
            top = int(tree[f"{folder}/cpuinfo_max_freq"])
            cpus += [(int(cpu), top, governor) for cpu in tree[f"{folder}/related_cpus"].split()]
    return Probe(
        machine="aarch64", kernel="6.1.0", os="linux", libc="glibc", libc_version="2.36", glibcxx="3.4.30",
        cpu_features=("asimd",), clusters=(), cpus=tuple(sorted(cpus)), memory_mb=8000, free_bytes=1 << 30,
        temperatures=(), tools=frozenset({"taskset", "setsid"}), writable=True, noexec=False, npu="", clock=0,
    )  # fmt: skip


def place_of(device: SimulatedDevice, how: str = "native") -> Place:
    """Where a bundle is measured on a simulated device."""
    return Place(
        device=Device(name="board", target="rk3588", transport="simulated"),
        probe=probe_of(device.tree),
        transport=device,
        root="/root",
        folder="/root/bundles/1",
        how=how,
        prefix=("qemu-aarch64",) if how == "emulated" else (),
    )

"""What a deploy costs: round trips and bytes of a first, an unchanged and a nearly unchanged one; a fleet with faults.

    python benchmarks/deploy.py            # devices are folders of this machine, reached by the local transport

Prints one JSON line a figure. Needs a C compiler.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from edgepack import fleet, log
from edgepack.device import DeviceSession
from edgepack.errors import DeviceUnreachable
from tests.devices import Link, compile_harness, device, make_bundle, session


def say(**facts: object) -> None:
    print(json.dumps({**facts, "load": round(os.getloadavg()[0], 1)}), flush=True)


def redeploys(folder: Path, harness: Path) -> None:
    files = {f"variants/null-fp32/{i}.bin": os.urandom(200_000) for i in range(100)}
    first = make_bundle(folder / "1.edgepack", harness, files=files)
    files["variants/null-fp32/50.bin"] = os.urandom(200_000)
    second = make_bundle(folder / "2.edgepack", harness, version="2", files=files)
    for what, bundle in (("first", first), ("unchanged", first), ("1 of 100 files changed", second)):
        opened, started = session(folder / "device"), time.monotonic()
        opened.deploy(bundle)
        link = opened.transport
        seconds = round(time.monotonic() - started, 2)
        say(figure=what, round_trips=link.calls, sent=link.sent, received=link.received, seconds=seconds)


def fleets(folder: Path, harness: Path) -> None:
    """Healthy devices take their time by `DELAY` a message, as boards do; the machine's cores are not the limit."""
    bundle = make_bundle(folder / "fleet.edgepack", harness)
    delay = 0.5

    def finish(kind: str, faults: dict[int, str]) -> float:
        ends: dict[str, float] = {}
        devices = [device(folder / kind / str(i), f"board{i}") for i in range(20)]
        broken = {f"board{i}": fault for i, fault in faults.items()}

        def one(entry):
            fault = broken.get(entry.name)

            def call(n: int) -> None:
                time.sleep(delay * (8 if fault == "slow" else 1))
                if fault == "down":
                    raise DeviceUnreachable("down", "")

            opened = DeviceSession(entry, Link(entry, at_call=call))
            result = opened.deploy(bundle)
            if fault is None:
                ends[entry.name] = time.monotonic()
            return result

        started = time.monotonic()
        outcomes = fleet.run(devices, one, None, jobs=20)
        assert all(o.failed == (broken.get(o.device) == "down") for o in outcomes)
        return max(ends.values()) - started

    faults = {1: "down", 5: "down", 8: "slow", 13: "slow", 17: "down"}
    times = [(finish(f"healthy{i}", {}), finish(f"mixed{i}", faults)) for i in range(3)]
    healthy, mixed = (sorted(column)[1] for column in zip(*times, strict=True))
    say(figure="20 devices: the healthy ones are done (median of 3)", healthy_fleet_s=round(healthy, 2),
        mixed_fleet_s=round(mixed, 2), ratio=round(mixed / healthy, 2))  # fmt: skip


def main() -> None:
    log.configure(quiet=True)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as scratch:
        folder = Path(scratch)
        os.environ["EDGEPACK_CACHE"] = str(folder / "cache")
        harness = compile_harness(folder)
        redeploys(folder, harness)
        fleets(folder, harness)


if __name__ == "__main__":
    main()

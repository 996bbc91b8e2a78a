"""The same deploy on many devices at once: one that fails never hides another, and every outcome is kept.

Outcomes are written to ``CACHE/fleet/DIGEST.jsonl`` as they come, a line each, flushed: with `resume`, devices that
are done are left alone, also after this process was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

from edgepack import log, process
from edgepack.bundle import Bundle
from edgepack.cache import out_of_space, sha256_text
from edgepack.device import SELF_TEST_SECONDS, Deployed, DeviceSession
from edgepack.errors import EdgepackError
from edgepack.resources import cache_root
from edgepack.shipment import ship
from edgepack.types import Device

JOBS = 16  # devices at a time: their work is done elsewhere
DONE = ("installed", "unchanged")
Deploy = Callable[[Device], Deployed]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it went on one device: a `Deployed`'s status, or ``failed`` with the error's id, message and exit code."""

    device: str
    status: str
    detail: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether this device needs another deploy."""
        return self.status == "failed"


def deploy(
    bundle: Bundle,
    devices: Sequence[Device],
    variants: tuple[str, ...] = (),
    *,
    dry_run: bool = False,
    resume: bool = False,
    self_test_seconds: float = SELF_TEST_SECONDS,
    jobs: int = JOBS,
) -> list[Outcome]:
    """Deploy to every device; outcomes in the order of `devices`. Raises nothing for what a device does."""

    sessions: list[DeviceSession] = []

    def one(device: Device) -> Deployed:
        with DeviceSession.open(device, self_test_seconds=self_test_seconds) as session:
            sessions.append(session)
            return session.deploy(bundle, variants, dry_run=dry_run)

    digest = ship(bundle, variants).digest
    try:
        return run(devices, one, None if dry_run else Journal(digest, resume=resume), jobs=jobs)
    except BaseException:  # ctrl-C: the threads end with their links and programs
        for session in sessions:
            session.stop()
        process.kill_all()
        raise


class Journal:
    """The outcomes of one bundle's deploys, on disk as soon as they are known."""

    def __init__(self, digest: str, *, resume: bool) -> None:
        self.path = cache_root() / "fleet" / f"{digest}.jsonl"
        self._lock = Lock()
        self.done: dict[str, Outcome] = {}
        with out_of_space(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not resume:
                self.path.write_text("")
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that a kill cut off
                    entry = json.loads(line)
                    key = entry.pop("key")
                    self.done[key] = Outcome(**entry)

    def add(self, device: Device, outcome: Outcome) -> None:
        """Keep an outcome; flushed before this returns."""
        line = json.dumps({"key": _key(device), **asdict(outcome)}, default=str)
        with self._lock, out_of_space(self.path.parent), self.path.open("a") as stream:
            stream.write(f"\n{line}\n")  # a line that a kill cut off stays a line of its own
            stream.flush()
            os.fsync(stream.fileno())

    def finished(self, device: Device) -> Outcome | None:
        """The outcome of a device that is done."""
        found = self.done.get(_key(device))
        return found if found is not None and found.status in DONE else None


def run(devices: Sequence[Device], one: Deploy, journal: Journal | None, *, jobs: int = JOBS) -> list[Outcome]:
    """Call `one` for every device that `journal` doesn't know as done, some at a time, and keep what comes of it."""
    outcomes: dict[str, Outcome] = {}
    waiting = []
    for device in devices:
        done = journal.finished(device) if journal else None
        if done is not None:
            outcomes[device.name] = done
            log.reused(f"{device.name}: {done.status}")
        else:
            waiting.append(device)
    pool = ThreadPoolExecutor(max_workers=max(1, min(jobs, len(waiting) or 1)), thread_name_prefix="device")
    try:
        for future in as_completed([pool.submit(_attempt, one, device, journal) for device in waiting]):
            outcomes[future.result().device] = future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [outcomes[device.name] for device in devices]


def _attempt(one: Deploy, device: Device, journal: Journal | None) -> Outcome:
    try:
        deployed = one(device)
        outcome = Outcome(device=device.name, status=deployed.status, detail=document(deployed))
    except EdgepackError as error:
        outcome = _failed(device, error.id, error.message, error.hint, error.exit_code)
    except Exception as error:  # a bug on the way to one device must not hide the outcomes of the others
        outcome = _failed(device, "EP700", f"{type(error).__name__}: {error}", "", 70)
    if journal is not None:
        journal.add(device, outcome)
    return outcome


def _failed(device: Device, id: str, message: str, hint: str, exit_code: int) -> Outcome:
    log.warn(f"{device.name}: {message}")
    detail = {"id": id, "message": message, "hint": hint, "exit_code": exit_code}
    return Outcome(device=device.name, status="failed", detail=detail)


def document(deployed: Deployed) -> dict[str, Any]:
    """A `Deployed` for programs."""
    tests = {name: asdict(test) for name, test in deployed.self_tests}
    return {**asdict(deployed), "self_tests": tests, "seconds": round(deployed.seconds, 3)}


def _key(device: Device) -> str:
    """A device is another one when its name means another board."""
    return sha256_text("\n".join([device.name, device.transport, device.address, device.root]))

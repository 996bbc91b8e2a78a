"""One deploy on many devices: every device ends in exactly one outcome, and the others don't wait for the bad ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from edgepack import fleet, process
from edgepack.device import Deployed, DeviceSession
from edgepack.errors import DeviceUnreachable
from edgepack.types import Device
from tests.conftest import need
from tests.devices import Link, active, check_no_orphans, compile_harness, device, make_bundle

FAULTS = {
    3: "down",
    4: "slow",
    8: "full",
    9: "down",
    12: "busy",
    14: "wrong",
    17: "bug",
    19: "cut",
}
EXPECTED = {
    "": "installed",
    "slow": "installed",
    "cut": "installed",
    "down": "EP501",
    "full": "EP603",
    "busy": "EP902",
    "wrong": "EP604",
    "bug": "EP700",
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Twenty devices with mixed faults; mending one is removing it from the dictionary that is returned."""
    need("cc", "apt install gcc libc6-dev")
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    harness = compile_harness(tmp_path)
    bundle = make_bundle(tmp_path / "b.edgepack", harness)
    bad = make_bundle(tmp_path / "bad.edgepack", harness, does="wrong")
    devices = [device(tmp_path / "devices" / str(i), f"board{i}") for i in range(20)]
    faults = {f"board{i}": fault for i, fault in FAULTS.items()}
    reached: list[str] = []

    def open_session(entry: Device, **how) -> DeviceSession:
        fault = faults.get(entry.name, "")
        reached.append(entry.name)

        def call(n: int) -> None:
            if fault == "down":
                raise DeviceUnreachable(f"{entry.name} is down.", "")
            if fault == "bug":
                raise ZeroDivisionError("a bug")
            if fault == "slow":
                time.sleep(0.3)

        session = DeviceSession(entry, Link(entry, at_call=call, cut_after=15_000 if fault == "cut" else None), **how)
        if fault == "busy":
            other = DeviceSession(entry, Link(entry))
            Path(entry.root).mkdir(parents=True, exist_ok=True)
            other.steps.lock(1000)
        if fault == "full":
            session.deploy = lambda *_, **__: _no_space(entry)
        if fault == "wrong":
            good = session.deploy
            session.deploy = lambda b, *rest, **how: good(bad, *rest, **how)
        return session

    monkeypatch.setattr(DeviceSession, "open", staticmethod(open_session))
    return bundle, devices, faults, reached


def _no_space(entry: Device) -> Deployed:
    from edgepack.preflight import check_space

    check_space(1 << 30, 1 << 20, entry.name)
    raise AssertionError


def test_twenty_devices_with_mixed_faults_each_end_in_one_outcome(lab) -> None:
    bundle, devices, faults, _ = lab

    outcomes = fleet.deploy(bundle, devices)

    assert [o.device for o in outcomes] == [d.name for d in devices]
    for entry, outcome in zip(devices, outcomes, strict=True):
        expected = EXPECTED[faults.get(entry.name, "")]
        assert expected == (outcome.detail["id"] if outcome.failed else outcome.status), outcome
        if not outcome.failed:
            assert active(Path(entry.root)).manifest == bundle.manifest
            check_no_orphans(Path(entry.root))


def test_resume_reaches_only_those_that_are_not_done(lab) -> None:
    bundle, devices, faults, reached = lab
    first = fleet.deploy(bundle, devices)
    failed = {o.device for o in first if o.failed}
    faults.clear()
    reached.clear()
    for entry in devices:
        if entry.name in failed:
            shutil.rmtree(entry.root, ignore_errors=True)

    second = fleet.deploy(bundle, devices, resume=True)

    assert set(reached) == failed and failed
    assert {o.status for o in second} == {"installed"}
    reached.clear()
    assert not any(o.failed for o in fleet.deploy(bundle, devices, resume=True)) and not reached
    fleet.deploy(bundle, devices[:1])
    assert reached == ["board0"]  # without --resume every device is asked again


def test_an_outcome_is_on_disk_before_the_last_device_is_done_and_survives_a_cut_off_line(lab) -> None:
    bundle, devices, faults, _ = lab
    faults.clear()
    seen: list[int] = []
    digest = bundle.manifest["digest"]
    journal = fleet.Journal(digest, resume=False)

    def one(entry: Device) -> Deployed:
        seen.append(len([line for line in journal.path.read_text().splitlines() if line]))
        return Deployed(device=entry.name, model="tiny", digest=digest, status="installed")

    fleet.run(devices[:3], one, journal, jobs=1)
    assert seen[-1] >= 1
    with journal.path.open("a") as stream:
        stream.write('\n{"key": "cut o')
    later = fleet.Journal(digest, resume=True)
    assert all(later.finished(entry) for entry in devices[:3])
    later.add(devices[3], fleet.Outcome(device="board3", status="unchanged", detail={}))
    assert fleet.Journal(digest, resume=True).finished(devices[3])
    assert all(json.loads(line) for line in journal.path.read_text().splitlines() if line.endswith("}"))


def test_a_device_of_the_same_name_at_another_address_is_another_one(lab) -> None:
    bundle, devices, _, _ = lab
    journal = fleet.Journal(bundle.manifest["digest"], resume=False)
    journal.add(devices[0], fleet.Outcome(device="board0", status="installed", detail={}))
    moved = Device(name="board0", target="host", transport="local", root=devices[0].root + "-new")

    again = fleet.Journal(bundle.manifest["digest"], resume=True)
    assert again.finished(devices[0]) and not again.finished(moved)


def test_devices_are_reached_at_the_same_time(lab) -> None:
    """The first message of every device is under way before any is answered."""
    bundle, devices, _, _ = lab
    together = threading.Barrier(5, timeout=30)

    def one(entry: Device) -> Deployed:
        session = DeviceSession(entry, Link(entry, at_call=lambda n: together.wait() if n == 1 else None))
        return session.deploy(bundle)

    assert not any(outcome.failed for outcome in fleet.run(devices[:5], one, None))


def test_ctrl_c_ends_every_device_and_keeps_what_is_done(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, devices, faults, _ = lab
    faults.clear()
    begun, interrupted = threading.Event(), threading.Event()

    def open_session(entry: Device, **how) -> DeviceSession:
        def call(n: int) -> None:
            if entry.name == "board1" and n == 4:  # board0 is done, this one holds its device
                begun.set()
                interrupted.wait(30)

        return DeviceSession(entry, Link(entry, at_call=call), **how)

    def interrupt() -> None:
        begun.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(process, "_interrupted", threading.Event())  # edgepack ends with it, this process goes on
    stop = DeviceSession.stop
    monkeypatch.setattr(DeviceSession, "open", staticmethod(open_session))
    monkeypatch.setattr(DeviceSession, "stop", lambda session: (stop(session), interrupted.set()))
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        fleet.deploy(bundle, devices[:3], jobs=1)

    for thread in threading.enumerate():  # they let go of their devices
        if thread.name.startswith("device"):
            thread.join(30)
    journal = fleet.Journal(bundle.manifest["digest"], resume=True)
    assert [bool(journal.finished(entry)) for entry in devices[:3]] == [True, False, False]
    assert not Path(devices[2].root).exists()

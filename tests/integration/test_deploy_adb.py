"""Installing, running and measuring by adb: the real adbd, whose programs see a phone: mksh, toybox, no /usr."""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack import inventory, running, transports
from edgepack.device import DeviceSession
from edgepack.errors import DeviceFailed, DeviceUnreachable
from edgepack.measuring import Order, Place, measure
from edgepack.probe import probe
from edgepack.types import Device
from tests import adbd
from tests.conftest import missing, need
from tests.devices import active, check_no_orphans, compile_harness, make_bundle
from tests.faults import Faults, proxy
from tests.integration.conftest import Called
from tests.integration.test_bench import compiled, figure, until
from tests.sysfs import RK3588, governors, plant

MEGABYTE = 1 << 20
ROOT = "/data/local/tmp/edgepack"


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """(serial, the adb server's socket, the phone's root folder)."""
    for tool, package in (("adb", "adb"), ("unshare", "util-linux"), ("ip", "iproute2")):
        need(tool, f"apt install {package}")
    files = adbd.fetch()
    if isinstance(files, str):
        missing(files)
    assert isinstance(files, Path)
    scratch = tmp_path_factory.mktemp("adbd")
    root = adbd.phone(scratch)
    with adbd.running(files, scratch) as (serial, server):
        yield serial, server, root


@pytest.fixture
def link(phone: tuple[str, Path, Path]) -> Iterator[tuple[Device, Faults, Path]]:
    """(device, what happens to the link, edgepack's folder there)."""
    serial, server, root = phone
    with proxy(server) as (port, faults):
        entry = Device(name="phone", target="host", transport="adb", address=serial, options={"server_port": port})
        yield entry, faults, root / ROOT[1:]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cc", "apt install gcc libc6-dev")
    return compile_harness(tmp_path_factory.mktemp("harness"), "cc", "-static")


def test_the_probe_sees_a_phone(link) -> None:
    with DeviceSession.open(link[0]) as session:
        found = session.probe

    assert (found.os, found.libc, found.libc_version) == ("android", "bionic", "30")
    assert found.writable and not found.noexec and {"tar", "sha256sum"} <= found.tools


def test_deploy_again_roll_back_and_measure(link, harness: Path, tmp_path: Path) -> None:
    device, faults, root = link
    files = {f"variants/null-fp32/{i}.bin": os.urandom(50_000) for i in range(60)}
    files["variants/null-fp32/large.bin"] = os.urandom(3 * MEGABYTE)
    one, two = (make_bundle(tmp_path / f"{v}.edgepack", harness, version=v, files=files) for v in "12")
    with DeviceSession.open(device) as session:
        deployed = session.deploy(one)
    assert deployed.status == "installed" and dict(deployed.self_tests)["null-fp32"].passed
    assert active(root).manifest == one.manifest
    check_no_orphans(root)

    with DeviceSession.open(device) as session:
        before, calls = faults.up + faults.down, counted(session)
        assert session.deploy(one).status == "unchanged"
    assert len(calls) <= 3 and faults.up + faults.down - before <= 20_000, (calls, faults)

    with DeviceSession.open(device) as session:
        before = faults.up
        assert session.deploy(two).files == 2  # the weights' few bytes and the manifest
    manifest = (two.path / "manifest.json").stat().st_size
    assert faults.up - before <= manifest + 40_000, "scripts and a listing of 66 files, six times"
    assert active(root).manifest == two.manifest and active(root, link="previous").manifest == one.manifest

    with DeviceSession.open(device) as session:
        session.rollback("tiny")
    assert active(root).manifest == one.manifest
    check_no_orphans(root)


def counted(session: DeviceSession) -> list[list[str]]:
    """The commands that a session runs from now on."""
    calls: list[list[str]] = []
    run = session.transport.run

    def call(argv: list[str], *rest, **how):
        calls.append(argv)
        return run(argv, *rest, **how)

    session.transport.run = call  # type: ignore[method-assign]
    return calls


def test_what_does_not_work_there_never_becomes_active(link, harness: Path, tmp_path: Path) -> None:
    device, _, root = link
    good = make_bundle(tmp_path / "good.edgepack", harness, version="good")
    with DeviceSession.open(device) as session:
        session.deploy(good)
    for does, says in {"wrong": "cosine 0.25", "crash": "SIGABRT", "hang": "killed after 2 s"}.items():
        bundle = make_bundle(tmp_path / f"{does}.edgepack", harness, version=does, does=does)
        with DeviceSession.open(device, self_test_seconds=2) as session, pytest.raises(DeviceFailed, match=says):
            session.deploy(bundle)
        assert active(root).manifest == good.manifest
        check_no_orphans(root)


def test_a_folder_that_nothing_runs_from_is_refused_before_the_first_byte(link, harness: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.edgepack", harness)
    with DeviceSession.open(replace(link[0], root="/sdcard/edgepack")) as session:
        calls = counted(session)
        with pytest.raises(DeviceFailed, match="noexec"):
            session.deploy(bundle)

    assert len(calls) == 1


@pytest.mark.parametrize("cut", [60_000, 1_000_000, 4_000_000])
def test_a_link_that_is_cut_at_any_byte_costs_at_most_a_megabyte(link, harness: Path, tmp_path: Path, cut: int) -> None:
    device, faults, root = link
    files = {f"variants/null-fp32/{i}.bin": os.urandom(60_000) for i in range(15)}
    files["variants/null-fp32/large.bin"] = os.urandom(4 * MEGABYTE)
    bundle = make_bundle(tmp_path / "b.edgepack", harness, files=files)
    size = sum(item["size"] for item in bundle.manifest["files"])
    faults.cut_up = cut
    begun = []
    with DeviceSession.open(device) as session:
        begin = session.steps.begin

        def begin_again(*args, **how):
            if begun:
                faults.cut_up = None
            begun.append(1)
            return begin(*args, **how)

        session.steps.begin = begin_again  # type: ignore[method-assign]
        assert session.deploy(bundle).status == "installed"

    assert len(begun) == 2 and faults.up <= size + MEGABYTE + 150_000, faults.up
    assert active(root).manifest == bundle.manifest
    check_no_orphans(root)


@contextlib.contextmanager
def lacking(phone: tuple[str, Path, Path], *tools: str) -> Iterator[None]:
    """The phone without these tools."""
    for tool in tools:
        (phone[2] / "bin" / tool).rename(phone[2] / "bin" / f"no-{tool}")
    try:
        yield
    finally:
        for tool in tools:
            (phone[2] / "bin" / f"no-{tool}").rename(phone[2] / "bin" / tool)


@pytest.mark.parametrize("tools", [("tar", "sha256sum"), ("tar", "toybox"), ("flock", "stat")], ids="-".join)
def test_an_older_or_nameless_toybox_is_enough(
    link, phone, harness: Path, tmp_path: Path, tools: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, _, root = link
    bundle = make_bundle(tmp_path / "b.edgepack", harness, version="-".join(tools))
    monkeypatch.setattr(inventory, "find", lambda name: device)
    np.savez(tmp_path / "in.npz", x=np.arange(4, dtype=np.float32))

    with lacking(phone, *tools):
        with DeviceSession.open(device) as session:
            session.deploy(bundle)
        running.run(bundle.path, "null-fp32", tmp_path / "in.npz", tmp_path / "out.npz", device="phone", threads=1)

    assert np.load(tmp_path / "out.npz")["y"].tolist() == [0, 1, 2, 3]
    assert active(root).manifest == bundle.manifest
    check_no_orphans(root)


def test_a_phone_without_a_hash_tool_is_refused(link, phone, harness: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.edgepack", harness, version="no hash")

    with lacking(phone, "sha256sum", "toybox"), DeviceSession.open(link[0]) as session:
        with pytest.raises(DeviceFailed, match="no sha256sum"):
            session.deploy(bundle)


def test_the_command_line_deploys_runs_and_rolls_back(edgepack, link, harness: Path, tmp_path: Path) -> None:
    device, _, root = link
    one, two = (make_bundle(tmp_path / f"{v}.edgepack", harness, name="cli", version=v) for v in "12")
    (tmp_path / "devices.toml").write_text(
        f'[devices.phone]\ntarget = "host"\ntransport = "adb"\naddress = "{device.address}"\n'
        f"options.server_port = {device.options['server_port']}\n"
    )
    np.savez(tmp_path / "in.npz", x=np.arange(4, dtype=np.float32))

    def call(*argv: object) -> Called:
        called: Called = edgepack(*argv, "--device", "phone", cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path / "config"))
        assert called.code == 0, called.err
        return called

    call("deploy", one.path)
    call("deploy", two.path)
    call("run", two.path, "--variant", "null-fp32", "--input", "in.npz", "--output", "out.npz")
    assert np.load(tmp_path / "out.npz")["y"].tolist() == [0, 1, 2, 3]
    call("rollback", "cli")
    assert active(root, "cli").manifest == one.manifest
    check_no_orphans(root)


# --- measuring ------------------------------------------------------------------------------------------------------


def test_bench_leaves_what_is_active_and_nothing_of_its_own(link, tmp_path: Path) -> None:
    device, _, root = link
    harness = compiled(tmp_path, "cc", "-static")
    old, new = (make_bundle(tmp_path / f"{v}.edgepack", harness, name="measured", version=v) for v in "12")
    with DeviceSession.open(device) as session:
        session.deploy(old)
    before = sorted(path.relative_to(root) for path in root.rglob("*"))

    deployed, other = figure(device, old), figure(device, new)

    assert deployed.bundle == old.manifest["digest"] and other.bundle == new.manifest["digest"]
    assert deployed.device["transport"] == "adb" and deployed.statistics["samples"] > 0
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before


@pytest.mark.parametrize("how", ["the link is cut", "ctrl-C"])
def test_a_bench_that_ends_early_restores_the_clocks(link, phone, tmp_path: Path, how: str) -> None:
    device, faults, _ = link
    name = how.replace(" ", "-")
    tree, bundle, own = (phone[2] / "data" / f"{name}-{what}" for what in ("tree", "bundle", "own"))
    plant(RK3588, tree)
    bundle.mkdir()
    (bundle / "slow").write_text("#!/bin/sh\necho $$ >pid\nsleep 1\n")
    (bundle / "slow").chmod(0o755)
    transport = transports.connect(device)
    place = Place(
        device=device, probe=probe(transport, device), transport=transport, root=f"/data/{own.name}",
        folder=f"/data/{bundle.name}", sysfs=f"/data/{tree.name}",
    )  # fmt: skip

    def end() -> None:
        until(lambda: (bundle / "pid").exists())
        assert set(governors(tree).values()) == {"performance"}
        if how == "ctrl-C":
            _thread.interrupt_main()
        else:
            faults.cut_down = 0

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(KeyboardInterrupt if how == "ctrl-C" else DeviceUnreachable):
        measure(place, Order(programs=(("./slow",),), order=(0,) * 100, limit=60, deadline=20))
    ending.join()

    assert until(lambda: set(governors(tree).values()) == {"ondemand"}, 40)
    assert until(lambda: not list(own.iterdir()), 10)

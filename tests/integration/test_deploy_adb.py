"""Installing, running and measuring by adb: the real adbd, whose programs see a phone: mksh, toybox, no /usr."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.device import DeviceSession
from edgepack.errors import DeviceFailed
from edgepack.types import Device
from tests import adbd
from tests.conftest import missing, need
from tests.devices import active, check_no_orphans, compile_harness, make_bundle
from tests.faults import Faults, proxy

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
        entry = Device(
            name="phone", target="host", transport="adb", address=serial, options={"server_port": port}
        )
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


def test_deploy_again_change_and_rollback(link, harness: Path, tmp_path: Path) -> None:
    device, faults, root = link
    files = {f"variants/null-fp32/{i}.bin": os.urandom(50_000) for i in range(60)}
    files["variants/null-fp32/large.bin"] = os.urandom(3 * MEGABYTE)
    one, two = (make_bundle(tmp_path / f"{v}.edgepack", harness, version=v, files=files) for v in "12")
    with DeviceSession.open(device) as session:
        deployed = session.deploy(one)
    assert deployed.status == "installed" and dict(deployed.self_tests)["null-fp32"].passed
    assert active(root).manifest == one.manifest
    check_no_orphans(root)

"""A bundle that can't run on a device is refused before the first byte, with what it needs and what is there."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edgepack import config, elf, preflight
from edgepack.errors import DeviceFailed
from edgepack.shipment import Shipment
from edgepack.types import BundleFile, Probe

GOOD = Probe(
    machine="aarch64",
    kernel="6.1",
    os="linux",
    libc="glibc",
    libc_version="2.36",
    glibcxx="3.4.30",
    cpu_features=("asimd", "asimddp", "asimdhp", "atomics", "fp"),
    clusters=(("cortex-a76", 4),),
    cpus=(),
    memory_mb=4096,
    free_bytes=1 << 30,
    temperatures=(),
    tools=frozenset({"sha256sum", "tar"}),
    writable=True,
    noexec=False,
    npu="",
    clock=0,
)
NEEDS = elf.Needs(
    arch="aarch64", glibc="2.34", glibcxx="3.4.30", libraries=("libc.so.6",), interpreter="/lib/ld", static=False
)


@pytest.fixture
def shipment(monkeypatch: pytest.MonkeyPatch) -> Shipment:
    monkeypatch.setattr(elf, "needs", lambda path: NEEDS)
    profile = config.load_target("rk3588")
    target = {**asdict(profile), "bounds": {str(k): asdict(v) for k, v in profile.bounds.items()}}
    file = BundleFile(path="lib/libLiteRt.so", sha256="0" * 64, size=6_000_000, role="library")
    return Shipment(
        name="detector",
        digest="1" * 64,
        manifest={"target": target, "variants": [{"name": "tflite-int8", "engine": "tflite"}]},
        files=(file,),
        texts={},
        source=Path("/nowhere"),
    )


def test_a_device_that_has_everything_is_accepted(shipment: Shipment) -> None:
    preflight.check(shipment, GOOD, "board")


REFUSED = [
    ("wrong architecture", {"machine": "armv7l"}, "built for aarch64 .rk3588., the device is armv7l"),
    ("old libc", {"libc_version": "2.31"}, r"needs glibc 2\.34, the device has 2\.31"),
    ("another libc", {"libc": "musl", "libc_version": "1.2.3"}, r"needs glibc 2\.34, the device has musl"),
    ("old libstdc++", {"glibcxx": "3.4.28"}, r"needs GLIBCXX_3\.4\.30, the device has GLIBCXX_3\.4\.28"),
    ("no libstdc++", {"glibcxx": ""}, r"needs GLIBCXX_3\.4\.30, the device has no libstdc\+\+"),
    ("no LSE", {"cpu_features": ("fp", "asimd")}, "tflite needs the CPU feature atomics"),
    ("no hash tool", {"tools": frozenset({"tar"})}, "no sha256sum"),
    ("read-only", {"writable": False}, "read-only"),
    ("noexec", {"noexec": True}, "noexec"),
    ("FAT", {"symlinks": False}, "file system without symbolic links"),
]


@pytest.mark.parametrize(("change", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_lacking_is_named(shipment: Shipment, change: dict, says: str) -> None:
    with pytest.raises(DeviceFailed, match=says) as caught:
        preflight.check(shipment, replace(GOOD, **change), "board")
    assert caught.value.id == "EP602" and caught.value.exit_code == 6 and "Nothing was sent" in caught.value.hint


def test_every_reason_is_told_at_once(shipment: Shipment) -> None:
    with pytest.raises(DeviceFailed) as caught:
        preflight.check(shipment, replace(GOOD, noexec=True, libc_version="2.31", cpu_features=("fp",)), "board")
    for word in ("noexec", "2.31", "atomics"):
        assert word in caught.value.message


def test_what_the_probe_could_not_tell_refuses_nothing(shipment: Shipment) -> None:
    unknown = replace(GOOD, machine="", libc="", libc_version="", glibcxx="", cpu_features=())

    preflight.check(shipment, unknown, "board")


def test_a_busybox_board_is_accepted(shipment: Shipment) -> None:
    preflight.check(shipment, replace(GOOD, tools=frozenset({"busybox", "sha256sum"})), "board")


def test_too_little_space_is_told_with_numbers() -> None:
    preflight.check_space(10_000_000, 30_000_000, "board")
    with pytest.raises(DeviceFailed, match=r"needs 10\.0 MB more and 16\.8 MB must stay free, but 20\.0 MB are free"):
        preflight.check_space(10_000_000, 20_000_000, "board")

"""Whether a bundle can run on a device, before the first byte is sent: what it needs against what the probe found."""

from __future__ import annotations

from edgepack import elf, ncnn_source, runtimes
from edgepack.bundle import target_from
from edgepack.errors import DeviceFailed
from edgepack.shipment import Shipment
from edgepack.this_machine import MACHINES
from edgepack.types import Probe, Target

RESERVE = 16 << 20  # bytes that stay free on the device


def check(shipment: Shipment, probe: Probe, device: str) -> None:
    """Raise `DeviceFailed` with every reason why the shipment can't be installed or can't run there."""
    if problems := [*_folder(probe), *_programs(shipment, probe)]:
        raise DeviceFailed(
            f"{shipment.name} can't run on {device}: {'; '.join(problems)}.",
            "Nothing was sent. Build for a target that fits the device, see `edgepack devices probe`.",
            id="EP602",
        )


def check_space(needed: int, free: int | None, device: str) -> None:
    """Raise `DeviceFailed` unless `needed` bytes and the reserve are `free` (None: not known)."""
    if free is not None and needed + RESERVE > free:
        raise DeviceFailed(
            f"{device} has too little space: the bundle needs {_mb(needed)} MB more and {_mb(RESERVE)} MB must stay "
            f"free, but {_mb(free)} MB are free.",
            "Nothing was sent. Free some space there, set another `root` for the device, or send fewer --variant.",
            id="EP603",
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _folder(probe: Probe) -> list[str]:
    problems = []
    if not probe.writable:
        problems.append("its folder there is read-only (the `root` of the device in devices.toml)")
    if probe.noexec:
        problems.append("its folder there is mounted noexec, so no program starts in it (choose another `root`)")
    if not probe.symlinks:
        problems.append("its folder there is on a file system without symbolic links, such as FAT (choose another)")
    if "sha256sum" not in probe.tools:
        problems.append("there is no sha256sum on the device (nor busybox or toybox), so nothing can be verified")
    return problems


def _programs(shipment: Shipment, probe: Probe) -> list[str]:
    target = target_from(shipment.manifest["target"])
    arch = MACHINES.get(probe.machine, probe.machine)
    compatible = arch == "aarch64" and target.arch == "armhf"  # a 64-bit kernel may run 32-bit programs
    if arch and arch != target.arch and not compatible:
        return [f"it is built for {target.arch} ({target.name}), the device is {probe.machine}"]
    if target.os == "android" and probe.os != "android":
        return [f"it is built for Android ({target.name}), the device runs {probe.os}"]
    problems = []
    for file in shipment.files:
        if file.path.split("/")[0] in ("bin", "lib"):
            problems += _libraries(file.path, elf.needs(shipment.source / file.path), probe)
    lacking: dict[str, set[str]] = {}
    if probe.cpu_features:
        for item in shipment.manifest["variants"]:
            for feature in cpu_features(item["engine"], target) - set(probe.cpu_features):
                lacking.setdefault(feature, set()).add(item["engine"])
    for feature, engines in sorted(lacking.items()):
        problems.append(f"{', '.join(sorted(engines))} needs the CPU feature {feature}, which the device's CPU has not")
    return problems


def _libraries(path: str, needs: elf.Needs, probe: Probe) -> list[str]:
    if needs.static or not probe.libc:
        return []
    problems = []
    if needs.glibc and probe.libc != "glibc":
        problems.append(f"{path} needs glibc {needs.glibc}, the device has {probe.libc}")
    elif needs.glibc and probe.libc_version and elf.version(needs.glibc) > elf.version(probe.libc_version):
        problems.append(f"{path} needs glibc {needs.glibc}, the device has {probe.libc_version}")
    if needs.glibcxx and probe.libc == "glibc" and elf.version(needs.glibcxx) > elf.version(probe.glibcxx):
        there = f"GLIBCXX_{probe.glibcxx}" if probe.glibcxx else "no libstdc++"
        problems.append(f"{path} needs GLIBCXX_{needs.glibcxx}, the device has {there}")
    return problems


def cpu_features(engine: str, target: Target) -> set[str]:
    """What an engine's code needs beyond the architecture's base: no ELF file tells."""
    if engine == "ncnn":
        return set(ncnn_source.used_features(target))
    if engine not in runtimes.pins():
        return set()
    return set(runtimes.pin(engine, target.arch).get("cpu_features", ()))

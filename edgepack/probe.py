"""What a device is: asked in one round trip by a constant shell script, and parsed strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgepack import this_machine
from edgepack.errors import DeviceFailed, UsageError
from edgepack.interfaces import Transport
from edgepack.transports.remote import script
from edgepack.types import Device, Probe

SECONDS = 30.0
# ARM's own core names by (implementer, part) of /proc/cpuinfo; others are shown by their numbers.
CORES = {
    ("0x41", "0xc07"): "cortex-a7",
    ("0x41", "0xc08"): "cortex-a8",
    ("0x41", "0xc09"): "cortex-a9",
    ("0x41", "0xc0e"): "cortex-a17",
    ("0x41", "0xc0f"): "cortex-a15",
    ("0x41", "0xd02"): "cortex-a34",
    ("0x41", "0xd03"): "cortex-a53",
    ("0x41", "0xd04"): "cortex-a35",
    ("0x41", "0xd05"): "cortex-a55",
    ("0x41", "0xd07"): "cortex-a57",
    ("0x41", "0xd08"): "cortex-a72",
    ("0x41", "0xd09"): "cortex-a73",
    ("0x41", "0xd0a"): "cortex-a75",
    ("0x41", "0xd0b"): "cortex-a76",
    ("0x41", "0xd0c"): "neoverse-n1",
    ("0x41", "0xd0d"): "cortex-a77",
    ("0x41", "0xd40"): "neoverse-v1",
    ("0x41", "0xd41"): "cortex-a78",
    ("0x41", "0xd42"): "cortex-a78ae",
    ("0x41", "0xd44"): "cortex-x1",
    ("0x41", "0xd46"): "cortex-a510",
    ("0x41", "0xd47"): "cortex-a710",
    ("0x41", "0xd48"): "cortex-x2",
    ("0x41", "0xd49"): "neoverse-n2",
    ("0x41", "0xd4b"): "cortex-a78c",
    ("0x41", "0xd4d"): "cortex-a715",
    ("0x41", "0xd4e"): "cortex-x3",
    ("0x41", "0xd80"): "cortex-a520",
    ("0x41", "0xd81"): "cortex-a720",
    ("0x41", "0xd82"): "cortex-x4",
}
LOADERS = {
    "aarch64": "ld-linux-aarch64.so.1",
    "armhf": "ld-linux-armhf.so.3",
    "riscv64": "ld-linux-riscv64-lp64d.so.1",
    "x86_64": "ld-linux-x86-64.so.2",
}
# key -> what the rest of its line looks like; whether it may come more than once
_LINES: Mapping[str, tuple[str, bool]] = {
    "machine": (r"[\w-]+", False),
    "kernel": (r"\S+", False),
    "clock": (r"\d+", False),
    "os": (r"linux|android", False),
    "libc": (r"(?:glibc|musl|bionic) ?[\d.]*", True),
    "loader": (r"ld-linux[\w.-]+ ?[\d.]*", True),
    "library": (r"\S+", True),
    "model": (r".+", False),
    "features": (r".+", False),
    "part": (r"\d+ \S* \S+", True),
    "cpu": (r"\d+ \d+ \S*", True),
    "memory_kb": (r"\d+", False),
    "temperature": (r"-?\d+ .*", True),
    "tools": (r"[\w ]+", False),
    "npu": (r"\S+", False),
    "root": (r".+", False),
    "free_kb": (r"\d+", False),
    "writable": (r"yes|no", False),
    "noexec": (r"yes|no", False),
    "symlinks": (r"yes|no", False),
}


def probe(transport: Transport, device: Device) -> Probe:
    """Ask a device what it is. Raises `DeviceFailed` when it can't say, and `DeviceUnreachable`."""
    done = transport.run(["sh", "-c", script("probe"), "edgepack", root(device)], SECONDS)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise DeviceFailed(
            f"{device.name}: the probe ended with {done.returncode}: {words[0]}",
            "A device needs a POSIX shell; check that `sh` works there.",
            id="EP625",
        )
    return parse(done.stdout, device.name)


def root(device: Device) -> str:
    """edgepack's folder on a device: what its entry says, or the transport's default."""
    if device.root:
        return device.root
    if device.transport == "local":
        from edgepack.resources import cache_root

        return str(cache_root() / "device")
    return "/data/local/tmp/edgepack" if device.transport == "adb" else ".edgepack"


def parse(text: str, device: str) -> Probe:
    """The facts of the script's output; what a login shell says before it is skipped. Raises `DeviceFailed`."""
    lines = _read(text, device)

    def one(key: str, default: str = "") -> str:
        return lines[key][0] if key in lines else default

    parts = {int(core): (vendor, part) for core, vendor, part in (each.split(" ") for each in lines.get("part", ()))}
    cpus = tuple(
        sorted((int(i), int(khz), governor) for i, khz, governor in (each.split(" ") for each in lines.get("cpu", ())))
    )
    loaders = {each.partition(" ")[0]: each.partition(" ")[2] for each in lines.get("loader", ())}
    machine = _machine(one("machine"), loaders)
    libc, version = _libc(machine, lines.get("libc", []), loaders, lines.get("library", []))
    return Probe(
        machine=machine,
        kernel=one("kernel"),
        os=one("os", "linux"),
        libc=libc,
        libc_version=version,
        glibcxx=_glibcxx(lines.get("library", [])) if libc == "glibc" else "",
        cpu_features=_features(machine, one("features")),
        clusters=_clusters(parts, cpus, one("model")),
        cpus=cpus,
        memory_mb=int(one("memory_kb", "0")) // 1024,
        free_bytes=int(one("free_kb", "0")) * 1024,
        temperatures=tuple((t.partition(" ")[2], int(t.partition(" ")[0])) for t in lines.get("temperature", ())),
        tools=frozenset(one("tools").split()),
        writable=one("writable") == "yes",
        noexec=one("noexec") == "yes",
        symlinks=one("symlinks", "yes") == "yes",
        npu=one("npu"),
        clock=int(one("clock", "0")),
    )


def profile(found: Probe, name: str) -> str:
    """A target profile in TOML for devices like the one that was probed. Raises `UsageError`: no profile can."""
    arch = this_machine.MACHINES.get(found.machine)
    if arch is None:
        raise UsageError(f"{name}: there are no targets for the architecture {found.machine!r}.", "", id="EP202")
    android = found.os == "android"
    base = "android-arm64" if android else f"linux-{arch}"
    core = found.clusters[0][0] if found.clusters else "generic"
    keys: dict[str, Any] = {
        "description": f"{name}, as probed: {found.machine}, Linux {found.kernel}",
        "extends": base,
        "libc": found.libc,
        "libc_version": found.libc_version,
        "glibcxx": found.glibcxx or ("3.4" if found.libc == "glibc" else ""),  # 3.4: no libstdc++ is promised
        "cpu": core if re.fullmatch(r"(cortex|neoverse)-\w+", core) else "",
        "cpu_features": list(found.cpu_features),
        "clusters": [list(cluster) for cluster in found.clusters],
        "memory_mb": found.memory_mb,
        "emulator_cpu": "cortex-a76" if arch == "aarch64" and "atomics" in found.cpu_features else "",
    }
    keys = {key: value for key, value in keys.items() if value}
    keys["engines"], absent = _engines(base, keys, name)
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    if absent:
        lines += ["", "[absent]", *(f"{engine} = {json.dumps(why)}" for engine, why in absent.items())]
    return "\n".join(lines) + "\n"


def _engines(base: str, keys: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, str]]:
    from dataclasses import asdict

    from edgepack.config import load_target

    return this_machine.engines({**asdict(load_target(base)), **keys}, name)


def _read(text: str, device: str) -> dict[str, list[str]]:
    _, found, body = text.replace("\r\n", "\n").partition("edgepack-probe 1\n")
    *lines, last = body.rstrip("\n").split("\n")
    if not found or last != "end":
        raise DeviceFailed(
            f"{device}: the probe's answer is {'cut off' if found else 'no probe at all'}: {text[-80:].strip()!r}.",
            "Check that `sh` works there, and that logging in starts no program of its own.",
            id="EP625",
        )
    result: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.partition(" ")
        pattern, many = _LINES.get(key, ("(?!)", False))
        if not re.fullmatch(pattern, value) or (key in result and not many):
            raise DeviceFailed(f"{device}: the probe said {line!r}, which is not understood.", "", id="EP625")
        result.setdefault(key, []).append(value)
    return result


def _machine(machine: str, loaders: Mapping[str, str]) -> str:
    """A 64-bit kernel may run a 32-bit system, which runs 32-bit programs only (but for static ones)."""
    only_32_bit = LOADERS["armhf"] in loaders and LOADERS["aarch64"] not in loaders
    return "armv8l" if machine == "aarch64" and only_32_bit else machine


def _libc(machine: str, said: list[str], loaders: Mapping[str, str], libraries: list[str]) -> tuple[str, str]:
    answers = {name: version for name, _, version in (each.partition(" ") for each in said)}
    if "bionic" in answers:
        return "bionic", answers["bionic"]
    version = loaders.get(LOADERS.get(this_machine.MACHINES.get(machine, ""), ""), "") or answers.get("glibc", "")
    # Before 2.34 the library's file was named for its version, and the loader couldn't say it.
    named = [found.group(1) for name in libraries if (found := re.fullmatch(r"libc-(2\.\d+)\.so", name))]
    if "musl" in answers and not version:
        return "musl", answers["musl"]
    if version or named or loaders:
        return "glibc", version or (named or [""])[0]
    return "", ""


def _glibcxx(libraries: list[str]) -> str:
    found = [int(name.rsplit(".", 1)[1]) for name in libraries if re.fullmatch(r"libstdc\+\+\.so\.6\.0\.\d+", name)]
    return f"3.4.{max(found)}" if found else ""


def _features(machine: str, line: str) -> tuple[str, ...]:
    if machine == "riscv64":
        isa = re.match(r"rv64([a-z]+)", line)
        return tuple(sorted(set(isa.group(1)))) if isa else ()
    wanted = line.split()
    if this_machine.MACHINES.get(machine) == "x86_64":
        wanted = [feature for feature in wanted if this_machine.X86_FEATURES.fullmatch(feature)]
    return tuple(sorted(set(wanted)))


def _clusters(
    parts: Mapping[int, tuple[str, str]], cpus: tuple[tuple[int, int, str], ...], model: str
) -> tuple[tuple[str, int], ...]:
    """(core name, count), slowest first: by the largest clock, where it is known."""
    clocks = {index: khz for index, khz, _ in cpus}
    indices = sorted(set(parts) | set(clocks))
    names = {i: CORES.get(parts[i], "/".join(parts[i])) if i in parts else model or "generic" for i in indices}
    speed = {name: min(clocks.get(i, 0) for i in indices if names[i] == name) for name in names.values()}
    return tuple((name, sum(names[i] == name for i in indices)) for name in sorted(speed, key=lambda n: speed[n]))

"""What the profile ``host`` stands for: this machine's architecture, C library, CPU and memory."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from edgepack.errors import UsageError
from edgepack.types import Target

# What the kernel calls an architecture -> what edgepack calls it.
MACHINES = {
    "aarch64": "aarch64",
    "arm64": "aarch64",
    "armv7l": "armhf",
    "armv8l": "armhf",
    "riscv64": "riscv64",
    "x86_64": "x86_64",
    "AMD64": "x86_64",
}
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
LIBRARY_FOLDERS = ("/usr/lib/{triple}", "/lib/{triple}", "/usr/lib64", "/lib64", "/usr/lib", "/lib")
TRIPLES = {
    "aarch64": "aarch64-linux-gnu",
    "armhf": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
    "x86_64": "x86_64-linux-gnu",
}
# x86 lists over a hundred flags, many of them bug switches that come and go with the kernel; these choose kernels.
X86_FEATURES = re.compile(r"sse\w*|ssse3|avx\w*|fma|f16c|bmi[12]|popcnt|movbe|lahf_lm|abm|amx_\w+")


def arch() -> str:
    """This machine's architecture. Raises `UsageError` when no profile knows it."""
    found = MACHINES.get(platform.machine())
    if found is None or platform.system() != "Linux":
        raise UsageError(
            f"The target `host` is for Linux machines; this one is {platform.system()} on {platform.machine()}.",
            "Name the target you build for, see `edgepack targets`.",
            id="EP202",
        )
    return found


def overlay(base: Mapping[str, Any]) -> dict[str, Any]:
    """`base` (the profile ``linux-ARCH``) with this machine's facts over it.

    Engines whose pinned library this machine can't load become absent, with the reason.
    """
    facts = {"arch": arch(), **_libc(), **_cpu(_read(CPUINFO)), **_memory(_read(MEMINFO))}
    found = {**base, **facts}
    found["engines"], found["absent"] = engines(found, "this machine")
    return found


def _libc() -> dict[str, str]:
    version = None
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:
        try:
            version = os.confstr("CS_GNU_LIBC_VERSION")
        except (OSError, ValueError):  # musl knows the name and refuses the question
            version = None
    if not version or not version.startswith("glibc "):
        return {"libc": "musl", "libc_version": "1.2", "glibcxx": _glibcxx() or "3.4"}
    found = {"libc": "glibc", "libc_version": version.removeprefix("glibc ")}
    glibcxx = _glibcxx()
    return {**found, "glibcxx": glibcxx} if glibcxx else found


def _glibcxx() -> str | None:
    """The newest GLIBCXX_3.4.N of the installed libstdc++: its file is called libstdc++.so.6.0.N."""
    for folder in LIBRARY_FOLDERS:
        path = Path(folder.format(triple=TRIPLES[arch()]), "libstdc++.so.6")
        if path.exists():
            found = re.fullmatch(r"libstdc\+\+\.so\.6\.0\.(\d+)", path.resolve().name)
            return f"3.4.{found.group(1)}" if found else None
    return None


def _cpu(cpuinfo: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.M)
    if flags:
        wanted = flags.group(1).split()
        found["cpu_features"] = sorted(f for f in wanted if arch() != "x86_64" or X86_FEATURES.fullmatch(f))
    isa = re.search(r"^isa\s*:\s*rv64([a-z]+)", cpuinfo, re.M)
    if isa:
        found["cpu_features"] = sorted(set(isa.group(1)))
    name = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.M)
    found["cpu"] = name.group(1).strip() if name else "generic"
    found["clusters"] = [[found["cpu"], os.cpu_count() or 1]]
    return found


def _memory(meminfo: str) -> dict[str, int]:
    found = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.M)
    return {"memory_mb": max(1, int(found.group(1)) // 1024)} if found else {}


def engines(facts: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, str]]:
    """Engines that a machine with `facts` can load, by the same rules that a build applies, and why not the others."""
    from edgepack import runtimes

    about = ("arch", "os", "libc", "libc_version", "glibcxx", "cpu", "cpu_features")
    unused = dict.fromkeys(field.name for field in fields(Target))
    probe = Target(**{**unused, **{key: facts[key] for key in about}, "name": name, "libraries": {}})
    absent: dict[str, str] = {}
    names = list(dict.fromkeys([*facts["engines"], *facts.get("absent", {})]))
    for engine in names:
        problem = runtimes.problem(engine, probe) if engine in runtimes.pins() else None
        if problem is not None:
            absent[engine] = problem[0]
    return [engine for engine in names if engine not in absent], absent


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

"""`edgepack doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import os
import shutil
from typing import Any

from edgepack import config, converter, emulator, harness, plugins, resources
from edgepack.errors import EdgepackError

ARCHES = {"aarch64": "linux-aarch64", "x86_64": "linux-x86_64", "armhf": "linux-armhf", "riscv64": "linux-riscv64"}


def examine() -> list[dict[str, Any]]:
    """Every check: section, name, whether it is all right, what was found, what to do."""
    checks = [_uv(), _tool("cmake", "apt install cmake"), _tool("ninja", "apt install ninja-build"), _cache()]
    checks += [_environment(script) for script in converter.scripts()]
    for arch, target in ARCHES.items():
        checks += _architecture(arch, target)
    network = converter.network_cut_off()
    found = "converters run without a network" if network else "not possible here: converters could reach the network"
    checks.append(_check("sandbox", "network", True, found, ""))
    return checks


def text(checks: list[dict[str, Any]]) -> str:
    """The checks for people."""
    lines = []
    for check in checks:
        mark = "ok" if check["ok"] else "--"
        lines.append(f"{mark}  {check['section']:<13} {check['name']:<26} {check['found']}")
        if not check["ok"] and check["cure"]:
            lines.append(f"        {check['cure']}")
    return "\n".join(lines)


def _check(section: str, name: str, ok: bool, found: str, cure: str) -> dict[str, Any]:
    return {"section": section, "name": name, "ok": ok, "found": found, "cure": cure}


def _uv() -> dict[str, Any]:
    try:
        return _check("tools", "uv", True, str(converter.uv()), "")
    except EdgepackError as error:
        return _check("tools", "uv", False, error.message, error.hint)


def _tool(name: str, cure: str) -> dict[str, Any]:
    found = harness.program(name)
    return _check("tools", name, found is not None, found or "not found", cure)


def _cache() -> dict[str, Any]:
    root = resources.cache_root()
    existing = root
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    found = f"{root} ({free >> 30} GiB free{'' if writable else ', not writable'})"
    return _check("tools", "cache", writable and free > 8 << 30, found, "Set EDGEPACK_CACHE to a folder with 8 GiB.")


def _environment(script: str) -> dict[str, Any]:
    ready = converter.prepared(script)
    wanted = converter.wanted_python(script)
    if ready:
        return _check("environments", script, True, "prepared", "")
    python = converter.python_for(script)
    found = f"not prepared yet (Python {wanted}: {python or 'not found; uv will try to download it'})"
    return _check("environments", script, False, found, "Run `edgepack setup`, or let the first build prepare it.")


def _architecture(arch: str, name: str) -> list[dict[str, Any]]:
    target = config.load_target(name)
    checks = []
    for toolchain in plugins.load_all("toolchains"):
        if toolchain.name == "cmake_file":
            continue  # needs the user's own file
        dynamic, static = (toolchain.locate(target, static=wanted) for wanted in (False, True))
        found = (dynamic or static).description if dynamic or static else "not found"
        if static and not dynamic:
            found += f" (static programs only: {target.name} promises {target.libc} {target.libc_version})"
        cure = "" if dynamic else toolchain.advice(target)
        if not cure and not (dynamic or static):
            continue  # a toolchain for other systems
        checks.append(_check(arch, toolchain.name, bool(dynamic or static), found, cure))
    runner = emulator.find(target, static=False) or emulator.find(target, static=True)
    found = runner.description if runner else emulator.why_not(target)
    checks.append(_check(arch, "self-test", runner is not None, found, "" if runner else "apt install qemu-user"))
    return checks

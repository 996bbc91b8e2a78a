"""Runs a harness that was built for another machine: natively where it fits, else under qemu-user.

qemu-user before version 10 lets ONNX Runtime's and LiteRT's CPU detection read the host's /proc/cpuinfo and /sys,
and they crash on it. A small tree with the target's own answers, given by ``-L``, avoids that.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack import process
from edgepack.cache import sha256_text
from edgepack.config import MACHINES
from edgepack.resources import cache_root
from edgepack.toolchains import TRIPLES
from edgepack.types import Completed, SelfTest, Target

PROGRAMS = {"aarch64": "qemu-aarch64", "armhf": "qemu-arm", "riscv64": "qemu-riscv64", "x86_64": "qemu-x86_64"}
CORES = 4
SECONDS_PER_SAMPLE = 300.0
# Implementer, part and features of the emulated cores, as the kernel prints them.
FEATURES_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
ARM_CORES = {
    "cortex-a53": ("0x41", "0xd03", FEATURES_V8),
    "cortex-a72": ("0x41", "0xd08", FEATURES_V8),
    "cortex-a76": ("0x41", "0xd0b", f"{FEATURES_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
    "neoverse-n1": ("0x41", "0xd0c", f"{FEATURES_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
    "max": ("0x41", "0xd0b", f"{FEATURES_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
    "cortex-a7": ("0x41", "0xc07", "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32"),
}


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """A way to run the target's programs here. `how` is ``native`` or ``emulated`` and labels every result."""

    how: str
    description: str
    digest: str
    prefix: tuple[str, ...]

    def run(self, argv: Sequence[str], seconds: float) -> Completed:
        """Run a program of the target. Raises `process.TimedOut`."""
        return process.run([*self.prefix, *argv], limits=process.Limits(seconds=seconds))


def find(target: Target, *, static: bool) -> Emulator | None:
    """The way to run `target`'s programs here; a dynamic program under qemu also needs the target's libc."""
    if MACHINES.get(platform.machine()) == target.arch:
        return Emulator(how="native", description="native", digest="native", prefix=())
    program = _qemu(target)
    if program is None or (not static and _libraries(target) is None):
        return None
    told = process.run([program, "--version"], limits=process.Limits(seconds=30)).stdout.split("\n")[0]
    prefix = (str(program), "-cpu", target.emulator_cpu, "-L", str(_sysroot(target)))
    return Emulator(
        how="emulated",
        description=f"{program.name} -cpu {target.emulator_cpu}",
        digest=sha256_text("\n".join([told, target.emulator_cpu, _cpuinfo(target)])),
        prefix=prefix,
    )


def why_not(target: Target) -> str:
    """Why `find` found nothing, and what to install."""
    if _qemu(target) is None:
        return f"no {PROGRAMS[target.arch]} here (apt install qemu-user)"
    return (
        f"no {target.arch} C library for {PROGRAMS[target.arch]} here (apt install libstdc++6-{_debian(target)}-cross)"
    )


def self_test(runner: Emulator, harness: Path, variant: Path, golden: Path, engine: str) -> SelfTest:
    """Run a harness on the golden samples and read its JSON lines.

    `harness` holds ``bin/`` and ``lib/``. A harness that dies before its ``end`` line has failed, with its last words.
    """
    argv = [
        str(harness / "bin" / f"edgepack-{engine}"),
        "self-test",
        "--variant",
        str(variant),
        "--golden",
        str(golden),
    ]
    count = sum(1 for _ in golden.iterdir())
    try:
        done = runner.run(argv, SECONDS_PER_SAMPLE * max(1, count))
    except process.TimedOut as error:
        return SelfTest(how=runner.how, passed=False, detail=f"no end after {error.seconds:.0f} s")
    lines = json_lines(done.stdout)
    metrics = tuple(line for line in lines if line.get("type") == "golden")
    end = next((line for line in lines if line.get("type") == "end"), None)
    if end is None:
        words = [line for line in done.stderr.splitlines() if line.strip()][-2:]
        detail = f"the harness died with {process.describe_exit(done.returncode)}: {' '.join(words)}"
        return SelfTest(how=runner.how, passed=False, detail=detail, metrics=metrics)
    passed = end.get("status") == "ok" and done.returncode == 0 and bool(metrics)
    failed = [m for m in metrics if m.get("status") != "ok"]
    detail = runner.description if passed else f"outputs are off the golden ones: {failed or done.stderr.strip()}"
    return SelfTest(how=runner.how, passed=passed, detail=detail, metrics=metrics)


def json_lines(text: str) -> list[dict[str, Any]]:
    """Every line of a harness's stdout that is a JSON object."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _qemu(target: Target) -> Path | None:
    name = PROGRAMS[target.arch]
    found = shutil.which(name) or shutil.which(f"{name}-static")
    return Path(found) if found else None


def _libraries(target: Target) -> Path | None:
    folder = Path("/usr") / TRIPLES[target.arch]
    return folder if (folder / "lib").is_dir() else None


def _debian(target: Target) -> str:
    return {"aarch64": "arm64", "x86_64": "amd64"}.get(target.arch, target.arch)


def _sysroot(target: Target) -> Path:
    """A folder with the target's libraries and the target's own /proc/cpuinfo and CPU topology."""
    text = _cpuinfo(target)
    root = cache_root() / "sysroots" / f"{target.arch}-{sha256_text(text)[:12]}"
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(text)
    for cpu in range(CORES):
        topology = root / "sys" / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True, exist_ok=True)
        for name in ("cluster_cpus_list", "core_siblings_list", "package_cpus_list"):
            (topology / name).write_text(f"0-{CORES - 1}\n")
    libraries = _libraries(target)
    link = root / "lib"
    if libraries is not None and not link.is_symlink():
        link.symlink_to(libraries / "lib")
    return root


def _cpuinfo(target: Target) -> str:
    if target.arch not in ("aarch64", "armhf"):
        return "".join(f"processor\t: {cpu}\nhart\t\t: {cpu}\n\n" for cpu in range(CORES))
    implementer, part, features = ARM_CORES.get(target.emulator_cpu, ARM_CORES["cortex-a53"])
    block = (
        f"BogoMIPS\t: 48.00\nFeatures\t: {features}\nCPU implementer\t: {implementer}\nCPU architecture: 8\n"
        f"CPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 0\n\n"
    )
    return "".join(f"processor\t: {cpu}\n{block}" for cpu in range(CORES))

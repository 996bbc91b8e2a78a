"""Runs a harness that was built for another machine: natively where it fits, else under qemu-user.

qemu-user before version 10 lets ONNX Runtime's and LiteRT's CPU detection read the host's /proc/cpuinfo and /sys,
and they crash on it. A small tree with the target's own answers, given by ``-L``, avoids that.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import signal
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack import process
from edgepack.cache import sha256_text
from edgepack.resources import cache_root
from edgepack.this_machine import CPUINFO, MACHINES
from edgepack.toolchains import TRIPLES
from edgepack.types import Completed, SelfTest, Target

PROGRAMS = {"aarch64": "qemu-aarch64", "armhf": "qemu-arm", "riscv64": "qemu-riscv64", "x86_64": "qemu-x86_64"}
DEBIAN = {"aarch64": "arm64", "armhf": "armhf", "riscv64": "riscv64", "x86_64": "amd64"}
CORES = 4
SECONDS_PER_SAMPLE = 300.0
# Implementer, part and features of the cores that qemu offers, as the kernel prints them.
_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V82 = f"{_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
_V7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32"
ARM_CORES = {
    "cortex-a35": ("0x41", "0xd04", _V8),
    "cortex-a53": ("0x41", "0xd03", _V8),
    "cortex-a55": ("0x41", "0xd05", _V82),
    "cortex-a57": ("0x41", "0xd07", _V8),
    "cortex-a72": ("0x41", "0xd08", _V8),
    "cortex-a76": ("0x41", "0xd0b", _V82),
    "neoverse-n1": ("0x41", "0xd0c", _V82),
    "max": ("0x41", "0xd0b", _V82),
    "cortex-a7": ("0x41", "0xc07", _V7),
    "cortex-a9": ("0x41", "0xc09", "half thumb fastmult vfp edsp neon vfpv3 tls vfpd32"),
    "cortex-a15": ("0x41", "0xc0f", _V7),
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
        limits = process.Limits(seconds=seconds)
        return process.run([*self.prefix, *argv], env=process.clean_environment(), limits=limits)


def find(target: Target, *, static: bool) -> Emulator | None:
    """The way to run `target`'s programs here; a dynamic program under qemu also needs the target's libraries."""
    if _native(target):
        if _lacking(target):
            return None
        return Emulator(how="native", description="native", digest="native", prefix=())
    program = _qemu(target)
    if program is None or (not static and _libraries(target) is None):
        return None
    tree = _files(target)
    return Emulator(
        how="emulated",
        description=f"{program.name} -cpu {target.emulator_cpu}",
        digest=sha256_text("\n".join([_told(program), target.emulator_cpu, _digest(tree)])),
        prefix=(str(program), "-cpu", target.emulator_cpu, "-L", str(_sysroot(target, tree))),
    )


def why_not(target: Target) -> str:
    """Why `find` found nothing and what to install, as a clause."""
    if _native(target):
        lacking = ", ".join(_lacking(target))
        return f"this machine's CPU has no {lacking}, for which programs of {target.name} are compiled"
    if _qemu(target) is None:
        return f"there is no {PROGRAMS[target.arch]} here (apt install qemu-user)"
    package = f"libstdc++6-{DEBIAN[target.arch]}-cross"
    return f"there is no C library of {target.arch} for {PROGRAMS[target.arch]} here (apt install {package})"


def self_test(runner: Emulator, harness: Path, variant: Path, golden: Path, engine: str) -> SelfTest:
    """Run a harness on the golden samples and read its JSON lines.

    `harness` holds ``bin/`` and ``lib/``, `variant` the ``variant.txt``, `golden` a folder for each sample. A harness
    that dies before its ``end`` line has failed, and so has one that says ``ok`` to fewer samples than there are.
    """
    program = harness / "bin" / f"edgepack-{engine}"
    argv = [str(program), "self-test", "--variant", str(variant), "--golden", str(golden)]
    count = sum(1 for path in golden.iterdir() if path.is_dir())
    try:
        done = runner.run(argv, SECONDS_PER_SAMPLE * max(1, count))
    except process.TimedOut as error:
        if runner.how == "emulated":  # a busy machine and a large model, and no fault of the variant
            detail = f"not finished within {error.seconds:.0f} s under {runner.description}"
            return SelfTest(how="not run", passed=None, detail=detail)
        return SelfTest(how=runner.how, passed=False, detail=f"the harness was killed after {error.seconds:.0f} s")
    return judge(done, runner, count, engine)


def judge(done: Completed, runner: Emulator, count: int, engine: str = "") -> SelfTest:
    """What a finished ``self-test`` on `count` samples says of itself, believed only when it is whole."""
    lines = json_lines(done.stdout)
    metrics = tuple(line for line in lines if line.get("type") == "golden")
    end = next((line for line in lines if line.get("type") == "end"), None)
    words = " ".join(_last_lines(done.stderr))
    if crash := describe_crash(done.returncode, engine):  # also after the end line: an engine that dies while it closes
        return SelfTest(how=runner.how, passed=False, detail=f"{' '.join(crash)} {words}".rstrip(), metrics=metrics)
    if end is None:
        detail = f"the harness ended with {process.describe_exit(done.returncode)} before it was done: {words}"
        return SelfTest(how=runner.how, passed=False, detail=detail.rstrip(": "), metrics=metrics)
    tested = {line.get("index") for line in metrics if isinstance(line.get("index"), int)}
    failed = [line for line in metrics if line.get("status") != "ok"]
    if end.get("status") == "ok" and done.returncode == 0 and not failed and len(tested) == count:
        return SelfTest(how=runner.how, passed=True, detail=runner.description, metrics=metrics)
    if failed:
        worst = min(failed, key=lambda line: (line.get("finite") is not False, _cosine(line)))
        where = f"sample {worst.get('index')}, output {worst.get('output')}"
        if worst.get("finite") is False:
            detail = f"{where} has NaN or infinite values (float16 overflows on this CPU?)"
        else:
            detail = (
                f"outputs differ from the golden ones in {len(failed)} of {len(metrics)} comparisons; "
                f"{where}: cosine {worst.get('cosine')}, SQNR {worst.get('sqnr_db')} dB"
            )
    else:
        detail = f"the harness compared {len(tested)} of {count} samples and said: {words or end.get('status')}"
    return SelfTest(how=runner.how, passed=False, detail=detail, metrics=metrics)


def describe_crash(code: int, engine: str) -> tuple[str, str] | None:
    """What happened and what to do, when a harness that ended with `code` was killed by a signal; else None.

    edgepack's own code ends with 0 to 3 whatever it is given, so the engine is named. Shells and some transports say
    128 + N for signal N.
    """
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number == 0:
        return None
    who = f"the engine {engine}" if engine else "the engine"
    happened = f"{who} crashed: the harness was ended by {process.describe_exit(-number)}."
    if number == signal.SIGILL:
        cure = (
            "Its library needs instructions that this CPU hasn't: use another engine, or correct the target's profile."
        )
    elif number == signal.SIGKILL:
        cure = "The system does that when memory runs out: free some, or use a smaller model."
    else:
        cure = "Its model file may be damaged: build the bundle again. If it still crashes, leave this engine out."
    return happened, cure


def json_lines(text: str) -> list[dict[str, Any]]:
    """Every line of a harness's stdout that is a JSON object."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _cosine(line: dict[str, Any]) -> float:
    value = line.get("cosine")
    return float(value) if isinstance(value, int | float) and abs(value) <= 1 else 0.0


def _last_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()][-2:]


def _native(target: Target) -> bool:
    return platform.system() == "Linux" and MACHINES.get(platform.machine()) == target.arch


def _lacking(target: Target) -> list[str]:
    """Features that the target's programs may use and this CPU hasn't; nothing when the kernel doesn't list them."""
    try:
        lines = [line.partition(":") for line in CPUINFO.read_text(errors="replace").splitlines()]
    except OSError:
        return []
    has = {word for name, _, words in lines if name.strip() in ("flags", "Features") for word in words.split()}
    return sorted(set(target.cpu_features) - has) if has else []


def _qemu(target: Target) -> Path | None:
    name = PROGRAMS[target.arch]
    found = shutil.which(f"{name}-static") or shutil.which(name)  # static: a quarter faster on float models
    return Path(found) if found else None


@functools.cache
def _told(program: Path) -> str:
    return process.run([program, "--version"], limits=process.Limits(seconds=30)).stdout.split("\n")[0]


def _libraries(target: Target) -> Path | None:
    folder = Path("/usr") / TRIPLES[target.arch] / "lib"
    return folder if folder.is_dir() else None


def _files(target: Target) -> dict[str, str]:
    """The files of a sysroot by relative path: what the target's /proc and /sys would say of its CPU."""
    files = {"proc/cpuinfo": _cpuinfo(target)}
    for cpu in range(CORES):
        for name in ("cluster_cpus_list", "core_siblings_list", "package_cpus_list"):
            files[f"sys/devices/system/cpu/cpu{cpu}/topology/{name}"] = f"0-{CORES - 1}\n"
    return files


def _digest(files: dict[str, str]) -> str:
    return sha256_text(json.dumps(files, sort_keys=True))


def _sysroot(target: Target, files: dict[str, str]) -> Path:
    """A folder with `files` and a link to the target's libraries; made once, and whole when it is there."""
    libraries = _libraries(target)
    root = cache_root() / "sysroots" / f"{target.arch}-{sha256_text(_digest(files) + str(libraries))[:16]}"
    if root.is_dir():
        return root
    part = root.with_name(f".{uuid.uuid4().hex}")
    for name, text in files.items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_text(text)
    if libraries is not None:
        (part / "lib").symlink_to(libraries)
    try:
        os.rename(part, root)
    except OSError:  # another build was faster
        shutil.rmtree(part, ignore_errors=True)
    return root


def _cpuinfo(target: Target) -> str:
    if target.arch not in ("aarch64", "armhf"):
        return "".join(f"processor\t: {cpu}\nhart\t\t: {cpu}\n\n" for cpu in range(CORES))
    other = "cortex-a7" if target.arch == "armhf" else "cortex-a53"
    implementer, part, features = ARM_CORES.get(target.emulator_cpu, ARM_CORES[other])
    if target.arch == "armhf" and features in (_V8, _V82):
        features = _V7
    block = (
        f"BogoMIPS\t: 48.00\nFeatures\t: {features}\nCPU implementer\t: {implementer}\n"
        f"CPU architecture: {7 if target.arch == 'armhf' else 8}\n"
        f"CPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 0\n\n"
    )
    return "".join(f"processor\t: {cpu}\n{block}" for cpu in range(CORES))

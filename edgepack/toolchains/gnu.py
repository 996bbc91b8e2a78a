"""Debian's cross g++ (``aarch64-linux-gnu-g++`` ...), or the machine's own g++ where the target is this machine."""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from edgepack import process
from edgepack.cache import sha256_file, sha256_text
from edgepack.elf import libc_version, version
from edgepack.resources import cache_root
from edgepack.this_machine import MACHINES
from edgepack.toolchains import TRIPLES
from edgepack.types import Compiler, Target

# What a program linked against a libc of at least that version needs: 2.34 merged libpthread and libdl into libc,
# since 2.35 libgcc's unwinder asks for _dl_find_object, from 2.38 on g++ turns strtol and its like into C23's.
_STEPS = ("2.38", "2.35", "2.34")


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One g++ on PATH: what it says of itself, the version of its C library, and what it links statically.

    `archives` are the names of the static libraries that it has, `digest` covers them and the C library.
    """

    told: str
    number: str
    libc: str
    digest: str
    archives: tuple[str, ...] = ()


class Gnu:
    """GCC from the system's packages."""

    name = "gnu"
    version = "2"

    def locate(self, target: Target, *, static: bool) -> Compiler | None:
        """A g++ for the target's architecture, whose libc the target can take unless the program is static."""
        triple = TRIPLES[target.arch]
        native = MACHINES.get(platform.machine()) == target.arch
        prefix = "" if native else f"{triple}-"
        cxx = shutil.which(f"{prefix}g++")
        if cxx is None or shutil.which(f"{prefix}gcc") is None:
            return None
        found = _examine(cxx)
        # Fedora and others leave the static libraries to packages of their own.
        if "libstdc++.a" not in found.archives or (static and "libc.a" not in found.archives):
            return None
        if not static and (target.libc != "glibc" or version(needed(found.libc)) > version(target.libc_version)):
            return None
        args = [
            f"-DCMAKE_C_COMPILER={prefix}gcc",
            f"-DCMAKE_CXX_COMPILER={prefix}g++",
            "-DCMAKE_EXE_LINKER_FLAGS=-static-libstdc++ -static-libgcc",
        ]
        if flags := _flags(target):
            args += [f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]
        if not native:
            processor = "arm" if target.arch == "armhf" else target.arch
            args += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={processor}"]
        sysroot = Path("/usr") / triple
        return Compiler(
            toolchain=self.name,
            description=f"{prefix}g++ {found.number}".strip(),
            digest=sha256_text("\n".join([found.told, found.digest, self.version, *args])),
            cmake_args=tuple(args),
            sysroot=sysroot if not native and sysroot.is_dir() else None,
            static=static,
        )

    def advice(self, target: Target) -> str:
        """The Debian package to install."""
        package = f"g++-{TRIPLES[target.arch]}" if MACHINES.get(platform.machine()) != target.arch else "g++"
        return f"Debian and Ubuntu: `apt install {package} cmake ninja-build`."


def needed(libc: str) -> str:
    """The newest glibc symbol version of our programs when they are linked against glibc `libc`."""
    return next((step for step in _STEPS if version(libc) >= version(step)), libc)


def _flags(target: Target) -> str:
    if target.arch != "armhf":
        return ""
    # With 32-bit inode numbers stat() fails on large disks. Debian's armhf is VFPv3 with 16 registers and no NEON;
    # the profile may promise more.
    flags = "-D_FILE_OFFSET_BITS=64"
    if "vfpv4" in target.cpu_features and "neon" in target.cpu_features:
        return f"{flags} -march=armv7-a+neon-vfpv4 -mfloat-abi=hard"
    return f"{flags} -march=armv7-a+simd -mfloat-abi=hard" if "neon" in target.cpu_features else flags


@functools.cache
def _examine(cxx: str) -> _Found:
    """Ask a compiler who it is. The answer is remembered while it and the libraries that it links stay as they are."""
    note = cache_root() / "toolchains" / f"gnu-{sha256_text(cxx)[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_bytes())
        if known["stamps"] and all(_stamp(Path(path)) == stamp for path, stamp in known["stamps"].items()):
            return _Found(**{**known["found"], "archives": tuple(known["found"]["archives"])})
    found, files = _ask(cxx)
    content = {"found": asdict(found), "stamps": {str(path): _stamp(path) for path in (Path(cxx), *files)}}
    note.parent.mkdir(parents=True, exist_ok=True)
    part = note.with_name(f".{uuid.uuid4().hex}")
    part.write_text(json.dumps(content))
    part.replace(note)
    return found


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _ask(cxx: str) -> tuple[_Found, list[Path]]:
    def ask(*argv: str) -> str:
        return process.run([cxx, *argv], limits=process.Limits(seconds=30)).stdout.strip()

    told = ask("--version").split("\n")[0]
    files = [Path(ask(f"-print-file-name={name}")) for name in ("libc.so.6", "libc.a", "libstdc++.a", "libgcc.a")]
    there = [path.resolve() for path in files if path.is_file()]
    found = _Found(
        told=told,
        number=ask("-dumpfullversion"),
        libc=libc_version(files[0]) if files[0].is_file() else "",
        digest=sha256_text("\n".join(f"{path.name} {sha256_file(path)}" for path in there)),
        archives=tuple(path.name for path in files if path.is_file() and path.suffix == ".a"),
    )
    return found, there

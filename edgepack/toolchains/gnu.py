"""Debian's cross g++ (``aarch64-linux-gnu-g++`` ...), or the machine's own g++ where the target is this machine."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from edgepack import process
from edgepack.cache import sha256_text
from edgepack.config import MACHINES
from edgepack.runtimes import version
from edgepack.toolchains import TRIPLES
from edgepack.types import Compiler, Target

# glibc 2.34 merged libpthread and libdl into libc: what g++ links dynamically on a newer system needs at least that.
LEAST_GLIBC = "2.34"
FLAGS = {"armhf": "-march=armv7-a -mfpu=neon-vfpv4 -mfloat-abi=hard"}


class Gnu:
    """GCC from the system's packages."""

    name = "gnu"
    version = "1"

    def locate(self, target: Target, *, static: bool) -> Compiler | None:
        """A g++ for the target's architecture whose libc the target can take."""
        if target.os not in ("linux", "android") or (target.os == "android" and not static):
            return None
        if not static and (target.libc != "glibc" or version(target.libc_version) < version(LEAST_GLIBC)):
            return None
        triple = TRIPLES[target.arch]
        native = MACHINES.get(platform.machine()) == target.arch
        prefix = "" if native else f"{triple}-"
        cxx = shutil.which(f"{prefix}g++")
        if cxx is None or shutil.which(f"{prefix}gcc") is None:
            return None
        told = process.run([cxx, "--version"], limits=process.Limits(seconds=30)).stdout.splitlines()[0]
        number = re.search(r"\d+\.\d+\.\d+", told)
        flags = FLAGS.get(target.arch, "")
        args = [
            f"-DCMAKE_C_COMPILER={prefix}gcc",
            f"-DCMAKE_CXX_COMPILER={prefix}g++",
            "-DCMAKE_EXE_LINKER_FLAGS=-static-libstdc++ -static-libgcc",
        ]
        if flags:
            args += [f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]
        if not native:
            processor = "arm" if target.arch == "armhf" else target.arch
            args += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={processor}"]
        sysroot = Path("/usr") / triple
        return Compiler(
            toolchain=self.name,
            description=f"{prefix}g++ {number.group() if number else ''}".strip(),
            digest=sha256_text("\n".join([told, self.version, *args])),
            cmake_args=tuple(args),
            sysroot=sysroot if not native and sysroot.is_dir() else None,
            static=static,
        )

    def advice(self, target: Target) -> str:
        """The Debian package to install."""
        package = f"g++-{TRIPLES[target.arch]}" if MACHINES.get(platform.machine()) != target.arch else "g++"
        return f"Debian and Ubuntu: `apt install {package} cmake ninja-build`."

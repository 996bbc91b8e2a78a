"""zig's clang (PyPI `ziglang`): a cross compiler for every target without root, which can choose the glibc floor.

Static programs are linked with musl, dynamic ones with the profile's own glibc version. The first program for a
target compiles zig's C++ library too, which takes minutes; it is kept below the cache.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path

from edgepack import converter, log
from edgepack.cache import sha256_file, sha256_text
from edgepack.errors import ToolMissing
from edgepack.resources import cache_root
from edgepack.toolchains import zig_wrapper
from edgepack.types import Compiler, Target

ARCH = {"aarch64": "aarch64", "armhf": "arm", "riscv64": "riscv64", "x86_64": "x86_64"}
HOSTS = ("x86_64", "aarch64", "armv7l", "i686")  # where `ziglang` has a wheel
TOOLS = ("cc", "c++", "ar", "ranlib")


class Zig:
    """zig c++ from the package index, prepared in an environment of its own."""

    name = "zig"
    version = "2"

    def locate(self, target: Target, *, static: bool) -> Compiler | None:
        """zig for the target, prepared already or to be fetched by `prepare`. Fetches nothing itself."""
        if platform.machine() not in HOSTS or (not static and target.libc != "glibc"):
            return None
        if os.environ.get("EDGEPACK_OFFLINE") == "1" and not converter.prepared("zig"):
            return None
        triple, cpu = _triple(target, static), _cpu(target)
        wrapper = sha256_file(Path(zig_wrapper.__file__))
        digest = sha256_text("\n".join([converter.digest("zig"), wrapper, triple, cpu, self.version]))
        folder = cache_root() / "toolchains" / f"zig-{triple}-{digest[:12]}"
        processor = "arm" if target.arch == "armhf" else target.arch
        tools = {"AR": "ar", "RANLIB": "ranlib", "C_COMPILER_AR": "ar", "CXX_COMPILER_AR": "ar"}
        tools |= {"C_COMPILER_RANLIB": "ranlib", "CXX_COMPILER_RANLIB": "ranlib"}
        return Compiler(
            toolchain=self.name,
            description=f"zig c++ ({triple})",
            digest=digest,
            cmake_args=(
                "-DCMAKE_SYSTEM_NAME=Linux",
                f"-DCMAKE_SYSTEM_PROCESSOR={processor}",
                f"-DCMAKE_C_COMPILER={folder / 'cc'}",
                f"-DCMAKE_CXX_COMPILER={folder / 'c++'}",
                *(f"-DCMAKE_{variable}={folder / tool}" for variable, tool in tools.items()),
            ),
            static=static,
            env={
                "ZIG_GLOBAL_CACHE_DIR": str(cache_root() / "zig"),
                "ZIG_LOCAL_CACHE_DIR": str(cache_root() / "zig"),
                "EDGEPACK_ZIG_TRIPLE": triple,
                "EDGEPACK_ZIG_CPU": cpu,
            },
        )

    def prepare(self, compiler: Compiler) -> None:
        """Fetch zig when it isn't here, and write the one-file tools that `compiler` names. Raises `ToolMissing`."""
        python = converter.environment("zig")
        found = sorted(python.parent.parent.glob("lib/python*/site-packages/ziglang/zig"))
        if not found:
            raise ToolMissing(f"There is no zig in {python.parent.parent}.", "Remove that folder and try again.")
        cxx = next(a for a in compiler.cmake_args if a.startswith("-DCMAKE_CXX_COMPILER=")).partition("=")[2]
        folder = Path(cxx).parent
        if not (cache_root() / "zig").is_dir():
            log.note("zig compiles its C++ library for each new target once: the first harness takes minutes longer")
        folder.mkdir(parents=True, exist_ok=True)
        for tool in TOOLS:
            command = [str(found[0]), tool]
            if tool in ("cc", "c++"):
                command = [sys.executable, "-IS", zig_wrapper.__file__, *command]
                command += [compiler.env["EDGEPACK_ZIG_TRIPLE"], compiler.env["EDGEPACK_ZIG_CPU"]]
            path = folder / tool
            part = folder / f".{tool}.{os.getpid()}"
            part.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            part.chmod(0o755)
            part.rename(path)

    def advice(self, target: Target) -> str:
        """zig comes from the package index."""
        return "Or let edgepack fetch zig from the package index: without EDGEPACK_OFFLINE, or by `edgepack setup`."


def _triple(target: Target, static: bool) -> str:
    suffix = "eabihf" if target.arch == "armhf" else ""
    libc = f"musl{suffix}" if static else f"gnu{suffix}.{target.libc_version}"
    return f"{ARCH[target.arch]}-linux-{libc}"


def _cpu(target: Target) -> str:
    if target.arch == "armhf" and "neon" in target.cpu_features:
        return "generic+v7a+neon+vfp4" if "vfpv4" in target.cpu_features else "generic+v7a+neon"
    return ""

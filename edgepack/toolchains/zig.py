"""zig's clang (PyPI `ziglang`): a cross compiler for every target without root, which can choose the glibc floor.

zig refuses GCC's ``-march=armv8.2-a+fp16``; it wants ``-mcpu=generic+v8_2a+fullfp16``. ncnn asks for each kernel family by
``-march``, so without a translation all of them would silently be left out. The wrapper scripts here translate.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from edgepack import converter
from edgepack.cache import sha256_text
from edgepack.errors import ToolMissing
from edgepack.resources import cache_root
from edgepack.types import Compiler, Target

ZIG_ARCH = {"aarch64": "aarch64", "armhf": "arm", "riscv64": "riscv64", "x86_64": "x86_64"}
WRAPPER = """\
#!/bin/sh
# Made by edgepack: zig as {tool} for {triple}; -march is translated to the -mcpu that zig understands.
for argument do
  shift
  case "$argument" in
    -march=armv8*)
      level=${{argument#-march=armv}}; level=${{level%%+*}}; extra=${{argument#*+}}
      [ "$extra" = "$argument" ] && extra=
      level=$(printf %s "${{level%-a}}" | tr . _)
      [ "$level" = 8 ] && cpu=generic || cpu="generic+v${{level}}a"
      for feature in $(printf %s "$extra" | tr + ' '); do
        case "$feature" in
          fp16) feature=fullfp16 ;; simd|fp) continue ;; crypto) feature=aes+sha2 ;;
        esac
        cpu="$cpu+$feature"
      done
      argument="-mcpu=$cpu" ;;
    -march=armv7*|-mfpu=*|-mfloat-abi=*) continue ;;
  esac
  set -- "$@" "$argument"
done
exec {zig} {tool} -target {triple} {cpu} "$@"
"""
PLAIN = """\
#!/bin/sh
exec {zig} {tool} "$@"
"""
CPUS = {"armhf": "-mcpu=generic+v7a+neon+vfp4"}


class Zig:
    """zig c++ from the package index, prepared in an environment of its own."""

    name = "zig"
    version = "1"

    def locate(self, target: Target, *, static: bool) -> Compiler | None:
        """zig for the target: static programs with musl, dynamic ones with the profile's own glibc floor."""
        if not static and target.libc != "glibc":
            return None
        try:
            python = converter.environment("zig")
        except ToolMissing:
            return None
        found = sorted(python.parent.parent.glob("lib/python*/site-packages/ziglang/zig"))
        if not found:
            return None
        suffix = "eabihf" if target.arch == "armhf" else ""
        libc = f"musl{suffix}" if static else f"gnu{suffix}.{target.libc_version}"
        triple = f"{ZIG_ARCH[target.arch]}-linux-{libc}"
        wrappers = self._wrappers(found[0], triple, target)
        processor = "arm" if target.arch == "armhf" else target.arch
        args = (
            "-DCMAKE_SYSTEM_NAME=Linux",
            f"-DCMAKE_SYSTEM_PROCESSOR={processor}",
            f"-DCMAKE_C_COMPILER={wrappers / 'cc'}",
            f"-DCMAKE_CXX_COMPILER={wrappers / 'c++'}",
            f"-DCMAKE_AR={wrappers / 'ar'}",
            f"-DCMAKE_RANLIB={wrappers / 'ranlib'}",
            f"-DCMAKE_CXX_COMPILER_AR={wrappers / 'ar'}",
            f"-DCMAKE_CXX_COMPILER_RANLIB={wrappers / 'ranlib'}",
        )
        return Compiler(
            toolchain=self.name,
            description=f"zig c++ ({triple})",
            digest=sha256_text("\n".join([converter.digest("zig"), WRAPPER, triple])),
            cmake_args=args,
            static=static,
            env={"ZIG_GLOBAL_CACHE_DIR": str(cache_root() / "zig"), "ZIG_LOCAL_CACHE_DIR": str(cache_root() / "zig")},
        )

    def advice(self, target: Target) -> str:
        """zig comes from the package index."""
        return "Or let edgepack fetch zig from the package index (`edgepack setup`; needs a network or a wheelhouse)."

    def _wrappers(self, zig: Path, triple: str, target: Target) -> Path:
        texts = {
            tool: WRAPPER.format(zig=shlex.quote(str(zig)), tool=tool, triple=triple, cpu=CPUS.get(target.arch, ""))
            for tool in ("cc", "c++")
        }
        texts |= {tool: PLAIN.format(zig=shlex.quote(str(zig)), tool=tool) for tool in ("ar", "ranlib")}
        folder = cache_root() / "zig-wrappers" / sha256_text("".join(texts.values()))[:16]
        folder.mkdir(parents=True, exist_ok=True)
        for tool, text in texts.items():
            path = folder / tool
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
            path.chmod(0o755)
        return folder

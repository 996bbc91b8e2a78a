"""Stands between CMake and zig: ``python zig_wrapper.py ZIG cc|c++ TRIPLE CPU ARGUMENT...``.

zig refuses GCC's ``-march=armv8.2-a+fp16`` and wants ``-mcpu=generic+v8_2a+fullfp16``. ncnn asks for each family of
kernels by ``-march``, so without a translation all of them would silently be left out. The script runs outside
edgepack's environment and imports nothing of it.
"""

from __future__ import annotations

import os
import re
import sys

# GCC's name of an extension -> LLVM's, where they differ.
_NAMES = {"fp16": "fullfp16", "simd": "neon", "crypto": "aes+sha2", "fp": "fp_armv8"}


def translate(arguments: list[str], cpu: str) -> list[str]:
    """`arguments` as zig understands them; `cpu` (``-mcpu``'s value, or nothing) holds unless they name another."""
    result: list[str] = []
    for argument in arguments:
        if argument.startswith("-march="):
            cpu = _cpu(argument.removeprefix("-march=")) or cpu
        elif not argument.startswith(("-mfpu=", "-mfloat-abi=", "-static-libstdc++", "-static-libgcc")):
            result.append(argument)  # zig's triple says the ABI, and its C++ library is always static
    return [*([f"-mcpu={cpu}"] if cpu else []), *result]


def _cpu(march: str) -> str:
    base, *extensions = march.split("+")
    if arm := re.fullmatch(r"armv8(?:\.(\d+))?-a", base):
        level = f"v8_{arm.group(1)}a" if arm.group(1) else "v8a"
        return "+".join(["generic", level, *(_NAMES.get(name, name) for name in extensions)])
    if riscv := re.fullmatch(r"rv64([a-z]*)((?:_\w+)*)", base):
        letters = riscv.group(1).replace("g", "mafd")
        return "+".join(["generic_rv64", *letters.replace("i", ""), *filter(None, riscv.group(2).split("_"))])
    return ""  # 32-bit Arm and x86: the profile's CPU is given as such


def main(argv: list[str]) -> None:
    """Become zig."""
    zig, tool, triple, cpu, *arguments = argv
    os.execv(zig, [zig, tool, "-target", triple, *translate(arguments, cpu)])  # noqa: S606 - no shell is what we want


if __name__ == "__main__":
    main(sys.argv[1:])

"""Toolchains: one file each, and the choice between them."""

from __future__ import annotations

from edgepack import plugins
from edgepack.errors import ToolMissing
from edgepack.interfaces import Toolchain
from edgepack.types import Compiler, Target

TRIPLES = {
    "aarch64": "aarch64-linux-gnu",
    "armhf": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
    "x86_64": "x86_64-linux-gnu",
}
ORDER = ("cmake_file", "android_ndk", "gnu", "zig")  # the user's own first, downloads last


def select(target: Target, engine: str) -> Compiler:
    """The first toolchain that can make a harness of `engine` for `target`.

    ncnn is linked statically unless the profile says otherwise, so any libc does; the other engines load a shared
    library, and their harness must not need a newer libc than the profile's floor. Raises `ToolMissing` that says
    what to install.
    """
    static = engine == "ncnn" and target.static
    names = [name for name in ORDER if name in plugins.names("toolchains")]
    names += [name for name in plugins.names("toolchains") if name not in names]
    found: list[Toolchain] = [plugins.load("toolchains", name) for name in names]
    for toolchain in found:
        compiler = toolchain.locate(target, static=static)
        if compiler is not None:
            return compiler
    advice = " ".join(filter(None, (toolchain.advice(target) for toolchain in found)))
    linked = "a static program" if static else f"a program that needs no more than {target.libc} {target.libc_version}"
    raise ToolMissing(
        f"No C++ compiler here can make {linked} for {target.name} ({target.arch}), which {engine}'s harness must be.",
        advice,
    )

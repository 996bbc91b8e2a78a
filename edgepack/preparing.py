"""`edgepack setup`: environments and engine libraries ahead of time, also without a network."""

from __future__ import annotations

import os
from pathlib import Path

from edgepack import config, converter, plugins, runtimes, toolchains
from edgepack.errors import ToolMissing, VariantError
from edgepack.types import Precision, Target


def setup(target_name: str | None, wheelhouse: Path | None) -> list[str]:
    """Prepare what one target (or everything) needs; returns a line for each thing that is ready.

    `wheelhouse` is a folder of wheels and the ncnn sdist: nothing else is asked then. Raises `ToolMissing`.
    """
    if wheelhouse is not None:
        folder = str(wheelhouse.absolute())
        os.environ.update(UV_FIND_LINKS=folder, UV_NO_INDEX="1", EDGEPACK_WHEELHOUSE=folder, EDGEPACK_OFFLINE="1")
    target = config.load_target(target_name) if target_name else None
    done = []
    for script in sorted(_scripts(target)):
        done.append(f"{script}: {converter.environment(script)}")
    for each in [target] if target else [config.load_target("linux-aarch64"), config.load_target("host")]:
        for engine in each.engines:
            try:
                spec = runtimes.spec(engine, each)
            except VariantError as error:
                done.append(f"{engine} for {each.name}: not available: {error.message}")
            else:
                done.append(f"{engine} {spec.version} for {each.name}: fetched")
    return done


def _scripts(target: Target | None) -> set[str]:
    if target is None:
        return set(converter.scripts())
    scripts = {"run_onnxruntime"}
    for group in ("importers", "passes"):
        for plugin in plugins.load_all(group):
            scripts |= set(plugin.tools)
    for name in target.engines:
        try:
            uses_zig = toolchains.select(target, name).toolchain == "zig"
        except ToolMissing:
            uses_zig = True
        scripts |= {"zig"} if uses_zig else set()
        engine = plugins.load("engines", name)
        for precision in Precision:
            scripts |= set(engine.tools(precision))
    return scripts

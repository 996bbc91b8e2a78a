"""What runs on the target: the shared runtime, an engine's harness, and its build configuration."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack import harness, plugins
from edgepack.cache import Cache, Entry, Step
from edgepack.interfaces import Engine
from edgepack.steps.variants import Checked
from edgepack.types import Compiler, Precision, Target


def build_core(cache: Cache, target: Target, compiler: Compiler, jobs: int) -> Entry:
    """Cross-compile what all harnesses of this target and compiler share."""
    inputs, params = harness.core_key(target, compiler)
    title = f"runtime for {target.name} with {compiler.description}"
    step = Step(name="runtime", version="1", title=title, inputs=inputs, params=params)
    return cache.output(step, lambda out: harness.build_core(target, compiler, out, jobs))


def build_harness(
    cache: Cache,
    engine: Engine,
    target: Target,
    compiler: Compiler,
    layers: tuple[str, ...],
    precisions: tuple[Precision, ...],
    jobs: int,
    core: Entry | None = None,
) -> Entry:
    """Cross-compile the harness of one engine, and collect the libraries it ships with."""
    spec = engine.runtime(target, layers, precisions)
    inputs, params = harness.key(engine.name, spec, target, compiler)
    step = Step(
        name="harness",
        version="1",
        title=f"harness {engine.name} for {target.name} with {compiler.description}",
        inputs=inputs,
        params=params,
    )
    shared = None if core is None else core.path / harness.CORE
    return cache.output(step, lambda out: harness.build(engine.name, spec, target, compiler, out, jobs, shared))


def build_config(cache: Cache, engine: Engine, kept: Mapping[str, Checked]) -> Entry | None:
    """What a user needs for building a smaller `engine` for the variants that are kept, where the engine can tell."""
    if not hasattr(engine, "build_config"):
        return None
    tools = getattr(engine, "build_config_tools", ())
    step = Step(
        name="build config",
        version="1",
        title=f"build config of {engine.name}",
        inputs={name: checked.digest for name, checked in kept.items()},
        params={"plugin": plugins.digest(engine, tools), "names": list(kept)},
    )
    artifacts_of = {name: checked.artifact for name, checked in kept.items()}
    return cache.output(step, lambda out: engine.build_config(artifacts_of, out))

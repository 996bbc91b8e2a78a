"""build(): the straight line from a model to a bundle. Start reading here.

    import -> reference, simplify -> export (engine x precision) -> verify -> harness -> self-test -> bundle

Each step is a function from files to a folder (`steps`), remembered by the hash of its inputs (`cache.output`), and
starts as soon as what it needs is there (`line.Line`, `graph.Graph`). A variant that fails is an `Outcome` with a
reason and never stops the others. An input set is the same line once more, up to the harness, which all sets share.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgepack import assembly, process, toolchains
from edgepack.cache import Cache, Entry, Step
from edgepack.errors import EdgepackError
from edgepack.graph import Graph
from edgepack.line import Line
from edgepack.plan import BuildPlan
from edgepack.types import Compiler, Outcome, Status, TensorSpec


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """An input set of which a variant was built: its inputs and outputs, and what it was held against."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: int
    synthetic: bool


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """How a build ended: an outcome for every variant, and the bundle when at least one was built."""

    plan: BuildPlan
    outcomes: tuple[Outcome, ...]
    bundle: Path | None
    digest: str
    samples: int
    synthetic: bool
    seconds: float
    input_sets: tuple[SetResult, ...] = ()


def build(plan: BuildPlan, cache: Cache, compilers: dict[str, Compiler]) -> BuildResult:
    """Make a bundle for a plan, with the compilers that `plan.prepare` found.

    Raises `ModelError` when the source can't be imported or its ONNX form doesn't give the source's outputs, and
    `UsageError` when an input set doesn't fit the model.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(plan.jobs) as pool:
        graph = Graph(pool)
        line = Line(plan, cache, graph, compilers)
        try:
            graph.finish()
        except KeyboardInterrupt:
            process.kill_all()
            pool.shutdown(cancel_futures=True)
            raise
    line.base.plan.result()
    model, samples = line.base.model.result(), line.base.samples.result()
    line.base.checked.result()
    outcomes = {variant: line.outcome(variant) for variant in line.ready}
    built = [line.ready[variant].result() for variant, told in outcomes.items() if told.status is Status.BUILT]
    golden = line.base.golden.result()
    parts = [assembly.Part(name="", plan=plan, model=model, samples=samples, golden=golden)]
    parts += [line.part(name) for name in line.sources if any(r.checked.variant.input_set == name != "" for r in built)]
    path, digest = None, ""
    if built:
        path = plan.destination
        engines = {ready.checked.variant.engine for ready in built}
        configs = {engine: line.configs[engine].result() for engine in engines}
        digest = assembly.write_bundle(plan, parts, built, configs)
    return BuildResult(
        plan=plan,
        outcomes=(*outcomes.values(), *plan.refused),
        bundle=path,
        digest=digest,
        samples=samples.verify_count,
        synthetic=samples.synthetic,
        seconds=time.monotonic() - started,
        input_sets=tuple(
            SetResult(
                name=part.name,
                inputs=part.model.inputs,
                outputs=part.model.outputs,
                samples=part.samples.verify_count,
                synthetic=part.samples.synthetic,
            )
            for part in parts[1:]
        ),
    )


class WouldRun(EdgepackError):
    """A step that a dry run found not to be in the cache."""


class DryCache(Cache):
    """Looks steps up and makes nothing: not even the cache's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def output(self, step: Step, make: Callable[[Path], None]) -> Entry:
        """The finished step, or `WouldRun`."""
        found = self.lookup(step, discard=False)
        if found is None:
            raise WouldRun(step.title)
        return found

    @contextlib.contextmanager
    def scratch(self, title: str) -> Iterator[Path]:
        """Raises `WouldRun`: this work is done in every build."""
        raise WouldRun(title)
        yield


def dry_run(plan: BuildPlan, root: Path) -> list[tuple[str, str]]:
    """The steps of a build and whether each is cached, would run, or fails already; changes nothing."""
    compilers = {v.engine: toolchains.select(plan.target, v.engine) for v in plan.variants}
    with ThreadPoolExecutor(plan.jobs) as pool:
        graph = Graph(pool)
        Line(plan, DryCache(root), graph, compilers)
        graph.finish()
    states: list[tuple[str, str]] = []
    for node in (node for node in graph.nodes if node.title):
        error = node.future.exception()
        if error is None:
            states.append((node.title, "cached"))
        elif isinstance(error, WouldRun):
            states.append((node.title, "would run"))
        else:
            states.append((node.title, f"fails: {error}"))
    return states

"""build(): the straight line from a model to a bundle. Start reading here.

    import -> reference, simplify -> export (engine x precision) -> verify -> harness -> self-test -> bundle

Each step is a function from files to a folder (`steps`), remembered by the hash of its inputs (`cache.output`), and
starts as soon as what it needs is there (`graph.Graph`). A variant that fails is an `Outcome` with a reason and
never stops the others.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgepack import artifact, bundle, evaluation, log, modelheader, plugins, process, settling, steps, toolchains
from edgepack.cache import Cache, Entry, Step, sha256_file
from edgepack.errors import EdgepackError, Unsupported, VariantError
from edgepack.graph import Graph
from edgepack.plan import BuildPlan
from edgepack.resources import data
from edgepack.settling import Dropped, Settled
from edgepack.types import Artifact, Compiler, Model, Outcome, Precision, SelfTest, Status, Variant

# Exports before self-tests, and of those the longest first: what is left for the end is short, so that no core waits.
URGENCY = {Precision.FP16: 2, Precision.FP32: 1, Precision.INT8: 0}
EXPORT = 2
FIRST, LAST = 3, -1  # what every variant waits for; what nothing waits for


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


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A variant that passed everything, with the folders that make up its part of the bundle."""

    settled: Settled
    harness: Entry
    packed: Entry
    self_test: SelfTest

    @property
    def checked(self) -> steps.Checked:
        """What was exported, and its run on the host."""
        return self.settled.checked


def build(plan: BuildPlan, cache: Cache, compilers: dict[str, Compiler]) -> BuildResult:
    """Make a bundle for a plan, with the compilers that `plan.prepare` found.

    Raises `ModelError` when the source can't be imported or its ONNX form doesn't give the source's outputs.
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
    model, samples = line.model.result(), line.samples.result()
    line.checked_import.result()
    ready = {variant: future for variant, future in line.ready.items()}
    outcomes = tuple(line.outcome(variant, future) for variant, future in ready.items())
    built = [future.result() for future in ready.values() if future.exception() is None]
    golden = line.golden.result()
    path, digest = None, ""
    if built:
        path = plan.destination
        engines = {ready.checked.variant.engine for ready in built}
        configs = {engine: line.configs[engine].result() for engine in engines}
        digest = write_bundle(plan, model, samples, golden, built, configs)
    return BuildResult(
        plan=plan,
        outcomes=(*outcomes, *plan.refused),
        bundle=path,
        digest=digest,
        samples=samples.verify_count,
        synthetic=samples.synthetic,
        seconds=time.monotonic() - started,
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
    for node in graph.nodes:
        error = node.future.exception()
        if error is None:
            states.append((node.title, "cached"))
        elif isinstance(error, WouldRun):
            states.append((node.title, "would run"))
        else:
            states.append((node.title, f"fails: {error}"))
    return states


class Line:
    """The steps of one build, wired: every attribute is a future."""

    def __init__(self, plan: BuildPlan, cache: Cache, graph: Graph, compilers: dict[str, Compiler]) -> None:
        self.plan, self.cache, self.graph, self.compilers = plan, cache, graph, compilers
        self.seconds: dict[Variant, float] = {}
        add = functools.partial(graph.add, urgency=FIRST)
        self.imported = add("import", lambda: steps.import_model(plan, cache))
        self.samples = add("samples", lambda m: steps.samples_of(plan, cache, m), self.imported)
        self.reference = add(
            "reference", lambda m, s: steps.run_reference(plan, cache, m, s), self.imported, self.samples
        )
        ran = add(
            "run the imported model",
            lambda m, s: steps.run_onnx(cache, m, s, "run the imported model"),
            self.imported,
            self.samples,
        )
        self.model = add("simplify", lambda m, s, r: steps.simplify(cache, m, s, r), self.imported, self.samples, ran)
        self.checked_import = add(
            "check the import", steps.check_import, self.imported, self.samples, self.reference, ran
        )
        # Only ever a warning: nothing waits for it, and where it fails, the steps that run the same model say why.
        graph.add(
            "try the other order of channels",
            lambda m, s: steps.check_channel_order(plan, cache, m, s),
            self.imported,
            self.samples,
            urgency=LAST,
        )
        self.golden = add(
            "golden samples",
            lambda m, s, r: steps.pack_golden(cache, m, s, r),
            self.model,
            self.samples,
            self.reference,
        )
        self.cores: dict[str, Future[Entry]] = {}
        self.exports: dict[Variant, Future[Entry]] = {}
        for variant in plan.variants:
            self._export(variant)
        self.data = self._data()
        self.settled = {variant: self._settle(variant) for variant in plan.variants}
        self.harnesses = {engine: self._harness(engine) for engine in dict.fromkeys(v.engine for v in plan.variants)}
        self.ready = {variant: self._finish(variant) for variant in plan.variants}
        self.configs = {engine: self._config(engine) for engine in self.harnesses}

    def outcome(self, variant: Variant, future: Future[Ready]) -> Outcome:
        """What became of a variant, from its last step."""
        error = future.exception()
        seconds = self.seconds.get(variant, 0.0)
        if error is None:
            ready = future.result()
            size = bundle.tree_size(ready.packed.path)
            sizes = json.loads((ready.harness.path / "size.json").read_text())
            return Outcome(
                variant=variant,
                status=Status.BUILT,
                size=size,
                runtime_size=sizes["total"],
                full_size=sizes["full"],
                verdict=ready.settled.verdict,
                self_test=ready.self_test,
                host_latency_ms=ready.checked.latency_ms,
                seconds=seconds,
                gate=ready.settled.gate,
                int8=ready.settled.facts,
            )
        if isinstance(error, Dropped):
            return Outcome(
                variant=variant,
                status=Status.DROPPED,
                reason=error.message,
                hint=error.hint,
                verdict=error.verdict,
                seconds=seconds,
                gate=error.gate,
            )
        if isinstance(error, VariantError):
            status = Status.UNSUPPORTED if isinstance(error, Unsupported) else Status.FAILED
            return Outcome(variant=variant, status=status, reason=error.message, hint=error.hint, seconds=seconds)
        if isinstance(error, EdgepackError):
            raise error
        log.warn("".join(traceback.format_exception(error)))
        return Outcome(
            variant=variant,
            status=Status.FAILED,
            reason=f"edgepack bug: {type(error).__name__}: {error}",
            hint="Please report this with the traceback above.",
            seconds=seconds,
        )

    def _export(self, variant: Variant) -> Future[Entry]:
        if variant in self.exports:
            return self.exports[variant]
        engine = self.plan.engine(variant.engine)
        base = engine.base(variant.precision)
        needs: list[Future[Any]] = [self.model, self.samples]
        if base is not None:
            needs.append(self._export(Variant(engine=variant.engine, precision=base)))

        def work(model: Model, samples: steps.Samples, base_entry: Entry | None = None) -> Entry:
            data = samples.calibration if variant.precision is Precision.INT8 else None
            with self._timed(variant):
                return steps.export(self.cache, engine, model, variant.precision, data, base_entry, self.plan.int8)

        # A harness that is compiled for its models' layers waits for all of them.
        urgency = FIRST if engine.runtime_needs_layers else EXPORT
        self.exports[variant] = self.graph.add(f"export {variant}", work, *needs, urgency=urgency)
        return self.exports[variant]

    def _harness(self, name: str) -> Future[Entry]:
        engine, target, compiler = self.plan.engine(name), self.plan.target, self.compilers[name]
        variants = [variant for variant in self.plan.variants if variant.engine == name]

        def make(layers: tuple[str, ...], precisions: tuple[Precision, ...], core: Entry | None = None) -> Entry:
            return steps.build_harness(self.cache, engine, target, compiler, layers, precisions, self.plan.jobs, core)

        def make_for(*settled: Future[Entry] | Future[Settled]) -> Entry:
            exported = {v: _artifact(f) for v, f in zip(variants, settled, strict=True) if f.exception() is None}
            if not exported:
                settled[0].result()  # raises the reason
            layers = {layer for found in exported.values() for layer in found.layers}
            return make(tuple(sorted(layers)), tuple(sorted({v.precision for v in exported})))

        if not engine.runtime_needs_layers:
            precisions = tuple(sorted({v.precision for v in variants}))
            # Not needed before the exports are done; what everything waits for goes before it.
            core = self._core(compiler)
            return self.graph.add(f"harness {name}", lambda made: make((), precisions, made), core, urgency=EXPORT)
        # What INT8 keeps in float is known once it is settled.
        needs: list[Future[Any]] = [
            self.settled[v] if v.precision is Precision.INT8 else self.exports[v] for v in variants
        ]
        return self.graph.settle(f"harness {name}", make_for, *needs, urgency=FIRST)

    def _core(self, compiler: Compiler) -> Future[Entry]:
        """What the harnesses of one compiler share; an engine that is compiled along has other options."""
        if compiler.digest not in self.cores:
            work = functools.partial(steps.build_core, self.cache, self.plan.target, compiler, self.plan.jobs)
            self.cores[compiler.digest] = self.graph.add("runtime", work, urgency=FIRST)
        return self.cores[compiler.digest]

    def _config(self, name: str) -> Future[Entry | None]:
        """For those who build the engine themselves: what it needs for the variants that passed."""
        variants = [variant for variant in self.plan.variants if variant.engine == name]

        def make(*settled: Future[Ready]) -> Entry | None:
            kept = {str(v): f.result().checked for v, f in zip(variants, settled, strict=True) if f.exception() is None}
            if not kept:
                settled[0].result()  # raises the reason
            return steps.build_config(self.cache, self.plan.engine(name), kept)

        return self.graph.settle(f"build config {name}", make, *(self.ready[variant] for variant in variants))

    def _data(self) -> Future[evaluation.Evaluation | None]:
        """Evaluation data, where there is a gate that needs them."""
        if self.plan.gate.data is None:
            none: Future[evaluation.Evaluation | None] = Future()
            none.set_result(None)
            return none

        def work(model: Model, samples: steps.Samples) -> evaluation.Evaluation | None:
            return evaluation.prepare(self.plan, self.cache, model, samples)

        return self.graph.add("evaluation data", work, self.model, self.samples, urgency=FIRST)

    def _settle(self, variant: Variant) -> Future[Settled]:
        """Run the variant on the host, judge it, and repair INT8 that misses."""
        base = self.plan.engine(variant.engine).base(variant.precision)
        needs: list[Future[Any]] = [self.exports[variant], self.model, self.samples, self.reference, self.data]
        if base is not None:
            needs.append(self._export(Variant(engine=variant.engine, precision=base)))

        def settle(
            exported: Entry,
            model: Model,
            samples: steps.Samples,
            reference: Entry,
            data: evaluation.Evaluation | None,
            base_entry: Entry | None = None,
        ) -> Settled:
            maker = settling.Maker(
                plan=self.plan,
                cache=self.cache,
                variant=variant,
                model=model,
                samples=samples,
                reference=reference,
                base=base_entry,
                data=data,
            )
            with self._timed(variant):
                return settling.settle(maker, exported)

        return self.graph.add(f"verify {variant}", settle, *needs, urgency=URGENCY[variant.precision])

    def _finish(self, variant: Variant) -> Future[Ready]:
        """Pack what is settled, and self-test it with the cross-built harness."""
        engine, target = self.plan.engine(variant.engine), self.plan.target

        def finish(settled: Settled, model: Model, samples: steps.Samples, built: Entry, golden: Entry) -> Ready:
            with self._timed(variant):
                packed = steps.pack_variant(self.cache, engine, target, model, settled.checked, self.plan.preprocess)
                tested = steps.self_test(self.cache, variant, target, built, packed, golden)
            return Ready(settled=settled, harness=built, packed=packed, self_test=tested)

        return self.graph.add(
            f"self-test {variant}",
            finish,
            self.settled[variant],
            self.model,
            self.samples,
            self.harnesses[variant.engine],
            self.golden,
            urgency=URGENCY[variant.precision],
        )

    def _timed(self, variant: Variant) -> _Timer:
        return _Timer(self.seconds, variant)


class _Timer:
    """Adds the time of a block to a variant's sum."""

    def __init__(self, seconds: dict[Variant, float], variant: Variant) -> None:
        self.seconds, self.variant = seconds, variant

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        spent = time.monotonic() - self.started
        self.seconds[self.variant] = self.seconds.get(self.variant, 0.0) + spent


def _artifact(made: Future[Entry] | Future[Settled]) -> Artifact:
    found = made.result()
    return found.checked.artifact if isinstance(found, Settled) else artifact.read(found.path)


def write_bundle(
    plan: BuildPlan,
    model: Model,
    samples: steps.Samples,
    golden: Entry,
    built: list[Ready],
    configs: Mapping[str, Entry | None],
) -> str:
    """Put the parts together at the plan's destination and return the bundle's digest.

    A bundle of the same parts that is whole is left as it is.
    """
    facts = manifest_facts(plan, model, samples, golden, built)
    facts["build_configs"] = {engine: entry.digest for engine, entry in sorted(configs.items()) if entry is not None}
    key = steps.build_key({**facts, "code": plugins.module_digest(__name__), "header": _header_digests()})
    facts["build_key"] = key
    existing = _existing_digest(plan.destination, key)
    if existing:
        return existing
    with bundle.replacing(plan.destination) as folder:
        shutil.copytree(golden.path, folder / "golden")
        for ready in built:
            shutil.copytree(ready.packed.path / "files", folder / "variants" / str(ready.checked.variant))
        for built_harness in {r.harness.path: r.harness for r in built}.values():
            for part in ("bin", "lib", "licences"):
                if (built_harness.path / part).is_dir():
                    shutil.copytree(built_harness.path / part, folder / part, dirs_exist_ok=True)
        for engine, entry in configs.items():
            if entry is not None:
                shutil.copytree(entry.path, folder / "config" / engine)
        (folder / "include").mkdir()
        shutil.copyfile(_api_header(), folder / "include" / "edgepack.h")
        (folder / "include" / "edgepack_model.h").write_text(modelheader.render(model))
        manifest = bundle.write_manifest(folder, facts)
    digest: str = manifest["digest"]
    return digest


def manifest_facts(
    plan: BuildPlan, model: Model, samples: steps.Samples, golden: Entry, built: list[Ready]
) -> dict[str, Any]:
    """Everything the manifest says besides the list of files; no times, no paths, nothing of this machine."""
    target = asdict(replace(plan.target, cmake_toolchain_file=None, libraries={}))
    return {
        "name": plan.name,
        "target": {**target, "bounds": {str(k): asdict(v) for k, v in plan.target.bounds.items()}},
        "model": {"digest": model.digest, "opset": model.opset},
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": [asdict(spec) for spec in model.outputs],
        "preprocess": {name: asdict(p) for name, p in plan.preprocess.items()},
        "samples": {
            "verify": samples.verify_count,
            "verify_digest": samples.verify_digest,
            "synthetic": samples.synthetic,
            "calibration": samples.calibration.count if samples.calibration else 0,
            "calibration_digest": samples.calibration.digest if samples.calibration else None,
        },
        "golden": golden.digest,
        "variants": [_variant_facts(ready) for ready in built],
    }


def _variant_facts(ready: Ready) -> dict[str, Any]:
    variant = ready.checked.variant
    engine = plugins.load("engines", variant.engine)
    return {
        "name": str(variant),
        "engine": variant.engine,
        "engine_version": engine.version,
        "precision": variant.precision,
        "verdict": asdict(ready.settled.verdict),
        "gate": asdict(ready.settled.gate) if ready.settled.gate else None,
        "int8": asdict(ready.settled.facts) if ready.settled.facts else None,
        "self_test": asdict(ready.self_test),
        "harness": f"bin/edgepack-{variant.engine}",
        "artifact_digest": ready.checked.digest,
        "packed_digest": ready.packed.digest,
        "harness_digest": ready.harness.digest,
        "facts": ready.checked.artifact.facts,
        "tools": plugins.digest(engine, engine.tools(variant.precision)),
    }


def _existing_digest(destination: Path, key: str) -> str:
    try:
        found = bundle.open_bundle(destination)
    except EdgepackError:
        return ""
    same = found.manifest.get("build_key") == key
    return str(found.manifest["digest"]) if same else ""


def _api_header() -> Path:
    return data("cpp_runtime") / "include" / "edgepack" / "edgepack.h"


def _header_digests() -> list[str]:
    return [sha256_file(path) for path in (_api_header(), *modelheader.digest_files())]

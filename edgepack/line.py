"""The steps of one build, wired by what they need."""

from __future__ import annotations

import functools
import json
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from edgepack import artifact, assembly, bundle, evaluation, log, settling, steps
from edgepack.assembly import Ready
from edgepack.cache import Cache, Entry
from edgepack.errors import CalibrationError, EdgepackError, ToolMissing, Unsupported, VariantError
from edgepack.graph import Graph
from edgepack.plan import BuildPlan
from edgepack.settling import Dropped, Settled
from edgepack.types import Artifact, Compiler, Model, Outcome, Precision, Status, Variant

T = TypeVar("T")
# Exports before self-tests, and of those the longest first: what is left for the end is short, so that no core waits.
URGENCY = {Precision.FP16: 2, Precision.FP32: 1, Precision.INT8: 0}
EXPORT = 2
FIRST, LAST = 3, -1  # what every variant waits for; what nothing waits for


@dataclass(frozen=True, kw_only=True)
class Source:
    """The steps about the model at the shapes of one input set: every attribute is a future.

    `checked` holds all that can go wrong before the passes.
    """

    plan: Future[BuildPlan]
    imported: Future[Model]
    samples: Future[steps.Samples]
    reference: Future[Entry]
    model: Future[Model]
    checked: Future[None]
    golden: Future[Entry]
    data: Future[evaluation.Evaluation | None]


class Line:
    """The steps of one build, wired: every attribute is a future."""

    def __init__(self, plan: BuildPlan, cache: Cache, graph: Graph, compilers: dict[str, Compiler]) -> None:
        self.plan, self.cache, self.graph, self.compilers = plan, cache, graph, compilers
        self.seconds: dict[Variant, float] = {}
        imported = graph.add("import", lambda: steps.import_model(plan, cache), urgency=FIRST)
        # A set that doesn't fit the model ends the build here, before anything long.
        plans = graph.add("", lambda m: plan.for_sets(m.inputs), imported, urgency=FIRST)
        self.base = self._source("", plans, imported)
        self.sources = {"": self.base, **{item.name: self._source(item.name, plans) for item in plan.input_sets}}
        # Only ever a warning: nothing waits for it, and where it fails, the steps that run the same model say why.
        graph.add(
            "try the other order of channels",
            lambda m, s: steps.check_channel_order(plan, cache, m, s),
            imported,
            self.base.samples,
            urgency=LAST,
        )
        self.cores: dict[str, Future[Entry]] = {}
        self.exports: dict[Variant, Future[Entry]] = {}
        for variant in plan.variants:
            self._export(variant)
        self.settled = {variant: self._settle(variant) for variant in plan.variants}
        self.harnesses = {engine: self._harness(engine) for engine in dict.fromkeys(v.engine for v in plan.variants)}
        self.ready = {variant: self._finish(variant) for variant in plan.variants}
        self.configs = {engine: self._config(engine) for engine in self.harnesses}

    def _source(self, name: str, plans: Future[dict[str, BuildPlan]], imported: Future[Model] | None = None) -> Source:
        """The steps of one input set up to the passes; the model without a set is `imported` already."""
        cache, where = self.cache, f" at {name}" if name else ""

        def add(title: str, work: Callable[..., T], *needs: Future[Any]) -> Future[T]:
            return self.graph.add(title + where, work, *needs, urgency=FIRST)

        plan = self.graph.add("", lambda all_plans: all_plans[name], plans, urgency=FIRST)
        imported = imported or add("import", lambda p: steps.import_model(p, cache), plan)
        samples = add("samples", lambda p, m: steps.samples_of(p, cache, m), plan, imported)
        reference = add("reference", lambda p, m, s: steps.run_reference(p, cache, m, s), plan, imported, samples)
        ran = add(
            "run the imported model",
            lambda m, s: steps.run_onnx(cache, m, s, f"run the imported model{where}"),
            imported,
            samples,
        )
        model = add("simplify", lambda m, s, r: steps.simplify(cache, m, s, r), imported, samples, ran)
        return Source(
            plan=plan,
            imported=imported,
            samples=samples,
            reference=reference,
            model=model,
            checked=add("check the import", steps.check_import, imported, samples, reference, ran),
            golden=add("golden samples", lambda m, s, r: steps.pack_golden(cache, m, s, r), model, samples, reference),
            data=self._data(plan, model, samples, where),
        )

    def part(self, name: str) -> assembly.Part:
        """What goes into the bundle of an input set of which a variant was built."""
        source = self.sources[name]
        return assembly.Part(
            name=name,
            plan=source.plan.result(),
            model=source.model.result(),
            samples=source.samples.result(),
            golden=source.golden.result(),
        )

    def outcome(self, variant: Variant) -> Outcome:
        """What became of a variant, from its last step. What fails of an input set's model is no end of the build."""
        future = self.ready[variant]
        error = self.sources[variant.input_set].checked.exception() or future.exception()
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
        if isinstance(error, EdgepackError) and (not variant.input_set or isinstance(error, ToolMissing)):
            raise error
        if isinstance(error, EdgepackError):
            reason = f"the model at the shapes of {variant.input_set}: {error.id}: {error.message}"
            own = f" Data for this set alone are --calib {variant.input_set}:PATH; --samples and --data likewise."
            hint = error.hint + (own if isinstance(error, CalibrationError) else "")
            return Outcome(variant=variant, status=Status.FAILED, reason=reason, hint=hint, seconds=seconds)
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
        source = self.sources[variant.input_set]
        needs: list[Future[Any]] = [source.model, source.samples]
        if base is not None:
            needs.append(self._export(replace(variant, precision=base)))

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

    def _data(
        self, plan: Future[BuildPlan], model: Future[Model], samples: Future[steps.Samples], where: str
    ) -> Future[evaluation.Evaluation | None]:
        """Evaluation data, where there is a gate that needs them."""
        if self.plan.gate.data is None:
            none: Future[evaluation.Evaluation | None] = Future()
            none.set_result(None)
            return none

        def work(of_set: BuildPlan, found: Model, gathered: steps.Samples) -> evaluation.Evaluation | None:
            return evaluation.prepare(of_set, self.cache, found, gathered)

        return self.graph.add(f"evaluation data{where}", work, plan, model, samples, urgency=FIRST)

    def _settle(self, variant: Variant) -> Future[Settled]:
        """Run the variant on the host, judge it, and repair INT8 that misses."""
        base = self.plan.engine(variant.engine).base(variant.precision)
        source = self.sources[variant.input_set]
        needs: list[Future[Any]] = [self.exports[variant], source.plan, source.model, source.samples]
        needs += [source.reference, source.data]
        if base is not None:
            needs.append(self._export(replace(variant, precision=base)))

        def settle(
            exported: Entry,
            plan: BuildPlan,
            model: Model,
            samples: steps.Samples,
            reference: Entry,
            data: evaluation.Evaluation | None,
            base_entry: Entry | None = None,
        ) -> Settled:
            maker = settling.Maker(
                plan=plan,
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
        source = self.sources[variant.input_set]

        def finish(settled: Settled, plan: BuildPlan, model: Model, built: Entry, golden: Entry) -> Ready:
            with self._timed(variant):
                packed = steps.pack_variant(self.cache, engine, target, model, settled.checked, plan.preprocess)
                tested = steps.self_test(self.cache, variant, target, built, packed, golden)
            return Ready(settled=settled, harness=built, packed=packed, self_test=tested)

        return self.graph.add(
            f"self-test {variant}",
            finish,
            self.settled[variant],
            source.plan,
            source.model,
            self.harnesses[variant.engine],
            source.golden,
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

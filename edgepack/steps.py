"""The steps of a build, each a function from files to a remembered folder.

Every function here asks the cache for a `Step` whose key holds all that decides the output; what a step does not
receive can't make the cache lie.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import artifact as artifacts
from edgepack import bundle, calibration, converter, emulator, harness, lint, log, plugins, verify
from edgepack import preprocess as preprocessing
from edgepack.cache import Cache, Entry, Step, digest_of, sha256_file, sha256_text, tree_digests
from edgepack.errors import EdgepackError, ModelError, ToolFailed, Unsupported, VariantError
from edgepack.interfaces import Engine, OneProcessImporter
from edgepack.plan import BuildPlan
from edgepack.types import (
    Artifact,
    Bound,
    Calibration,
    Compiler,
    Metric,
    Model,
    Origin,
    Precision,
    Preprocess,
    SelfTest,
    Target,
    TensorSpec,
    Variant,
)

VERIFY_SAMPLES = 16
CALIBRATION_LIMIT = 512
GOLDEN_SAMPLES = 1
SIMPLIFY_GROWTH = 1.10
SIMPLIFY_BOUND = Bound(cosine=0.999999, sqnr_db=70.0)
IMPORT_BOUND = Bound(cosine=0.9999, sqnr_db=40.0)
# A quantized source's own kernels round every layer to integers, and float arithmetic with the same scales rounds some
# values to the step beside: 17 dB after the 50 layers of a ResNet of random weights. Each variant has its own bound.
QUANTIZED_IMPORT_BOUND = Bound(cosine=0.97)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Arrays of one build: verification (always) and calibration (when data were given)."""

    verify: Path
    verify_digest: str
    verify_count: int
    synthetic: bool
    calibration: Calibration | None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An exported variant that was run on the host, with its metrics against the source."""

    variant: Variant
    artifact: Artifact
    digest: str
    metrics: tuple[Metric, ...]
    latency_ms: float | None


def import_model(plan: BuildPlan, cache: Cache) -> Model:
    """Source -> one ONNX file with fixed shapes."""
    importer = plan.importer
    step = Step(
        name="import",
        version="1",
        title=f"import {plan.name}",
        inputs={"source": importer.digest(plan.source, plan.options)},
        params={
            "plugin": plugins.digest(importer, importer.tools),
            "shapes": plan.shapes,
            "dtypes": plan.options["dtypes"],
        },
    )
    return read_model(cache.output(step, lambda out: _import(plan, cache, out)))


def _import(plan: BuildPlan, cache: Cache, out: Path) -> None:
    """Import; where the same process can also give the source's own outputs, that step is finished here as well."""
    importer, how = plan.importer, (plan.source, plan.shapes, plan.options)
    inputs = importer.known_inputs(*how) if isinstance(importer, OneProcessImporter) else ()
    samples = _early_samples(plan, cache, inputs)
    if samples is None or not isinstance(importer, OneProcessImporter):
        return importer.to_onnx(*how, out)
    outputs = out.parent / f"{out.name}.outputs"
    outputs.mkdir()
    ran = importer.to_onnx_and_reference(*how, samples.verify, out, outputs)
    model = _model(out, "")
    if ran and model.inputs == inputs:
        cache.output(_reference_step(plan, model, samples), lambda into: _move(outputs, into))
    shutil.rmtree(outputs)


def _early_samples(plan: BuildPlan, cache: Cache, inputs: tuple[TensorSpec, ...]) -> Samples | None:
    try:
        return gather_samples(plan, cache, inputs) if inputs else None
    except EdgepackError:  # said again, with the model's own inputs, after what may be wrong with the model
        return None


def _move(folder: Path, into: Path) -> None:
    for path in folder.iterdir():
        path.rename(into / path.name)


def read_model(entry: Entry) -> Model:
    """The model of an import or simplify step."""
    return _model(entry.path, entry.digest)


def _model(folder: Path, digest: str) -> Model:
    facts = json.loads((folder / "model.json").read_text())
    origin = facts.get("origin")
    return Model(
        path=folder / "model.onnx",
        digest=digest,
        opset=facts["opset"],
        inputs=tuple(bundle.spec_from(item) for item in facts["inputs"]),
        outputs=tuple(bundle.spec_from(item) for item in facts["outputs"]),
        operators=tuple(facts["operators"]),
        zero_points=tuple(facts.get("zero_points", ())),
        origin=origin
        and Origin(engine=origin["engine"], path=folder / origin["file"], precision=Precision(origin["precision"])),
    )


def gather_samples(plan: BuildPlan, cache: Cache, inputs: tuple[TensorSpec, ...]) -> Samples:
    """User's data -> tensor folders for calibration and for verification, which are disjoint when data suffice."""
    sources = {"calibration": plan.calibration, "samples": plan.samples}
    step = Step(
        name="samples",
        version="1",
        title="prepare samples",
        inputs={k: calibration.from_source_digest(path) for k, path in sources.items() if path is not None},
        params={
            "code": [plugins.module_digest(calibration.__name__), plugins.module_digest(preprocessing.__name__)],
            "inputs": [asdict(spec) for spec in inputs],
            "preprocess": {name: asdict(p) for name, p in plan.preprocess.items()},
            "limit": CALIBRATION_LIMIT,
            "verify": VERIFY_SAMPLES,
        },
    )
    entry = cache.output(step, lambda out: _write_samples(plan, inputs, out))
    facts = json.loads((entry.path / "facts.json").read_text())
    verify_folder, calib_folder = entry.path / "verify", entry.path / "calibration"
    return Samples(
        verify=verify_folder,
        verify_digest=digest_of(tree_digests(verify_folder)),
        verify_count=facts["verify"],
        synthetic=facts["synthetic"],
        calibration=Calibration(
            path=calib_folder, digest=digest_of(tree_digests(calib_folder)), count=facts["calibration"]
        )
        if plan.calibration is not None
        else None,
    )


def _write_samples(plan: BuildPlan, inputs: tuple[TensorSpec, ...], out: Path) -> None:
    verify_folder, calib_folder, gathered = out / "verify", out / "calibration", out / "all"
    facts: dict[str, Any] = {"synthetic": False, "calibration": 0}
    if plan.samples is not None:
        gathered_count = calibration.gather(
            plan.samples, inputs, dict(plan.preprocess), verify_folder, limit=CALIBRATION_LIMIT
        )
        facts["verify"] = gathered_count
    if plan.calibration is not None:
        target = calib_folder if plan.samples is not None else gathered
        count = calibration.gather(plan.calibration, inputs, dict(plan.preprocess), target, limit=CALIBRATION_LIMIT)
        facts["calibration"] = count
        if plan.samples is None:
            used, held = calibration.split(gathered, count, calib_folder, verify_folder, verify=VERIFY_SAMPLES)
            facts |= {"calibration": used, "verify": held}
            _remove(gathered)
    if plan.calibration is None and plan.samples is None:
        calibration.synthetic(inputs, dict(plan.preprocess), verify_folder, count=VERIFY_SAMPLES)
        facts |= {"verify": VERIFY_SAMPLES, "synthetic": True}
    (out / "facts.json").write_text(json.dumps(facts, sort_keys=True))


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def run_reference(plan: BuildPlan, cache: Cache, model: Model, samples: Samples) -> Entry:
    """The source framework's own outputs on the verification samples: what everything is compared with."""
    step = _reference_step(plan, model, samples)
    make = functools.partial(plan.importer.reference, plan.source, model, plan.options, samples.verify)
    return cache.output(step, make)


def _reference_step(plan: BuildPlan, model: Model, samples: Samples) -> Step:
    importer = plan.importer
    return Step(
        name="reference",
        version="1",
        title="run the source in its own framework",
        inputs={"source": importer.digest(plan.source, plan.options), "samples": samples.verify_digest},
        params={
            "plugin": plugins.digest(importer, importer.tools),
            "inputs": [asdict(spec) for spec in model.inputs],
            "outputs": [asdict(spec) for spec in model.outputs],
        },
    )


def run_onnx(cache: Cache, model: Model, samples: Samples, title: str) -> Entry:
    """The model's outputs by ONNX Runtime."""
    step = Step(
        name="run-onnx",
        version="1",
        title=title,
        inputs={"model": model.digest, "samples": samples.verify_digest},
        params={"tool": converter.digest("run_onnxruntime")},
    )
    return cache.output(step, lambda out: _run_onnx(model, samples.verify, out))


def _run_onnx(model: Model, samples: Path, out: Path) -> None:
    request = {
        "files": [str(model.path)],
        "inputs": [spec.name for spec in model.inputs],
        "outputs": [spec.name for spec in model.outputs],
        "samples": str(samples),
        "threads": 1,
        "timed": 0,
    }
    converter.convert("run_onnxruntime", request, out)


def check_import(model: Model, samples: Samples, reference: Entry, imported: Entry) -> None:
    """Raise `ModelError` when the ONNX form of the source doesn't give the source's outputs."""
    try:
        metrics = verify.compare(model.outputs, reference.path, imported.path, model.zero_points)
    except ValueError as error:
        raise ModelError(
            f"The model's ONNX form doesn't give the outputs of the source framework: {error}.",
            "Export the model to ONNX yourself, check it there, and build from that file.",
            id="EP311",
        ) from error
    quantized = model.origin is not None and model.origin.precision is Precision.INT8
    bound = QUANTIZED_IMPORT_BOUND if quantized else IMPORT_BOUND
    verdict = verify.judge(metrics, bound, samples.verify_count)
    if not verdict.passed:
        raise ModelError(
            f"The model's ONNX form doesn't give the outputs of the source framework: {verdict.reason}.",
            "Export the model to ONNX yourself, check it there, and build from that file.",
            id="EP311",
        )


def simplify(cache: Cache, model: Model, samples: Samples, imported: Entry) -> Model:
    """Run the graph passes; a pass is kept only when outputs stay equal and the file grows by at most 10 %."""
    for graph_pass in plugins.load_all("passes"):
        step = Step(
            name="pass",
            version="1",
            title=f"{graph_pass.name}",
            inputs={"model": model.digest, "samples": samples.verify_digest, "outputs": imported.digest},
            params={"plugin": plugins.digest(graph_pass, graph_pass.tools), "growth": SIMPLIFY_GROWTH},
        )
        entry = cache.output(step, functools.partial(_apply_pass, graph_pass, model, samples, imported))
        facts = json.loads((entry.path / "facts.json").read_text())
        if facts["kept"]:
            content = {k: v for k, v in tree_digests(entry.path).items() if k != "facts.json"}
            model = replace(read_model(entry), digest=digest_of(content), origin=model.origin)
        else:
            log.note(f"{graph_pass.name} was reverted: {facts['reason']}")
    return model


def _apply_pass(graph_pass: Any, model: Model, samples: Samples, imported: Entry, out: Path) -> None:
    reason = _why_not_kept(graph_pass, model, samples, imported, out)
    if reason:
        (out / "model.onnx").unlink(missing_ok=True)
    else:
        (out / "model.json").write_bytes((model.path.parent / "model.json").read_bytes())
    (out / "facts.json").write_text(json.dumps({"kept": not reason, "reason": reason}, sort_keys=True))


def _why_not_kept(graph_pass: Any, model: Model, samples: Samples, imported: Entry, out: Path) -> str:
    outputs = out / "outputs"
    outputs.mkdir()
    try:
        graph_pass(model, out)
        before, after = model.path.stat().st_size, (out / "model.onnx").stat().st_size
        if after > before * SIMPLIFY_GROWTH:
            return f"the file grew from {before} to {after} bytes"
        _run_onnx(replace(model, path=out / "model.onnx"), samples.verify, outputs)
        metrics = verify.compare(model.outputs, imported.path, outputs, model.zero_points)
        return verify.judge(metrics, SIMPLIFY_BOUND, samples.verify_count).reason
    except (ToolFailed, VariantError, ValueError, FileNotFoundError) as error:
        return str(error)
    finally:
        _remove(outputs)


def export(
    cache: Cache,
    engine: Engine,
    model: Model,
    precision: Precision,
    data: Calibration | None,
    base: Entry | None,
) -> Entry:
    """ONNX -> one engine's files at one precision. Raises `VariantError`."""
    problems = engine.problems(model, precision)
    if problems:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Unsupported(f"{first.op} node {first.node!r}: {first.message}{more}", first.hint)
    inputs = {"model": model.digest}
    if data is not None:
        inputs["calibration"] = data.digest
    if base is not None:
        inputs["base"] = base.digest
    if model.origin is not None and model.origin.engine == engine.name:
        inputs["origin"] = sha256_file(model.origin.path)
    step = Step(
        name="export",
        version="1",
        title=f"export {engine.name}-{precision}",
        inputs=inputs,
        params={"plugin": plugins.digest(engine, engine.tools(precision)), "precision": precision},
    )
    base_path = None if base is None else base.path
    return cache.output(step, lambda out: engine.export(model, precision, data, base_path, out))


def check(
    cache: Cache, engine: Engine, variant: Variant, model: Model, exported: Entry, samples: Samples, reference: Entry
) -> Checked:
    """Run an exported variant with its real engine on the host and measure it against the source."""
    found = artifacts.read(exported.path)
    step = Step(
        name="verify",
        version="1",
        title=f"verify {variant} against the source",
        inputs={"artifact": exported.digest, "samples": samples.verify_digest, "reference": reference.digest},
        params={
            "plugin": plugins.digest(engine, engine.tools(variant.precision)),
            "metrics": plugins.module_digest(verify.__name__),
            "zero_points": model.zero_points,
        },
    )
    entry = cache.output(step, lambda out: _check(engine, found, model, samples, reference, out))
    facts = json.loads((entry.path / "verify.json").read_text())
    return Checked(
        variant=variant,
        artifact=found,
        digest=exported.digest,
        metrics=tuple(Metric(**item) for item in facts["metrics"]),
        latency_ms=facts["latency_ms"],
    )


def _check(engine: Engine, found: Artifact, model: Model, samples: Samples, reference: Entry, out: Path) -> None:
    outputs = out / "outputs"
    outputs.mkdir()
    facts = engine.run(found, model, samples.verify, outputs)
    try:
        metrics = verify.compare(model.outputs, reference.path, outputs, model.zero_points)
    except ValueError as error:
        raise VariantError(f"{error}") from error
    _remove(outputs)
    content = {"metrics": [asdict(m) for m in metrics], "latency_ms": facts.get("latency_ms")}
    (out / "verify.json").write_text(json.dumps(content, sort_keys=True))


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


def pack_golden(cache: Cache, model: Model, samples: Samples, reference: Entry) -> Entry:
    """The samples that ship: inputs and the source's own outputs, one ``.npy`` each in the source's layout."""
    step = Step(
        name="golden",
        version="2",
        title="pack golden samples",
        inputs={"samples": samples.verify_digest, "reference": reference.digest},
        params={"count": GOLDEN_SAMPLES},
    )
    return cache.output(step, lambda out: _pack_golden(model, samples, reference, out))


def _pack_golden(model: Model, samples: Samples, reference: Entry, out: Path) -> None:
    chosen = loudest(reference.path, len(model.outputs), samples.verify_count)[:GOLDEN_SAMPLES]
    for kind, folder, specs in (("in", samples.verify, model.inputs), ("out", reference.path, model.outputs)):
        for index, spec in enumerate(specs):
            arrays = np.load(folder / f"{index}.npy", mmap_mode="r", allow_pickle=False)
            for number, sample in enumerate(chosen):
                (out / str(number)).mkdir(exist_ok=True)
                one = np.ascontiguousarray(arrays[sample]).astype(spec.dtype).reshape(spec.shape)
                np.save(out / str(number) / f"{kind}_{index}.npy", one, allow_pickle=False)


def loudest(reference: Path, outputs: int, count: int) -> list[int]:
    """Samples by how much they tell, most first: an output that is next to nothing can't show a fault."""
    total = np.zeros(count)
    for index in range(outputs):
        arrays = np.load(reference / f"{index}.npy", mmap_mode="r", allow_pickle=False)
        sizes = np.linalg.norm(np.nan_to_num(arrays.reshape(count, -1).astype(np.float64)), axis=1)
        total += sizes / (sizes.max(initial=0.0) or 1.0)
    return [int(i) for i in np.argsort(-total, kind="stable")]


def pack_variant(
    cache: Cache,
    engine: Engine,
    target: Target,
    model: Model,
    checked: Checked,
    declared: Mapping[str, Preprocess],
) -> Entry:
    """The folder of a variant as it ships: engine files and ``variant.txt``."""
    preprocess = tuple(lint.declared_for(spec, model.inputs, declared) for spec in model.inputs)
    precision = checked.variant.precision
    bound = target.bounds[precision]
    step = Step(
        name="variant",
        version="1",
        title=f"pack {checked.variant}",
        inputs={"artifact": checked.digest, "code": plugins.module_digest(bundle.__name__)},
        params={
            "bound": asdict(bound),
            "engine": [engine.name, engine.version, precision],
            "specs": [asdict(spec) for spec in (*model.inputs, *model.outputs)],
            "preprocess": [how and asdict(how) for how in preprocess],
        },
    )

    def make(out: Path) -> None:
        bundle.write_variant(
            out / "files",
            checked.artifact,
            engine=engine.name,
            engine_version=engine.version,
            precision=precision,
            bound=bound,
            inputs=model.inputs,
            outputs=model.outputs,
            preprocess=preprocess,
        )

    return cache.output(step, make)


def self_test(cache: Cache, variant: Variant, target: Target, built: Entry, packed: Entry, golden: Entry) -> SelfTest:
    """Run the harness on the golden samples, natively or under emulation; raises `VariantError` when it fails."""
    static = json.loads((built.path / "elf.json").read_text())["static"]
    runner = emulator.find(target, static=static)
    if runner is None:
        return SelfTest(how="not run", passed=None, detail=emulator.why_not(target))
    step = Step(
        name="self-test",
        version="1",
        title=f"self-test {variant} ({runner.description})",
        inputs={"harness": built.digest, "variant": packed.digest, "golden": golden.digest},
        params={"runner": runner.digest, "code": plugins.module_digest(emulator.__name__)},
    )

    def make(out: Path) -> None:
        result = emulator.self_test(runner, built.path, packed.path / "files", golden.path, variant.engine)
        if result.passed is None:
            raise _NotRun(result)
        if not result.passed:
            raise VariantError(
                f"its self-test ({result.how}) failed: {result.detail}",
                _whose_fault(target, variant.engine),
            )
        (out / "self-test.json").write_text(json.dumps(asdict(result), sort_keys=True))

    try:
        entry = cache.output(step, make)
    except _NotRun as reason:
        return reason.result
    content = json.loads((entry.path / "self-test.json").read_text())
    return SelfTest(**{**content, "metrics": tuple(content["metrics"])})


def _whose_fault(target: Target, engine: str) -> str:
    if own := target.libraries.get(engine):
        return (
            f"The engine is your own build, {own}. It may lack an operator or a type: build it with the "
            "config/ of a bundle that was made with edgepack's library."
        )
    return "The host check passed: the fault is in the harness or the engine on this CPU. Please report it."


class _NotRun(Exception):
    """A self-test that says nothing; not remembered, so that a quieter machine can try again."""

    def __init__(self, result: SelfTest) -> None:
        super().__init__(result.detail)
        self.result = result


def build_key(parts: Mapping[str, Any]) -> str:
    """What a whole bundle is made of, as one digest: an unchanged bundle is not written again."""
    return sha256_text(bundle.canonical(parts))

"""The source: import, its own framework's outputs, and whether the ONNX form gives the same."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from edgepack import bundle, converter, iterables, plugins, verify
from edgepack.cache import Cache, Entry, Step
from edgepack.errors import EdgepackError, ModelError
from edgepack.inference import infer
from edgepack.interfaces import OneProcessImporter
from edgepack.plan import BuildPlan
from edgepack.sampling import Samples, gather_samples
from edgepack.types import Bound, Model, Origin, Precision, TensorSpec

IMPORT_BOUND = Bound(cosine=0.9999, sqnr_db=40.0)
# A quantized source's own kernels round every layer to integers, and float arithmetic with the same scales rounds some
# values to the step beside: 17 dB after the 50 layers of a ResNet of random weights. Each variant has its own bound.
QUANTIZED_IMPORT_BOUND = Bound(cosine=0.97)


def import_model(plan: BuildPlan, cache: Cache) -> Model:
    """Source -> one ONNX file with fixed shapes."""
    importer = plan.importer
    step = Step(
        name="import",
        version="1",
        title=f"import {plan.name}{plan.where}",
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
    if any(iterables.is_function(path) for path in (plan.calibration, plan.samples) if path is not None):
        return None  # the user's code is run once in a build
    try:
        return gather_samples(plan, cache, inputs, quiet=True) if inputs else None
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
        title=f"run the source in its own framework{plan.where}",
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
    return cache.output(step, lambda out: infer(model, samples.verify, out))


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

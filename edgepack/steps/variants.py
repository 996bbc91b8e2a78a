"""One engine at one precision: exported, and run on the host against the source."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edgepack import artifact as artifacts
from edgepack import plugins, verify
from edgepack.cache import Cache, Entry, Step, sha256_file
from edgepack.errors import Unsupported, VariantError
from edgepack.interfaces import Engine
from edgepack.sampling import Samples, remove_folder
from edgepack.types import DEFAULT_INT8, Artifact, Calibration, Int8Options, Metric, Model, Precision, Variant


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An exported variant that was run on the host, with its metrics against the source."""

    variant: Variant
    artifact: Artifact
    digest: str
    metrics: tuple[Metric, ...]
    latency_ms: float | None


def export(
    cache: Cache,
    engine: Engine,
    model: Model,
    precision: Precision,
    data: Calibration | None,
    base: Entry | None,
    int8: Int8Options = DEFAULT_INT8,
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
        params={
            "plugin": plugins.digest(engine, engine.tools(precision)),
            "precision": precision,
            "int8": asdict(int8) if precision is Precision.INT8 else None,
        },
    )
    base_path = None if base is None else base.path
    return cache.output(step, lambda out: engine.export(model, precision, data, base_path, out, int8))


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
    remove_folder(outputs)
    content = {"metrics": [asdict(m) for m in metrics], "latency_ms": facts.get("latency_ms")}
    (out / "verify.json").write_text(json.dumps(content, sort_keys=True))

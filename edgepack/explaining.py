"""`edgepack explain-int8`: every layer's part of the INT8 error, of a model or of a bundle's variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgepack import bundle, explain, explain_html, log, plan, steps
from edgepack.cache import Cache
from edgepack.errors import CalibrationError, UsageError, VariantError
from edgepack.plan import BuildPlan
from edgepack.report import columns, plain, short
from edgepack.types import Model, Precision, Variant, set_of

SIMULATED = "onnxruntime"  # the engine whose quantizer all layers are explained with


def of_bundle(path: Path, name: str | None, engines: Sequence[str] = ()) -> dict[str, Any]:
    """What a bundle says of one INT8 variant: how it was made, what was kept in float, how it did.

    `name` is the variant's, or None for the first, of one of `engines` where any are named. Raises `UsageError` where
    there is none.
    """
    manifest = bundle.open_bundle(path).manifest
    found = [item for item in manifest["variants"] if item.get("int8") and name in (None, item["name"])]
    found = [item for item in found if name or not engines or item["engine"] in engines]
    if not found:
        asked = f" {name!r}" if name else f" of {' or '.join(engines)}" if engines else ""
        raise UsageError(
            f"The bundle {path.name} has no INT8 variant{asked}.",
            f"It has: {', '.join(item['name'] for item in manifest['variants']) or 'none'}.",
            id="EP230",
        )
    item = found[0]
    return {
        "bundle": str(path),
        "variant": item["name"],
        "target": manifest["target"]["name"],
        "model_digest": {part["name"]: part for part in manifest.get("input_sets", ())}.get(
            item.get("input_set"), manifest
        )["model"]["digest"],
        "int8": item["int8"],
        "gate": item["gate"],
        "verdict": item["verdict"],
    }


def bundle_text(facts: dict[str, Any]) -> str:
    """The same for people."""
    int8 = facts["int8"]
    lines = [f"{facts['variant']}: effort {int8['effort']}, ranges {int8['ranges']}"]
    if int8["kept_float"]:
        rows: list[tuple[str, ...]] = [
            (short(k["layer"]), k["op"], f"{k['single_db']:.1f}", f"{k['macs']:.2%}", f"{k['weights']:.2%}")
            for k in int8["kept_float"]
        ]
        lines.append(columns(("kept in float", "operator", "single dB", "MACs", "weights"), rows))
    else:
        lines.append("No layer was kept in float by a repair.")
    lines += [
        f"output {plain(m['output'])!r}: SQNR {m['sqnr_db']:.1f} dB, cosine {m['cosine']:.4f}"
        for m in facts["verdict"]["metrics"]
    ]
    if facts["gate"]:
        gate = facts["gate"]
        lines.append(f"gate: {gate['metric']} {gate['score']:.4g}, at least {gate['limit']:.4g} was asked")
    lines.append("For every layer's error add --model SOURCE and the --calib that it was built with.")
    return "\n".join(lines)


def of_model(
    chosen: BuildPlan, cache: Cache, said: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, explain.Explanation]]:
    """Explain a plan's model for each engine whose INT8 was named, or for onnxruntime; also all of it for programs.

    `said` is what a bundle says of the variant to explain, or None.
    """
    if chosen.calibration is None:
        raise CalibrationError(f"{plan.NEEDS_DATA}.", plan.NEEDS_DATA_HINT, id="EP321")
    imported = steps.import_model(chosen, cache)
    name = set_of(said["variant"]) if said is not None else ""
    if chosen.input_sets and not name:
        log.note("the model is explained at its shapes without an input set")
    plans = chosen.for_sets(imported.inputs)
    if name not in plans:
        hint = f"Add --input-set {name}:NAME=SHAPE as the bundle was built with."
        raise UsageError(f"The variant is of the input set {name!r}, whose shapes are not given.", hint, id="EP214")
    chosen = plans[name]
    imported = steps.import_model(chosen, cache) if name else imported
    samples = steps.samples_of(chosen, cache, imported)
    model = steps.simplify(cache, imported, samples, steps.run_onnx(cache, imported, samples, "run the imported model"))
    int8 = chosen.int8
    if said is not None:
        if said["model_digest"] != model.digest:
            log.warn("the bundle was made from another model, or by another edgepack: its layers may not match")
        kept = tuple(item["layer"] for item in said["int8"]["kept_float"])
        int8 = replace(int8, effort=said["int8"]["effort"], ranges=said["int8"]["ranges"], keep_float=kept)
        chosen = replace(chosen, int8=int8)
    calibration = samples.calibration
    assert calibration is not None
    try:
        found = explain.explain(cache, model, calibration, int8, samples.verify, samples.verify_digest)
    except VariantError as error:
        raise UsageError(f"INT8 of this model can't be explained: {error.message}.", error.hint, id="EP214") from error
    views: dict[str, explain.Explanation] = {}
    engines: dict[str, dict[str, Any]] = {}
    for variant in (v for v in chosen.variants if v.precision is Precision.INT8 and v in chosen.named):
        try:
            made, outputs = _engine(chosen, cache, model, samples, variant)
        except VariantError as error:
            engines[variant.engine] = {"reason": error.message, "hint": error.hint}
            continue
        engines[variant.engine] = {**outputs, "layers": {name: asdict(item) for name, item in made.items()}}
        views[variant.engine] = found if variant.engine == SIMULATED else found.by(made)
    facts = {"model": chosen.source, "int8": asdict(int8), "engines": engines, **explain.document(found)}
    return facts, views or {SIMULATED: found}


def _engine(
    chosen: BuildPlan, cache: Cache, model: Model, samples: steps.Samples, variant: Variant
) -> tuple[dict[str, explain.Real], dict[str, float]]:
    """The layers and the outputs of one real engine with all layers in INT8. Raises `VariantError`."""
    engine = chosen.engine(variant.engine)
    reference = steps.run_reference(chosen, cache, model, samples)
    base = engine.base(Precision.INT8)
    floating = None if base is None else steps.export(cache, engine, model, base, None, None)
    made = steps.export(cache, engine, model, Precision.INT8, samples.calibration, floating, chosen.int8)
    checked = steps.check(cache, engine, variant, model, made, samples, reference)
    outputs = {
        "sqnr_db": min(metric.sqnr_db for metric in checked.metrics),
        "cosine": min(metric.cosine for metric in checked.metrics),
    }
    if floating is None:
        return {}, outputs
    effort = chosen.int8.effort
    return explain.real(cache, engine, floating, made, samples.verify, samples.verify_digest, effort), outputs


def text(facts: dict[str, Any], found: Mapping[str, explain.Explanation], most: int) -> str:
    """For people."""
    lines = [explain.table(each, most, engine) for engine, each in found.items()]
    for name, item in facts["engines"].items():
        said = item.get("reason") or f"SQNR {item['sqnr_db']:.1f} dB, cosine {item['cosine']:.4f} at the outputs"
        lines.append(f"{name} on this host: {said}")
    return "\n".join(lines)


def write_html(path: Path, found: Mapping[str, explain.Explanation], title: str) -> None:
    """Write the heat map. Raises `UsageError` where the file can't be written."""
    try:
        path.write_text(explain_html.render(found, title), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}.", "Give another file.", id="EP208") from error

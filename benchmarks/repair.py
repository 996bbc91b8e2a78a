"""Measure what the automatic repair of INT8 costs, and write docs/repair.md.

    EDGEPACK_CACHE=DIR python benchmarks/repair.py FOLDER_OF_PREPARE_MODELS [--engine NAME]... [--again] [--report]

For each model and each gate (least SQNR in dB on the verification inputs, which calibration never sees) the variant is
made, judged and repaired by edgepack's own steps. Results are kept as JSON in the folder of the models or --results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack import cli, evaluation, settling, steps
from edgepack.cache import Cache
from edgepack.errors import EdgepackError
from edgepack.resources import cache_root
from edgepack.types import GateSpec, Precision, Variant

PAGE = Path(__file__).parent.parent / "docs" / "repair.md"
ENGINES = ("onnxruntime", "tflite", "ncnn")
# Between what plain INT8 reaches on each engine and what is reachable; one or two that are not.
GATES: dict[str, dict[str, tuple[float, ...]]] = {
    "BlazeFace front": {"onnxruntime": (13.0, 14.0, 25.0), "tflite": (20.0,), "ncnn": (10.0, 12.0)},
    "MTCNN P-Net": {"onnxruntime": (21.4, 22.5), "tflite": (22.5,), "ncnn": (25.0,)},
    "PP-OCRv4 det": {"onnxruntime": (18.5,), "tflite": (17.0,), "ncnn": (12.0,)},
    "EfficientNet-Lite0": {"onnxruntime": (23.0,), "tflite": (23.0,), "ncnn": (23.0,)},
}
HEAD = """\
# What the repair of INT8 costs

Written by `benchmarks/repair.py`; `benchmarks/README.md` says how to run it again.

The gate is the least SQNR in dB of the worst output against the float model, on verification inputs that calibration
never saw, with the engine itself; at most 5 % of the multiply-accumulates may stay in float. *Before* is the variant
with every layer in INT8, *after* the repaired one; *float MACs* and *size* are what that costs. *Tries* are other ways
of making the file that were run, 12 at most. Each model has a gate on each engine between what plain INT8 reaches there
and what is reachable, and on two of them one that is not.

| model | engine | gate dB | before dB | after dB | layers in float | float MACs | size | tries |
|---|---|---:|---:|---:|---|---:|---:|---:|
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", action="append", default=[])
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--again", action="store_true", help="measure what there is a result for, too")
    parser.add_argument("--report", action="store_true", help="write the page from kept results")
    options = parser.parse_args()
    kept = options.results or options.folder.absolute() / "repair.json"
    found: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    entries = {entry["name"]: entry for entry in json.loads((options.folder / "models.json").read_text())}
    for name, gates in GATES.items():
        for engine in options.engine or ENGINES:
            for gate in () if options.report or (options.only and name not in options.only) else gates[engine]:
                there = any((r["model"], r["engine"], r["gate"]) == (name, engine, gate) for r in found)
                if there and not options.again:
                    continue
                row = {"model": name, "engine": engine, "gate": gate, **measure(entries[name], engine, gate)}
                sys.stderr.write(f"{json.dumps(row)}\n")
                found = [r for r in found if (r["model"], r["engine"], r["gate"]) != (name, engine, gate)] + [row]
                kept.write_text(json.dumps(found, indent=1))
    asked = [(name, engine, gate) for name in GATES for engine in ENGINES for gate in GATES[name][engine]]
    rows = {(row["model"], row["engine"], row["gate"]): row for row in found}
    PAGE.write_text(HEAD + "\n".join(line(rows[key]) for key in asked if key in rows) + "\n")


def measure(entry: dict[str, Any], engine: str, least: float) -> dict[str, Any]:
    """Make, judge and repair one variant."""
    os.chdir(entry["cwd"])
    arguments = [entry["source"], *entry["args"], "--target", "rk3588", "--engine", engine, "--precision", "int8"]
    context = cli.build.make_context("build", arguments)
    plan = cli._plan(**{k: v for k, v in context.params.items() if k not in ("as_json", "dry_run")})
    assert plan.samples is not None
    plan = replace(plan, gate=GateSpec(metric="sqnr", min_sqnr=least, data=plan.samples))
    cache = Cache(cache_root())
    started = time.monotonic()
    model = steps.import_model(plan, cache)
    samples = steps.samples_of(plan, cache, model)
    reference = steps.run_reference(plan, cache, model, samples)
    model = steps.simplify(cache, model, samples, steps.run_onnx(cache, model, samples, "run the imported model"))
    chosen = plan.engine(engine)
    base = chosen.base(Precision.INT8)
    maker = settling.Maker(
        plan=plan,
        cache=cache,
        variant=Variant(engine=engine, precision=Precision.INT8),
        model=model,
        samples=samples,
        reference=reference,
        base=None if base is None else steps.export(cache, chosen, model, base, None, None),
        data=evaluation.prepare(plan, cache, model, samples),
    )
    try:
        exported = maker.export(plan.int8)
        first = maker.measure(plan.int8, exported)
        before = first.gate.score if first.gate is not None else first.sqnr_db
        try:
            settled = settling.settle(maker, exported)
        except settling.Dropped as error:
            return {"before": before, "reason": error.message, "seconds": time.monotonic() - started}
    except EdgepackError as error:
        return {"reason": error.message, "seconds": time.monotonic() - started}
    assert settled.gate is not None and settled.facts is not None
    facts = settled.facts
    return {
        "before": before,
        "after": settled.gate.score,
        "layers": [layer.layer for layer in facts.kept_float],
        "ranges": facts.ranges,
        "macs": sum(layer.macs for layer in facts.kept_float),
        "growth": facts.size / facts.full_int8_size - 1.0,
        "tries": facts.tries,
        "seconds": time.monotonic() - started,
    }


def line(row: dict[str, Any]) -> str:
    """One row of the page."""
    start = f"| {row['model']} | {row['engine']} | {row['gate']:g} | "
    if "after" not in row:
        before = f"{row['before']:.1f}" if "before" in row else "-"
        return f"{start}{before} | not reached | {row['reason'].rpartition('; ')[2]} | | | |"
    rule = "" if row["ranges"] == "auto" else f", {row['ranges']} ranges"
    names = ", ".join(f"`{name}`" for name in row["layers"]) or "none"
    return (
        f"{start}{row['before']:.1f} | {row['after']:.1f} | {names}{rule} | {row['macs']:.2%} | "
        f"{row['growth']:+.1%} | {row['tries']} |"
    )


if __name__ == "__main__":
    main()

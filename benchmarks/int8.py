"""Measure INT8 on every engine and write docs/int8.md.

    EDGEPACK_CACHE=DIR python benchmarks/int8.py FOLDER_OF_PREPARE_MODELS [--only NAME]... [--effort E]... [--report]

Each model is imported, simplified and quantized with edgepack's own steps and cache; the files then run on the host's
engines, one thread. EfficientNet-Lite0 is measured on 200 crops of 10 photographs and on 680 crops of 17 with bootstrap
intervals over the photographs, the others on their verification inputs. Results are kept as JSON in the folder of the
models, those of other efforts beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgepack import artifact, calibration, cli, converter, plugins, steps
from edgepack.cache import Cache
from edgepack.errors import EdgepackError
from edgepack.resources import cache_root
from edgepack.types import Int8Options, Model, Precision

EFFORTS: tuple[Literal["fast", "normal", "high"], ...] = ("fast", "normal", "high")
SETS = {"evaluation": "200 crops of 10 photographs", "wider": "680 crops of 17 photographs, drawings and pages"}
ENGINES = ("onnxruntime", "tflite", "ncnn")
PAGE = Path(__file__).parent.parent / "docs" / "int8.md"
DRAWS = 2000
SURE = 0.5
HEAD = """\
# INT8

Written by `benchmarks/int8.py`; `benchmarks/README.md` says how to run it again.

One streaming pass over the calibration samples gives every quantizer a histogram per activation and the means of its
channels. From these come

- **ranges** of the least squared error (where the outputs on the calibration samples are
  clearly closer with another rule, that one);
- **weights** in int8, symmetric, with a scale per output channel, and
- **bias correction**: what rounding the weights does to the mean of each output channel is taken out of the bias
  (Nagel et al. 2019, arXiv:1906.04721, section 4.2). It is worth 6 to 7 dB on EfficientNet-Lite0 and costs nothing on
  the device.

ONNX Runtime's quantizer **evens out channels** (Nagel et al. 2019, section 4.1, by the ranges of activations as in
SmoothQuant, arXiv:2211.10438) where the outputs on the calibration samples stay below 17 dB, and tries it always at
`high`: one scale for all channels of a tensor then costs less. Layers take the factors into their weights; where
something else is in the way (Hardswish, learned scales), a Mul is put beside the layer if the estimated noise falls by
5 dB or more.

`fast` takes the first rule for ranges and looks at nothing. `high` also **rounds weights for the least error of each
layer's sums** (GPTQ, Frantar et al. 2022, arXiv:2210.17323, on the covariance of what a layer reads), and keeps that
where it is nearer on the calibration samples.

LiteRT tries less and less in integers (`full`, `lean`, `dynamic`: see `quantize_tflite.py`) until the calibration
samples' outputs reach 16 dB (at `high` the first two always). ONNX Runtime and ncnn keep every layer in integers but
those that `keep_float` and `wide` name. (16-bit activations: ONNX Runtime has no integer kernel for them, LiteRT only
slow reference kernels, so there such layers stay in float.) Samples are read one at a time: 512 photographs of 224x224
take 297 MB (ONNX Runtime), 252 MB (LiteRT) and 189 MB (ncnn), no more than 64 do.

A model that brings its own scales (QDQ) keeps them in ONNX Runtime. LiteRT can't take them over and refuses it.

What was tried and not kept: correction for the mean that clipping activations takes away (no difference), least-error
ranges for ncnn (0.7 dB worse on EfficientNet-Lite0, better on PP-OCR det).

All figures compare the engine's outputs with the float model's: **SQNR** pooled over all samples, the worst output;
**top-1** is agreement with the float model, not accuracy; **sure** the same where the float model's largest
probability is above 0.5; **simulated** is the QDQ model with every pair computed in float: what the format allows
with these scales, whatever the kernels do (sums in float32, which adds less than -120 dB).
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--effort", action="append", choices=EFFORTS, default=[])
    parser.add_argument("--report", action="store_true", help="write the page from kept results")
    options = parser.parse_args()
    folder = options.folder.absolute()
    results = folder / "int8"
    results.mkdir(exist_ok=True)
    entries = json.loads((folder / "models.json").read_text())
    for entry in entries:
        if not options.report and (not options.only or entry["name"] in options.only):
            kept = results / f"{slug(entry)}.json"
            found = json.loads(kept.read_text()) if kept.is_file() else {}
            found |= measure(entry, folder, results / "work", tuple(options.effort) or EFFORTS)
            kept.write_text(json.dumps(found, indent=1))
            sys.stderr.write(f"{entry['name']}: {json.dumps(found)}\n")
    PAGE.write_text(page(entries, results))


def slug(entry: dict[str, Any]) -> str:
    return "".join(c if c.isalnum() else "-" for c in entry["name"].lower())


def measure(entry: dict[str, Any], folder: Path, work: Path, efforts: tuple[Any, ...]) -> dict[str, Any]:
    """One model at each effort, on every engine and set: {effort: {set: {engine: metrics or why there are none}}}."""
    os.chdir(entry["cwd"])
    context = cli.build.make_context("build", [entry["source"], *entry["args"], "--target", "rk3588"])
    plan = cli._plan(**{k: v for k, v in context.params.items() if k not in ("as_json", "dry_run")})
    cache = Cache(cache_root())
    model = steps.import_model(plan, cache)
    samples = steps.samples_of(plan, cache, model)
    model = steps.simplify(cache, model, samples, steps.run_onnx(cache, model, samples, "run the imported model"))
    assert samples.calibration is not None
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    sets = {"verification": (samples.verify, np.arange(samples.verify_count))}
    if entry["name"] == "EfficientNet-Lite0":
        sets = {}
        for name in SETS:
            crops = folder / "photographs_224" / name
            calibration.gather(crops, model.inputs, dict(plan.preprocess), work / name)
            sets[name] = work / name, np.array([path.stem.partition("_")[2] for path in sorted(crops.iterdir())])
    wanted = {name: simulate(model.path, model, inputs, work / f"{name}-float") for name, (inputs, _) in sets.items()}
    found: dict[str, Any] = {effort: {name: {} for name in sets} for effort in efforts}
    for effort in efforts:
        for engine_name in ENGINES:
            engine = plugins.load("engines", engine_name)
            try:
                base = engine.base(Precision.INT8)
                floating = None if base is None else steps.export(cache, engine, model, base, None, None)
                int8 = Int8Options(effort=effort)
                made = steps.export(cache, engine, model, Precision.INT8, samples.calibration, floating, int8)
                for name, (inputs, groups) in sets.items():
                    out = work / f"{effort}-{engine_name}-{name}"
                    out.mkdir()
                    facts = engine.run(artifact.read(made.path), model, inputs, out)
                    told = metrics(wanted[name], load(out, model), groups)
                    told["bytes"] = sum((made.path / f).stat().st_size for f in artifact.read(made.path).files)
                    told["ms"] = facts["latency_ms"]
                    found[effort][name][engine_name] = told
            except EdgepackError as error:
                for name in sets:
                    found[effort][name][engine_name] = str(error)
        quantized = work / f"{effort}-qdq"
        quantized.mkdir()
        request = {
            "model": str(model.path),
            "samples": str(samples.calibration.path),
            "int8": asdict(Int8Options(effort=effort)),
        }
        try:
            converter.convert("quantize_onnx", request, quantized)
            for name, (inputs, groups) in sets.items():
                simulated = simulate(quantized / "model.onnx", model, inputs, work / f"{effort}-simulated-{name}")
                found[effort][name]["simulated"] = metrics(wanted[name], simulated, groups)
        except EdgepackError as error:
            for name in sets:
                found[effort][name]["simulated"] = str(error)
    return found


def simulate(file: Path, model: Model, inputs: Path, out: Path) -> list[np.ndarray]:
    """Outputs by ONNX Runtime with no optimisation, so that pairs aren't fused."""
    out.mkdir()
    request = {
        "files": [str(file)],
        "inputs": [spec.name for spec in model.inputs],
        "outputs": [spec.name for spec in model.outputs],
        "samples": str(inputs),
        "optimize": False,
    }
    converter.convert("run_onnxruntime", request, out)
    return load(out, model)


def load(folder: Path, model: Model) -> list[np.ndarray]:
    return [np.load(folder / f"{index}.npy") for index in range(len(model.outputs))]


def metrics(wanted: list[np.ndarray], got: list[np.ndarray], groups: np.ndarray) -> dict[str, Any]:
    """SQNR of the worst output with its interval, and for a single vector of scores the agreement of the largest."""
    count = len(wanted[0])
    ratios = []
    for exact, value in zip(wanted, got, strict=True):
        if exact.dtype.kind == "f":
            flat = exact.reshape(count, -1).astype(np.float64)
            noise = np.square(flat - value.reshape(count, -1)).sum(axis=1)
            ratios.append((np.square(flat).sum(axis=1), noise))
    power, noise = min(ratios, key=lambda pair: decibels(pair[0].sum(), pair[1].sum()))
    found: dict[str, Any] = {"sqnr": decibels(power.sum(), noise.sum())}
    names = np.unique(groups)
    draws = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    members = [np.flatnonzero(groups == name) for name in names]
    powers, noises = (np.array([v[m].sum() for m in members]) for v in (power, noise))
    found["sqnr_interval"] = interval([decibels(powers[d].sum(), noises[d].sum()) for d in draws])
    scores = wanted[0].reshape(count, -1)
    if len(wanted) == 1 and scores.shape[1] >= 3 and max(wanted[0].shape[1:]) == scores.shape[1]:
        kept = scores.argmax(axis=1) == got[0].reshape(count, -1).argmax(axis=1)
        found["top1"] = float(kept.mean())
        share, sizes = (np.array([f(kept[m]) for m in members]) for f in (np.sum, len))
        found["top1_interval"] = interval([share[d].sum() / sizes[d].sum() for d in draws])
        stretched = np.exp(scores - scores.max(axis=1, keepdims=True))
        sure = (stretched / stretched.sum(axis=1, keepdims=True)).max(axis=1) > SURE
        found["sure"] = [int(kept[sure].sum()), int(sure.sum())]
    return found


def decibels(power: float, noise: float) -> float:
    return float(min(200.0, 10.0 * np.log10(max(power, 1e-30) / max(noise, 1e-30))))


def interval(values: list[float]) -> list[float]:
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def page(entries: list[dict[str, Any]], results: Path) -> str:
    parts = [HEAD]
    kept = {e["name"]: results / f"{slug(e)}.json" for e in entries}
    found = {name: json.loads(path.read_text()) for name, path in kept.items() if path.is_file()}
    for name in SETS:
        rows = [
            (engine, effort, item)
            for engine in (*ENGINES, "simulated")
            for effort in EFFORTS
            if isinstance(item := found.get("EfficientNet-Lite0", {}).get(effort, {}).get(name, {}).get(engine), dict)
        ]
        if not rows:
            continue
        parts.append(
            f"## EfficientNet-Lite0, {SETS[name]}\n\n64 calibration crops of 9 other photographs; 95 % intervals by "
            "bootstrap over the photographs. INT8 everywhere, no layer in float.\n\n"
            "| engine | effort | SQNR dB | top-1 | sure | MB |\n|---|---|---|---|---|---:|"
        )
        for engine, effort, item in rows:
            low, high = item["sqnr_interval"]
            least, most = item["top1_interval"]
            size = f"{item['bytes'] / 1e6:.2f}" if "bytes" in item else "-"
            ratio, kept_share = f"{item['sqnr']:.1f} ({low:.1f} to {high:.1f})", f"{item['top1']:.3f}"
            sure = f"{item['sure'][0]}/{item['sure'][1]}"
            parts.append(
                f"| {engine} | {effort} | {ratio} | {kept_share} ({least:.2f} to {most:.2f}) | {sure} | {size} |"
            )
        parts.append("")
    parts.append("## All models\n\nSQNR in dB, and top-1 agreement where the output is one vector of scores.\n")
    columns = (*ENGINES, "simulated")
    parts.append("| model | effort | " + " | ".join(columns) + " |\n|---" + "|---" * (len(columns) + 1) + "|")
    for name, efforts in found.items():
        for effort in EFFORTS:
            for item in list(efforts.get(effort, {}).values())[:1]:
                cells = " | ".join(cell(item.get(column, "")) for column in columns)
                parts.append(f"| {name} | {effort} | {cells} |")
    return "\n".join(parts) + "\n"


def cell(item: dict[str, Any] | str) -> str:
    if isinstance(item, str):
        return "not built"
    return f"{item['sqnr']:.1f}" + (f", {item['top1']:.2f}" if "top1" in item else "")


if __name__ == "__main__":
    main()

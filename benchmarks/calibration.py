"""Measure the memory and the time of calibration on every engine, and write a part of docs/int8-calibration.md.

    EDGEPACK_CACHE=DIR python benchmarks/calibration.py FOLDER_OF_PREPARE_MODELS [--runs 3] [--report]

EfficientNet-Lite0's whole INT8 export (calibration, the choice of ranges, the file) with 64 and with 512 images of
224x224, and ONNX Runtime's own MinMax calibrator (`ort_minmax.py`: calibration alone, no file) on the same images.
All runs alternate, each in a process of its own, on one core; memory is the largest peak of any process, edgepack's
own included. *Calibration* is what 448 more images cost, scaled to 512: what comes once (loading, choosing, writing)
falls out. The 512 images are the 64 calibration crops, mirrored and shifted: what is in them changes neither figure.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import arrays, cli, converter, plugins, steps
from edgepack.cache import Cache
from edgepack.resources import cache_root
from edgepack.types import DEFAULT_INT8, Calibration, Precision

ENGINES = ("onnxruntime", "tflite", "ncnn")
PEER = "ONNX Runtime MinMax"
FEW, MANY = 64, 512
PAGE = Path(__file__).parent.parent / "docs" / "int8-calibration.md"
BEGIN, END = "<!-- calibration.py -->", "<!-- /calibration.py -->"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="write the page from kept results")
    parser.add_argument("--worker", nargs=2, metavar=("WHAT", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.absolute()
    kept = Path(os.environ["EDGEPACK_CACHE"]) / "benchmark-calibration.json"
    if options.worker:
        print(json.dumps(measure(folder, options.worker[0], int(options.worker[1]))))
        return
    if not options.report:
        for count in (FEW, MANY):
            prepare(folder, count)
        runs = []
        for number in range(options.runs):
            for count in (FEW, MANY):
                for what in (PEER, *ENGINES):
                    argv = [sys.executable, __file__, str(folder), "--worker", what, str(count)]
                    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    runs.append({"what": what, "count": count, "load": os.getloadavg()[0], **found})
                    sys.stderr.write(f"{number} {runs[-1]}\n")
        kept.write_text(json.dumps(runs))
    write_part(PAGE, BEGIN, END, page(json.loads(kept.read_text())))


def plan_of(folder: Path) -> Any:
    (entry,) = (e for e in json.loads((folder / "models.json").read_text()) if e["name"] == "EfficientNet-Lite0")
    os.chdir(entry["cwd"])
    context = cli.build.make_context("build", [entry["source"], *entry["args"], "--target", "rk3588"])
    return cli._plan(**{k: v for k, v in context.params.items() if k not in ("as_json", "dry_run")})


def prepared(folder: Path) -> tuple[Any, Any]:
    """The simplified model and its samples, from the cache."""
    plan, cache = plan_of(folder), Cache(cache_root())
    model = steps.import_model(plan, cache)
    samples = steps.samples_of(plan, cache, model)
    ran = steps.run_onnx(cache, model, samples, "run the imported model")
    return steps.simplify(cache, model, samples, ran), samples


def work(count: int) -> Path:
    return cache_root() / "benchmark-calibration" / str(count)


def prepare(folder: Path, count: int) -> None:
    """Write `count` images, and make what the INT8 exports start from."""
    model, samples = prepared(folder)
    for name in ENGINES:
        engine = plugins.load("engines", name)
        if (base := engine.base(Precision.INT8)) is not None:
            steps.export(Cache(cache_root()), engine, model, base, None, None)
    source = np.load(samples.calibration.path / "0.npy", mmap_mode="r")
    out = work(count) / "samples"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    def image(number: int) -> np.ndarray:
        row = np.array(source[number % len(source)])
        turn = number // len(source)
        return np.ascontiguousarray(np.roll(row[..., ::-1] if turn % 2 else row, 16 * turn, axis=-1))

    spec = model.inputs[0]
    arrays.write_rows(out / "0.npy", spec.dtype, spec.shape, count, map(image, range(count)))


def measure(folder: Path, what: str, count: int) -> dict[str, float]:
    """Seconds, CPU seconds and peak MB of the children that one export or calibration starts."""
    model, _ = prepared(folder)
    samples, out = work(count) / "samples", work(count) / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    data = Calibration(path=samples, digest="", count=count)
    base = None
    if what in ENGINES:
        engine = plugins.load("engines", what)
        if (precision := engine.base(Precision.INT8)) is not None:
            base = steps.export(Cache(cache_root()), engine, model, precision, None, None).path
    interpreter = converter.environment("quantize_onnx")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    if what == PEER:
        script = Path(__file__).with_name("ort_minmax.py")
        subprocess.run(
            [interpreter, script, model.path, samples, out / "watched.onnx"], check=True, stdout=subprocess.DEVNULL
        )
    else:
        engine.export(model, Precision.INT8, data, base, out, DEFAULT_INT8)
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"wall": wall, "cpu": cpu, "mb": max(after.ru_maxrss, own) / 1024}


def page(runs: list[dict[str, Any]]) -> str:
    loads = [run["load"] for run in runs]
    repeats = len(runs) // (2 * (1 + len(ENGINES)))
    lines = [
        "## Memory and time",
        "",
        f"EfficientNet-Lite0, images of 224x224, one core, medians of {repeats} alternating runs; load average "
        f"{min(loads):.1f} to {max(loads):.1f}. *Export* is all from the samples to the INT8 file, *calibration* "
        f"what {MANY - FEW} more images cost, scaled to {MANY}; the last column compares it with ONNX Runtime's own "
        "MinMax calibrator. Where the load is above 1, only CPU seconds compare.",
        "",
        f"| | peak MB, {FEW} images | peak MB, {MANY} | export s, {FEW} | export s, {MANY} (CPU) "
        f"| calibration s, {MANY} (CPU) | of MinMax (CPU) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    slope = {
        (what, key): (middle(runs, what, MANY, key) - middle(runs, what, FEW, key)) * MANY / (MANY - FEW)
        for what in (PEER, *ENGINES)
        for key in ("wall", "cpu")
    }
    for what in (PEER, *ENGINES):
        share = [f"{slope[what, key] / slope[PEER, key]:.2f}" for key in ("wall", "cpu")]
        lines.append(
            f"| {what} | {middle(runs, what, FEW, 'mb'):.0f} | {middle(runs, what, MANY, 'mb'):.0f} "
            f"| {middle(runs, what, FEW, 'wall'):.1f} "
            f"| {middle(runs, what, MANY, 'wall'):.1f} ({middle(runs, what, MANY, 'cpu'):.1f}) "
            f"| {slope[what, 'wall']:.1f} ({slope[what, 'cpu']:.1f}) | {share[0]} ({share[1]}) |"
        )
    return "\n".join(lines)


def middle(runs: list[dict[str, Any]], what: str, count: int, key: str) -> float:
    return statistics.median(run[key] for run in runs if (run["what"], run["count"]) == (what, count))


def write_part(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what lies between two marks of a page."""
    content = path.read_text()
    head, _, rest = content.partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


if __name__ == "__main__":
    main()

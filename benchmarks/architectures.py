"""Real models and architectures through import and each engine's float32, beside the bare tools: docs/architectures.md.

    python benchmarks/architectures.py --scratch DIR [--models MODELS.json] [--only NAME]... [--engine NAME]... [--bare]
    python benchmarks/architectures.py --scratch DIR --report

The set: architectures with random weights from timm, torchvision, transformers and Keras, and small definitions of our
own (`architecture_models`); TFLite files of packages; onnx's light models; what `prepare_models.py` wrote. Each is
taken as `edgepack build` takes it: its importer with the reference from its own framework, passes, engines, bounds.
No harness is compiled. The words of the results are those of `corpus.py`; here

    right        shipped, and right on a further sample that verification didn't see
    WRONG        shipped, but not right on that sample

Results are kept as JSON lines, and a model that is there is not tried again (``--again`` tries it).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import corpus
from corpus_tools import architectures_page, forks

from edgepack import artifact as artifacts
from edgepack import calibration, config, converter, plan, plugins, project, steps, verify
from edgepack.cache import Entry
from edgepack.types import Model, Precision

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
ZOO = Path(__file__).parent / "architecture_models"
SECONDS = 900.0
SAMPLES = 4  # for verification; one more is held out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="models.json of prepare_models.py")
    parser.add_argument("--only", action="append", default=[], help="names, or words that they contain")
    parser.add_argument("--engine", action="append", default=[], choices=corpus.ENGINES)
    parser.add_argument("--bare", action="store_true", help="the bare tools as well")
    parser.add_argument("--again", action="store_true", help="try models again that have a result")
    parser.add_argument("--keep", action="store_true", help="keep what was made of each model")
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    options = parser.parse_args()
    scratch = options.scratch.absolute()
    results = scratch / "results.jsonl"
    if options.report:
        names = {item["name"] for item in every(scratch, options.models)}
        found = {name: item for name, item in corpus.read(results).items() if name in names}
        architectures_page.write(PAGE, found, len(names))
        return
    os.environ.setdefault("EDGEPACK_CACHE", str(scratch / "cache"))
    forks.install(SECONDS, {"torch_to_onnx": ZOO / "torch_zoo.py"})
    for item in every(scratch, options.models):
        name, known = item["name"], corpus.read(results).get(item["name"], {})
        wanted = options.engine or [*corpus.ENGINES, *(corpus.BARE if options.bare else ())]
        if not any(word in name for word in options.only or [""]):
            continue
        refused = known.get("import", {}).get("status", "right") != "right"
        if not options.again and (refused or set(wanted) <= set(known)):
            continue
        started = time.monotonic()
        work = scratch / "work" / name
        engines = [engine for engine in wanted if options.again or engine not in known]
        case = scratch / "cases" / name
        if case.is_dir() and known.get("import") and set(engines) <= set(corpus.BARE):
            found = {engine: bare(engine, case, work) for engine in engines}
        else:
            found = examine(item, work, engines)
            case.parent.mkdir(exist_ok=True)
            shutil.rmtree(case, ignore_errors=True)
            if (work / "case").is_dir():
                (work / "case").rename(case)
        line = {"name": name, "kind": item["kind"], **found, "seconds": round(time.monotonic() - started, 1)}
        with results.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(name, line["seconds"], {k: v["status"] for k, v in found.items() if isinstance(v, dict)}, flush=True)
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)


def every(scratch: Path, listed: Path | None) -> list[dict[str, Any]]:
    """Every model of the set, written on first use: name, kind, source, inputs, and for real models arguments."""
    folder = scratch / "models"
    made = {
        "torch": (ZOO / "torch_zoo.py", zoo_python),
        "keras": (ZOO / "keras_zoo.py", lambda: converter.environment("tensorflow_to_onnx")),
    }
    found: list[dict[str, Any]] = []
    for name, (script, python) in made.items():
        if not (folder / f"{name}.json").is_file():
            subprocess.run(["chrt", "-i", "0", python(), script, folder], check=True, cwd=ZOO)
        found += json.loads((folder / f"{name}.json").read_text())
    if listed is not None and listed.is_file():
        found += [{**item, "kind": "real", "inputs": {}} for item in json.loads(listed.read_text())]
    return found


def zoo_python() -> Path:
    """The Python of `torch_zoo.py`, with its packages."""
    return converter._prepare(ZOO / "torch_zoo.py", converter.sha256_file(ZOO / "torch_zoo.py"))


def examine(item: Mapping[str, Any], work: Path, engines: list[str]) -> dict[str, Any]:
    """What becomes of one model: ``{"import": {...}, ENGINE: {...}, "parameters": count}``."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    results: dict[str, Any] = {}
    try:
        model, samples, reference = prepare(item, work, results)
        results["import"] = {"status": "right", "reason": ""}
    except Exception as error:
        return {**results, "import": corpus.told(error)}
    for name in engines:
        try:
            if name in corpus.BARE:
                results[name] = bare(name, work / "case", work)
            else:
                results[name] = one_engine(name, model, samples, reference, work / name)
        except Exception as error:
            results[name] = corpus.told(error)
    return results


def bare(name: str, case: Path, work: Path) -> dict[str, str]:
    """What a tool alone makes of the imported file."""
    return corpus.one_bare(case, work / name.replace(" ", "_"), *corpus.BARE[name])


def prepare(item: Mapping[str, Any], work: Path, facts: dict[str, Any]) -> tuple[Model, Path, Path]:
    """Import, samples, reference, check of the import, passes: what a build does before any engine.

    The model, and tensor folders of `SAMPLES` + 1 samples and of the source's own outputs for them.
    """
    given = arguments(item)
    importer = plan.find_importer(item["source"])
    os.chdir(item.get("cwd", ZOO))
    folder = work / "import"
    folder.mkdir()
    importer.to_onnx(item["source"], given["shapes"], given["options"], folder)
    model = steps.read_model(Entry(path=folder, digest="x", reused=False))
    samples, reference, ran = work / "samples", work / "reference", work / "ran"
    make_samples(model, given, samples)
    for made in (reference, ran):
        made.mkdir()
    importer.reference(item["source"], model, given["options"], samples, reference)
    steps.infer(model, samples, ran)
    gathered = steps.Samples(
        verify=samples, verify_digest="x", verify_count=SAMPLES + 1, synthetic=True, calibration=None
    )
    entry = Entry(path=ran, digest="x", reused=False)
    steps.check_import(model, gathered, Entry(path=reference, digest="x", reused=False), entry)
    write_case(model, samples, ran, work / "case")
    facts["parameters"] = parameters(model.path)
    facts["operators"] = len(model.operators)
    origin = model.origin
    for graph_pass in plugins.load_all("passes"):
        out = work / graph_pass.name
        out.mkdir()
        steps.apply_pass(graph_pass, model, gathered, entry, out)
        if json.loads((out / "facts.json").read_text())["kept"]:
            model = steps.read_model(Entry(path=out, digest="x", reused=False))
    return replace(model, origin=origin), samples, reference


def arguments(item: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line would say about a model."""
    parser = argparse.ArgumentParser()
    for name in ("weights", "python", "preprocess", "samples", "calib"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--input", action="append", default=[])
    parser.add_argument("--name")
    known = parser.parse_args(item.get("args", []))
    inputs = [plan.parse_input(text) for text in known.input]
    inputs += [(name, tuple(shape), dtype) for name, (shape, dtype) in item["inputs"].items()]
    python = known.python or (zoo_python() if item["kind"] in ("torch", "pt2", "torchscript") else None)
    options = {
        "weights": known.weights,
        "python": python,
        "signature": None,
        "dtypes": {name: dtype for name, _, dtype in inputs if dtype},
        "pythonpath": plan._site(),
    }
    return {
        "shapes": {name: shape for name, shape, _ in inputs},
        "options": options,
        "samples": known.samples,
        "preprocess": project.load(known.preprocess).preprocess if known.preprocess else {},
    }


def make_samples(model: Model, given: Mapping[str, Any], out: Path) -> None:
    if given["samples"] is None:
        calibration.synthetic(model.inputs, given["preprocess"], out, count=SAMPLES + 1)
    else:
        calibration.gather(given["samples"], model.inputs, given["preprocess"], out, SAMPLES + 1)


def parameters(path: Path) -> int:
    """Numbers in the file's weights."""
    import onnx

    graph = onnx.load(path).graph
    held = [*graph.initializer, *(a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute)]
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in held)


def one_engine(name: str, model: Model, samples: Path, reference: Path, out: Path) -> dict[str, str]:
    """Export, run and judge as a build does; then the sample that was held out."""
    engine = plugins.load("engines", name)
    precision, bound, zeros = Precision.FP32, corpus.FP32, model.zero_points
    if model.origin is not None and model.origin.precision is Precision.INT8:
        if not plan.keeps_scales(name):
            return {"status": "refused", "reason": plan.ALREADY_QUANTIZED}
        precision, bound = Precision.INT8, config.BOUNDS[Precision.INT8]
    if problems := engine.problems(model, precision):
        return {"status": "refused", "reason": f"{problems[0].op} node {problems[0].node!r}: {problems[0].message}"}
    out.mkdir()
    engine.export(model, precision, None, None, out)
    outputs = out.parent / f"{name}-outputs"
    outputs.mkdir()
    engine.run(artifacts.read(out), model, samples, outputs)
    parts: dict[str, list[Path]] = {"seen": [], "all": []}
    for folder in (reference, outputs):
        for part, rows in (
            ("seen", slice(0, SAMPLES)),
            ("all", slice(None)),
        ):  # beside the others: it may be a quiet one
            parts[part].append(folder.parent / f"{folder.name}-{part}")
            parts[part][-1].mkdir(exist_ok=True)
            for index in range(len(model.outputs)):
                np.save(parts[part][-1] / f"{index}.npy", np.load(folder / f"{index}.npy")[rows])
    try:
        metrics = verify.compare(model.outputs, *parts["seen"], zeros)
    except ValueError as error:
        return {"status": "failed", "reason": str(error)}
    verdict = verify.judge(metrics, bound, SAMPLES)
    figure = f"{min(metric.sqnr_db for metric in metrics):.0f} dB"
    if not verdict.passed:
        return {"status": "dropped", "reason": verdict.reason, "figure": figure}
    held = verify.judge(verify.compare(model.outputs, *parts["all"], zeros), bound, SAMPLES + 1)
    if not held.passed:
        return {"status": "WRONG", "reason": f"with the sample that was held out: {held.reason}", "figure": figure}
    return {"status": "right", "reason": "", "figure": figure}


def write_case(model: Model, samples: Path, outputs: Path, case: Path) -> None:
    """The imported file, one sample and ONNX Runtime's outputs for it, as `corpus.one_bare` takes them."""
    case.mkdir()
    shutil.copyfile(model.path, case / "model.onnx")
    for kind, folder, specs in (("in", samples, model.inputs), ("out", outputs, model.outputs)):
        for index in range(len(specs)):
            np.save(case / f"{kind}_{index}.npy", np.load(folder / f"{index}.npy")[0])
    (case / "names.json").write_text(json.dumps([spec.name for spec in model.inputs]))


if __name__ == "__main__":
    main()

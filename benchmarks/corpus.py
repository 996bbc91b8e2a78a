"""Every model of a corpus through import, simplify and each engine's float32, beside the bare tools: docs/corpus.md.

    python benchmarks/corpus.py --scratch DIR [--every 8] [--only NAME]... [--engine NAME]... [--bare]
    python benchmarks/corpus.py --scratch DIR --rules      # edgepack/operators_measured.toml from what is there
    python benchmarks/corpus.py --scratch DIR --report     # docs/corpus.md from what is there

The corpus: the node tests of onnx.backend.test (small models with inputs and expected outputs). Each model is taken
as `edgepack build` takes it (same importer, passes, engines, bounds; made-up verification samples), without harness.
What a build would ship is then run on the test's own inputs and held against the test's own outputs:

    right        shipped, and the test's outputs come out
    refused      Unsupported, with a reason, before or after conversion
    failed       a tool or an engine failed, with a reason
    dropped      the outputs were too far from the source's: never shipped
    WRONG        shipped, but the test's outputs don't come out
    TRACEBACK    an error that edgepack has no sentence for

Results are kept as JSON lines, one for each model, and a model that is there is not tried again. What import and passes
made is kept too: with --prepared, engines are tried on that, and nothing is imported again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import traceback
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from corpus_tools import forks, page, rules

from edgepack import artifact as artifacts
from edgepack import calibration, converter, coverage, plugins, steps, verify
from edgepack.cache import Entry
from edgepack.config import BOUNDS
from edgepack.errors import EdgepackError, Unsupported, UsageError
from edgepack.types import Artifact, Model, Precision

PAGE = Path(__file__).parent.parent / "docs" / "corpus.md"
TOOLS = Path(__file__).parent / "corpus_tools"
ENGINES = ("onnxruntime", "tflite", "ncnn")
BARE = {
    "bare onnxruntime": ("bare_onnxruntime", "run_onnxruntime"),
    "bare onnx2tf": ("bare_onnx2tf", "onnx_to_tflite"),
    "bare pnnx": ("bare_pnnx", "onnx_to_ncnn"),
}
MADE_UP = 4
FP32 = BOUNDS[Precision.FP32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--engine", action="append", default=[], help="only these; none: import and passes alone")
    parser.add_argument("--bare", action="store_true", help="also the bare tools")
    parser.add_argument("--again", action="store_true", help="try models again that have a result")
    parser.add_argument("--prepared", action="store_true", help="take models that were imported before")
    parser.add_argument("--rules", action="store_true", help="find the rules of operators_measured.toml")
    parser.add_argument("--real", type=Path, help="for --rules: ONNX files that every engine does, after passes")
    parser.add_argument("--held-out", type=int, default=0, help="for --rules: judge them on so many parts held out")
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    options = parser.parse_args()
    scratch = options.scratch.absolute()
    names = sorted(path.name for path in node_tests(scratch).iterdir() if path.is_dir())
    chosen = [n for n in names[options.start :: options.every] if not options.only or n in options.only]
    chosen = options.only if options.only else chosen
    results = scratch / "results.jsonl"
    known = read(results)
    if options.rules:
        rules.write(known, scratch / "prepared", ENGINES, options.real, options.held_out)
    if options.report:
        page.write(PAGE, {n: predicted(r, scratch / "prepared" / n) for n, r in known.items()}, len(names))
    if options.rules or options.report:
        return
    forks.install()
    for name in chosen:
        if name in known and not options.again and (not options.bare or "bare onnx2tf" in known[name]):
            continue
        work, kept = scratch / "work" / name, scratch / "prepared" / name
        case = scratch / "node" / name
        engines = [e for e in ENGINES if e in (options.engine or ENGINES)]
        found = examine(case, work, engines, bare=options.bare, kept=kept, again=not options.prepared)
        merged = {**known.get(name, {}), **found} if options.engine else found
        with results.open("a") as stream:
            stream.write(json.dumps({"name": name, **merged}) + "\n")
        print(name, {k: v["status"] for k, v in found.items() if isinstance(v, dict)}, flush=True)
        shutil.rmtree(work, ignore_errors=True)


def node_tests(scratch: Path) -> Path:
    """The folder of the node tests, written on first use."""
    folder = scratch / "node"
    if not (folder / ".whole").is_file():
        python = converter.environment("import_onnx")
        folder.mkdir(parents=True, exist_ok=True)
        log, request = scratch / "node_tests.log", scratch / "unused.json"
        code = forks.call(TOOLS / "node_tests.py", python, folder, scratch, log, 1800)
        if code != 0:
            raise SystemExit(f"the node tests can't be written: see {log} {request}")
        (folder / ".whole").touch()
    return folder


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The newest result of each model and engine."""
    if not path.is_file():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for item in map(json.loads, path.read_text().splitlines()):
        found.setdefault(item["name"], {}).update(item)
    return found


def examine(
    case: Path,
    work: Path,
    engines: tuple[str, ...] | list[str],
    *,
    bare: bool,
    kept: Path | None = None,
    again: bool = True,
) -> dict[str, Any]:
    """What becomes of one model: ``{"import": {...}, ENGINE: {...}}``, each with status, id and reason.

    What the import made is copied to `kept`, or with `again` False taken from there.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    results: dict[str, Any] = {}
    try:
        if kept is not None and not again and (kept / "model").is_dir():
            prepared = Prepared.load(kept)
        else:
            prepared = prepare(case, work)
            if kept is not None:
                prepared.save(kept)
        results["import"] = {"status": "right", "reason": prepared.note}
    except Exception as error:
        results["import"] = told(error)
        prepared = None
    for name in engines if prepared else ():
        try:
            results[name] = one_engine(name, prepared, work / name)
        except Exception as error:
            results[name] = told(error)
    if bare:
        for name, (script, environment) in BARE.items():
            results[name] = one_bare(case, work / script, script, environment)
    return results


def predicted(result: dict[str, Any], kept: Path) -> dict[str, Any]:
    """A result with what `edgepack check --quick` says of each engine beforehand: ``{"check": {ENGINE: bool}}``."""
    if result["import"]["status"] != "right" or not (kept / "model").is_dir():
        return result
    model = Prepared.load(kept).model
    return {**result, "check": {e: not coverage.expected(plugins.load("engines", e), model) for e in ENGINES}}


class Prepared:
    """A model after import and passes, its samples (the last one is the test's own) and reference outputs."""

    def __init__(self, model: Model, samples: Path, reference: Path, count: int, wanted: list[Any], note: str) -> None:
        self.model, self.samples, self.reference = model, samples, reference
        self.count, self.wanted, self.note = count, wanted, note

    def save(self, kept: Path) -> None:
        """Write everything to `kept`."""
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for name, folder in (("samples", self.samples), ("reference", self.reference)):
            shutil.copytree(folder, kept / name)
        (kept / "wanted").mkdir()
        for index, value in enumerate(self.wanted):
            if value is not None:
                np.save(kept / "wanted" / f"{index}.npy", value)
        (kept / "note.txt").write_text(self.note)
        (kept / "model").mkdir()
        for name in ("model.onnx", "model.json"):
            shutil.copyfile(self.model.path.parent / name, kept / "model" / name)

    @classmethod
    def load(cls, kept: Path) -> Prepared:
        """What `save` wrote."""
        model = steps.read_model(Entry(path=kept / "model", digest="x", reused=False))
        wanted = [load(kept / "wanted" / f"{index}.npy", None) for index in range(len(model.outputs))]
        count = len(np.load(kept / "reference" / "0.npy"))
        return cls(model, kept / "samples", kept / "reference", count, wanted, (kept / "note.txt").read_text())


def prepare(case: Path, work: Path) -> Prepared:
    """Import, samples, reference, passes: the steps that a build does before any engine."""
    importer = plugins.load("importers", "onnx")
    source, options = str(case / "model.onnx"), {"dtypes": {}}
    folder = work / "import"
    folder.mkdir()
    importer.to_onnx(source, {}, options, folder)
    model = steps.read_model(Entry(path=folder, digest="x", reused=False))
    samples, reference = work / "samples", work / "reference"
    given = [load(case / f"in_{i}.npy", spec.dtype) for i, spec in enumerate(model.inputs)]
    wanted = [load(case / f"out_{i}.npy", spec.dtype) for i, spec in enumerate(model.outputs)]
    has_data = all(g is not None and g.shape == s.shape for g, s in zip(given, model.inputs, strict=True))
    for count in (MADE_UP, 0):
        shutil.rmtree(samples, ignore_errors=True)
        calibration.synthetic(model.inputs, {}, samples, count=max(count, 1))
        for index, value in enumerate(given if has_data else ()):
            made_up = np.load(samples / f"{index}.npy")
            rows = [*made_up[:count], value] if count else [value]
            np.save(samples / f"{index}.npy", np.stack(rows).astype(model.inputs[index].dtype))
        shutil.rmtree(reference, ignore_errors=True)
        reference.mkdir()
        try:
            importer.reference(source, model, options, samples, reference)
            if not count or not has_data or not strays(reference, len(model.outputs)):
                break
        except EdgepackError:  # made-up indices may be out of range: a user gives samples of his own then
            if not count or not has_data:
                raise
    note = "" if has_data else "no data"
    total = len(np.load(reference / "0.npy"))
    if has_data and not all(w is None or same(np.load(reference / f"{i}.npy")[-1], w) for i, w in enumerate(wanted)):
        note = "ONNX Runtime itself gives other numbers than the test"
    if note:
        wanted = [np.load(reference / f"{i}.npy")[-1] for i in range(len(wanted))]
    imported = work / "imported"
    imported.mkdir()
    steps.infer(model, samples, imported)
    verdict = verify.judge(verify.compare(model.outputs, reference, imported), steps.IMPORT_BOUND, total)
    if not verdict.passed:
        raise Unsupported(f"import: {verdict.reason}")
    for graph_pass in plugins.load_all("passes"):
        out = work / graph_pass.name
        out.mkdir()
        entry = Entry(path=imported, digest="x", reused=False)
        gathered = steps.Samples(
            verify=samples, verify_digest="x", verify_count=total, synthetic=True, calibration=None
        )
        steps.apply_pass(graph_pass, model, gathered, entry, out)
        if json.loads((out / "facts.json").read_text())["kept"]:
            model = steps.read_model(Entry(path=out, digest="x", reused=False))
    return Prepared(model, samples, reference, total, wanted, note)


def strays(reference: Path, outputs: int) -> bool:
    """Whether the made-up samples alone give NaN: they are out of the operator's domain."""
    arrays = [np.load(reference / f"{index}.npy") for index in range(outputs)]
    nan = [np.isnan(array).reshape(len(array), -1).any(axis=1) for array in arrays if array.dtype.kind == "f"]
    return any(rows[:-1].any() and not rows[-1] for rows in nan)


def one_engine(name: str, prepared: Prepared, out: Path) -> dict[str, str]:
    """Export, run and judge as a build does; then the test's own sample."""
    engine, model = plugins.load("engines", name), prepared.model
    if problems := engine.problems(model, Precision.FP32):
        return {"status": "refused", "reason": problems[0].message}
    out.mkdir()
    engine.export(model, Precision.FP32, None, None, out)
    found: Artifact = artifacts.read(out)
    outputs = out.parent / f"{name}-outputs"
    outputs.mkdir()
    engine.run(found, model, prepared.samples, outputs)
    verdict = verify.judge(verify.compare(model.outputs, prepared.reference, outputs), FP32, prepared.count)
    if not verdict.passed:
        return {"status": "dropped", "reason": verdict.reason}
    for index, value in enumerate(prepared.wanted):
        got = np.load(outputs / f"{index}.npy")[-1]
        if value is not None and not same(got, value):
            return {"status": "WRONG", "reason": f"output {index}: {got.ravel()[:4]} instead of {value.ravel()[:4]}"}
    return {"status": "right", "reason": ""}


def one_bare(case: Path, work: Path, script: str, environment: str) -> dict[str, str]:
    """One tool alone on the same file."""
    given = sorted(case.glob("in_*.npy"), key=lambda p: int(p.stem[3:]))
    wanted = [load(p, None) for p in sorted(case.glob("out_*.npy"), key=lambda p: int(p.stem[4:]))]
    if not wanted or any(value is None for value in wanted) or any(load(path, None) is None for path in given):
        return {"status": "failed", "reason": "no data"}
    made, home = work / "made", work / "home"
    made.mkdir(parents=True)
    home.mkdir()
    request = {
        "model": str(case / "model.onnx"),
        "inputs": {json.loads((case / "names.json").read_text())[i]: str(p) for i, p in enumerate(given)},
        "outputs": len(wanted),
        "out": str(made),
        "ncnn": str(converter.environment("run_ncnn")),
    }
    (home / "request.json").write_text(json.dumps(request))
    path = TOOLS / f"{script}.py"
    code = forks.call(path, converter.environment(environment), home / "request.json", home, home / "log.txt")
    if code != 0:
        lines = (home / "log.txt").read_text("utf-8", "replace").split("\n") if code is not None else ["timed out"]
        return {"status": "failed", "reason": next((x[:200] for x in reversed(lines) if x.strip()), "")}
    for index, value in enumerate(wanted):
        path = made / f"{index}.npy"
        if not path.is_file() or not any_order(np.load(path), value):
            return {"status": "wrong", "reason": f"output {index}"}
    return {"status": "right", "reason": ""}


def load(path: Path, dtype: str | None) -> Any:
    """An array of the test, or None; the types that numpy lacks have none."""
    try:
        found = np.load(path) if path.is_file() else None
        return found if found is None or dtype is None else found.astype(dtype)
    except ValueError:
        return None


def same(got: Any, wanted: Any) -> bool:
    """Equal shapes, and values within float32 noise of an engine that sums in another order."""
    if got.shape != wanted.shape:
        return False
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    finite = wanted[np.isfinite(wanted)]
    scale = float(np.abs(finite).max(initial=0.0)) or 1.0
    return bool(np.allclose(got, wanted, rtol=1e-2, atol=2e-3 * scale, equal_nan=True))


def any_order(got: Any, wanted: Any) -> bool:
    """Whether some order of axes, with unit axes left out, makes them the same."""
    got, wanted = np.squeeze(got), np.squeeze(wanted)
    if got.ndim != wanted.ndim:
        return got.size == wanted.size and same(got.ravel(), wanted.ravel())
    return any(same(got, wanted.transpose(p)) for p in permutations(range(wanted.ndim)) if wanted.ndim <= 6)


def told(error: Exception) -> dict[str, str]:
    """An exception as a result."""
    if isinstance(error, EdgepackError):
        status = (
            "refused"
            if isinstance(error, Unsupported | UsageError) or error.id.startswith(("EP30", "EP310"))
            else "failed"
        )
        crash = "Traceback" in error.message
        return {"status": "TRACEBACK" if crash else status, "reason": error.message, "id": error.id}
    return {"status": "TRACEBACK", "reason": "".join(traceback.format_exception(error))[-1500:]}


def tally(results: dict[str, dict[str, Any]]) -> dict[str, Counter[str]]:
    """How often each status was met, by engine."""
    counts: dict[str, Counter[str]] = {}
    for item in results.values():
        for name, value in item.items():
            if isinstance(value, dict):
                counts.setdefault(name, Counter())[value["status"]] += 1
    return counts


if __name__ == "__main__":
    main()

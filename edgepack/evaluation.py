"""The accuracy gate: variants and the float model run on evaluation data, and held against `--max-drop`.

The data are a folder of pictures (one sub-folder per class gives labels), an ``.npz`` with an array per input and
perhaps ``labels``, or an ``.npy``. Each engine is the real one on the host, a bounded number of samples at a time. What
stands for the float model is its imported form in ONNX Runtime, which the build holds against the source framework.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgepack import arrays, calibration, converter, lint, log, metrics, plugins, sampling
from edgepack.cache import Cache, Entry, Step
from edgepack.errors import CalibrationError, MetricError, UsageError
from edgepack.importers import factory
from edgepack.interfaces import Engine
from edgepack.plan import BuildPlan
from edgepack.sampling import Samples
from edgepack.types import Artifact, GateResult, GateSpec, Model, TensorSpec, Variant

Array = npt.NDArray[Any]
LABELS = "labels"
CHANCE = 2.0  # times as good as guessing is no better than guessing
LIMIT = 1 << 20  # samples
CHUNK = 256 << 20  # bytes of inputs and outputs that one run of an engine reads and writes
OUTPUTS_LIMIT = 8 << 30  # bytes of one variant's outputs for a function of the user's


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation data of one model, and what the float model says of them."""

    inputs: Path
    digest: str
    count: int
    labels: Path | None
    reference: Entry
    source: float


def check_spec(spec: GateSpec) -> None:
    """Refuse a gate that says nothing or too much. Raises `UsageError`."""
    asked = spec.metric or spec.max_drop is not None or spec.min_sqnr is not None
    if spec.data is None:
        if asked:
            raise UsageError(
                "--metric, --max-drop and --min-sqnr need data to measure on.",
                "Add --data DIR (a sub-folder per class), or an .npz with labels; without labels the float model's "
                "answers count.",
                id="EP213",
            )
        return
    if not spec.data.exists():
        raise UsageError(f"--data {spec.data} doesn't exist.", "Check the path.", id="EP204")
    if spec.metric not in metrics.BUILT_IN and not metrics.is_function(spec.metric):
        raise UsageError(
            f"There is no metric {spec.metric!r}.",
            f"Metrics: {', '.join(metrics.BUILT_IN)}, module:function.",
            id="EP213",
        )
    if spec.metric == "sqnr" and (spec.min_sqnr is None or spec.max_drop is not None):
        raise UsageError(
            "SQNR has no best value to drop from.", "Say the least one in dB: --min-sqnr 20, without --max-drop.",
            id="EP213",
        )  # fmt: skip
    if spec.metric != "sqnr" and (spec.max_drop is None or spec.min_sqnr is not None):
        raise UsageError(
            f"The metric {spec.metric} needs --max-drop, and no --min-sqnr.",
            "Such as --max-drop 1.0 for one percentage point of top1, or --max-drop 0.01 for cosine.",
            id="EP213",
        )


def prepare(plan: BuildPlan, cache: Cache, model: Model, samples: Samples) -> Evaluation | None:
    """The evaluation data as a tensor folder, the float model's outputs on them and its score; None without data.

    Warns of data that INT8 of `samples` is made with.
    """
    spec = plan.gate
    if spec.data is None:
        return None
    check_metric(spec, model)
    classes = model.outputs[metrics.scores_index(model.outputs)].shape[-1] if spec.metric == "top1" else None
    step = Step(
        name="evaluation data",
        version="2",
        title=f"prepare evaluation data{plan.where}",
        inputs={"data": _data_digest(spec.data)},
        params={
            "code": [plugins.module_digest(m.__name__) for m in (calibration, arrays)],
            "inputs": [asdict(item) for item in model.inputs],
            "preprocess": {name: asdict(p) for name, p in plan.preprocess.items()},
            "classes": classes,
        },
    )
    entry = cache.output(step, lambda out: _gather(plan, model, classes, out))
    facts = json.loads((entry.path / "facts.json").read_text())
    if entry.reused:
        lint.say_again(facts["said"])
    labels = entry.path / "labels.npy"
    sampling.check_evaluation(plan, cache, model.inputs, samples, entry.path / "inputs", entry.digest, facts["count"])
    step = Step(
        name="evaluate float",
        version="1",
        title=f"run the float model on the evaluation data{plan.where}",
        inputs={"model": model.digest, "data": entry.digest},
        params={"tool": converter.digest("run_onnxruntime")},
    )
    request = {"inputs": [s.name for s in model.inputs], "outputs": [s.name for s in model.outputs]}

    def run(samples: Path, out: Path) -> None:
        asked = {**request, "files": [str(model.path)], "samples": str(samples), "threads": 1, "timed": 0}
        converter.convert("run_onnxruntime", asked, out)

    inputs = entry.path / "inputs"
    reference = cache.output(step, lambda out: _run(run, model, inputs, facts["count"], out))
    found = Evaluation(
        inputs=inputs,
        digest=entry.digest,
        count=facts["count"],
        labels=labels if labels.exists() else None,
        reference=reference,
        source=0.0,
    )
    source = metrics.PERFECT.get(spec.metric, metrics.PERFECT_DB)
    if metrics.is_function(spec.metric) or (spec.metric == "top1" and found.labels is not None):
        source = _score(plan, cache, model, found, reference.digest, lambda _: reference.path, "the float model")
    if classes is not None and found.labels is not None and source <= CHANCE * 100.0 / classes:
        log.warn(
            f"the float model itself gives {source:.1f} % of the labels of {spec.data}, which is what guessing among "
            f"{classes} classes gives: the labels may be numbered otherwise, or the preprocessing is another"
        )
    return replace(found, source=source)


def check_metric(spec: GateSpec, model: Model) -> None:
    """Raise `MetricError` where top1 has no vector of scores to look at."""
    if spec.metric == "top1":
        metrics.scores_index(model.outputs)


def judge(
    plan: BuildPlan,
    cache: Cache,
    engine: Engine,
    variant: Variant,
    model: Model,
    artifact: Artifact,
    digest: str,
    data: Evaluation,
) -> GateResult:
    """Run one exported variant (of cache digest `digest`) on the evaluation data and hold its score to the gate."""
    spec = plan.gate

    def run(scratch: Path) -> Path:
        def once(samples: Path, out: Path) -> None:
            engine.run(artifact, model, samples, out)

        _run(once, model, data.inputs, data.count, scratch)
        return scratch

    tools = plugins.digest(engine, engine.tools(variant.precision))
    limit = spec.min_sqnr if spec.metric == "sqnr" else data.source - (spec.max_drop or 0.0)
    assert limit is not None
    result = GateResult(
        metric=spec.metric,
        unit=metrics.UNITS.get(spec.metric, ""),
        score=None,
        source=data.source,
        limit=limit,
        samples=data.count,
        labelled=data.labels is not None,
        passed=False,
    )
    try:
        score = _score(plan, cache, model, data, digest + tools, run, str(variant))
    except MetricError as error:
        return replace(result, reason=error.message.rstrip("."))
    # A drop of exactly what is allowed passes, whatever binary fractions make of it.
    passed = score >= limit or math.isclose(score, limit, rel_tol=1e-9, abs_tol=1e-9)
    return replace(result, score=score, passed=passed, reason="" if passed else miss(spec, data, score))


def miss(spec: GateSpec, data: Evaluation, score: float) -> str:
    """A gate that was missed, in figures."""
    on = f"on {data.count} {'labelled ' if data.labels is not None else ''}evaluation samples"
    if spec.metric == "sqnr":
        return f"its SQNR is {score:.1f} dB {on}, the gate is {spec.min_sqnr:g} dB"
    unit = {"top1": " points"}.get(spec.metric, "")
    what = "top1 agreement with the float model" if spec.metric == "top1" and data.labels is None else spec.metric
    return (
        f"its {what} is {score:.4g} {on} against {data.source:.4g}: {data.source - score:.4g}{unit} less, "
        f"the gate is {spec.max_drop:g}{unit}"
    )


# Data ---------------------------------------------------------------------------------------------------------------


def _data_digest(source: Path) -> str:
    return calibration.from_source_digest(source)


def _gather(plan: BuildPlan, model: Model, classes: int | None, out: Path) -> None:
    """Write inputs and labels; `classes` are those of the model, where the metric needs them."""
    source = plan.gate.data
    assert source is not None
    report = lint.Report()
    count = calibration.gather(source, model.inputs, dict(plan.preprocess), out / "inputs", LIMIT, report)
    if source.is_dir():
        labels = _folder_labels(source, classes, report)
    else:
        labels = _file_labels(source, model.inputs)
    if labels is not None:
        if len(labels) != count:
            raise CalibrationError(
                f"{source} has {len(labels)} labels for {count} samples.", "Give one whole number for every sample."
            )
        np.save(out / "labels.npy", labels, allow_pickle=False)
    (out / "facts.json").write_text(json.dumps({"count": count, "said": report.said}))


def _folder_labels(source: Path, classes: int | None, report: lint.Report) -> Array | None:
    """The class of each picture by its sub-folder; None where pictures lie in no sub-folder.

    What is odd goes to `report`: `classes` are those of the model, or None where that doesn't matter.
    """
    pictures, _ = calibration._find_pictures(source)
    folders = [path.relative_to(source).parts[:-1] for path in pictures]
    if not any(folders):
        return None
    if not all(len(parts) == 1 for parts in folders):
        odd = next(path for path, parts in zip(pictures, folders, strict=True) if len(parts) != 1)
        raise CalibrationError(
            f"{odd} is not in a class's own folder, but others of {source} are.",
            "Put every picture into DIR/CLASS/, or all of them into one folder for data without labels.",
        )
    names = sorted(p.name for p in source.iterdir() if p.is_dir() and not p.name.startswith("."))
    if all(re.fullmatch(r"\d{1,9}", name) for name in names):
        numbers = {name: int(name) for name in names}
    else:
        numbers = {name: index for index, name in enumerate(names)}
        if classes is not None and len(names) < classes:
            report.warn(
                f"{source} has {len(names)} folders of classes and the model {classes} classes: the folders count as "
                f"its first {len(names)}, {names[0]!r} as class 0. If they are others, name each folder by its number"
            )
    report.note(f"{source}: {len(names)} classes, from {names[0]!r} (class {numbers[names[0]]}) to {names[-1]!r}")
    return np.array([numbers[parts[0]] for parts in folders], np.int64)


def _file_labels(source: Path, inputs: tuple[TensorSpec, ...]) -> Array | None:
    found = arrays.open_arrays(source)
    if LABELS not in found or any(spec.name == LABELS for spec in inputs):
        return None
    labels = found[LABELS]
    if len(labels.shape) != 1 or labels.dtype.kind not in "iu":
        raise CalibrationError(
            f"The labels of {source} are {labels.dtype} of shape {list(labels.shape)}.",
            "Labels are one whole number a sample: an integer array of shape [samples].",
        )
    return np.array([int(row) for row in labels.rows(range(labels.shape[0]))], np.int64)


# Runs ---------------------------------------------------------------------------------------------------------------


def _run(once: Callable[[Path, Path], object], model: Model, inputs: Path, count: int, out: Path) -> None:
    """Run a model on a tensor folder, a piece at a time, and write all its outputs to `out` as one tensor folder."""
    total = count * sum(_bytes(spec) for spec in model.outputs)
    if total > OUTPUTS_LIMIT:
        raise CalibrationError(
            f"The outputs on {count} evaluation samples are {total >> 30} GiB, more than {OUTPUTS_LIMIT >> 30}.",
            "Give fewer samples with --data.",
        )
    piece = max(1, CHUNK // sum(_bytes(spec) for spec in (*model.inputs, *model.outputs)))
    scratch = out.parent / f"{out.name}.piece"
    with ExitStack() as stack:
        files = [stack.enter_context((out / f"{i}.npy").open("wb")) for i in range(len(model.outputs))]
        for file, spec in zip(files, model.outputs, strict=True):
            _header(file, spec, count)
        for part in _pieces(inputs, len(model.inputs), count, piece, scratch / "in"):
            (scratch / "out").mkdir()
            once(part, scratch / "out")
            for index, (file, spec) in enumerate(zip(files, model.outputs, strict=True)):
                got = np.load(scratch / "out" / f"{index}.npy", mmap_mode="r", allow_pickle=False)
                for row in got:
                    file.write(np.ascontiguousarray(row, spec.dtype).tobytes())
            _clear(scratch)


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def _header(file: IO[bytes], spec: TensorSpec, count: int) -> None:
    described = np.lib.format.dtype_to_descr(np.dtype(spec.dtype))
    header = {"descr": described, "fortran_order": False, "shape": (count, *spec.shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _pieces(inputs: Path, tensors: int, count: int, piece: int, folder: Path) -> Iterator[Path]:
    if piece >= count:
        folder.parent.mkdir()
        yield inputs
        return
    for start in range(0, count, piece):
        folder.mkdir(parents=True)
        for index in range(tensors):
            whole = np.load(inputs / f"{index}.npy", mmap_mode="r", allow_pickle=False)[start : start + piece]
            rows = (np.asarray(row) for row in whole)
            arrays.write_rows(folder / f"{index}.npy", whole.dtype.str, whole.shape[1:], len(whole), rows)
        yield folder


def _clear(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def _score(
    plan: BuildPlan,
    cache: Cache,
    model: Model,
    data: Evaluation,
    digest: str,
    run: Callable[[Path], Path],
    who: str,
) -> float:
    """The remembered score of whoever `run` gives the outputs of; `digest` stands for that."""
    metric = plan.gate.metric
    own = metrics.is_function(metric)
    site = list(plan.options.get("pythonpath") or ())
    python = plan.options.get("python")
    step = Step(
        name="evaluate",
        version="1",
        title=f"measure {metric} of {who}",
        inputs={"outputs": digest, "data": data.digest, "reference": data.reference.digest},
        params={
            "metric": metric,
            "code": [plugins.module_digest(m.__name__) for m in (metrics,)],
            "function": factory.digest(metric, Path.cwd(), site) if own else "",
            "tool": converter.digest("run_metric") if own else "",
            "python": str(python) if own and python else "",
        },
    )

    def make(out: Path) -> None:
        scratch = out.parent / "outputs"
        scratch.mkdir()
        got = run(scratch)
        if own:
            value = metrics.own_score(metric, data.reference.path, got, data.labels, out, python, site)
        else:
            labels = np.load(data.labels, allow_pickle=False) if data.labels is not None else None
            value = metrics.score(metric, model.outputs, data.reference.path, got, labels)
        (out / "score.json").write_text(json.dumps(value))
        _clear(scratch)

    entry = cache.output(step, make)
    return float(json.loads((entry.path / "score.json").read_text()))

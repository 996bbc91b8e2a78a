"""The step that makes samples: the user's data -> tensor folders for calibration and for verification."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepack import calibration, iterables, likeness, lint, plugins
from edgepack import preprocess as preprocessing
from edgepack.cache import Cache, Step, digest_of, tree_digests
from edgepack.plan import BuildPlan
from edgepack.types import Calibration, Model, Precision, TensorSpec

VERIFY_SAMPLES = 16
CALIBRATION_LIMIT = 512


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Arrays of one build: verification (always) and calibration (when data were given)."""

    verify: Path
    verify_digest: str
    verify_count: int
    synthetic: bool
    calibration: Calibration | None


Inputs = tuple[TensorSpec, ...]


def samples_of(plan: BuildPlan, cache: Cache, model: Model) -> Samples:
    """`gather_samples` for a model's inputs, refused where INT8 would not have the memory for one of them."""
    if any(variant.precision is Precision.INT8 for variant in plan.variants):
        lint.check_memory(model, plan.int8.memory_mb)
    return gather_samples(plan, cache, model.inputs)


def gather_samples(plan: BuildPlan, cache: Cache, inputs: Inputs, *, quiet: bool = False) -> Samples:
    """User's data -> tensor folders for calibration and for verification, which are disjoint when data suffice.

    A function is run in every build: what it reads can't be known, so its samples are compared, not its code. Where
    `quiet`, what is odd about the data is left for the next call to say.
    """
    given = {"calibration": plan.calibration, "samples": plan.samples}
    with contextlib.ExitStack() as stack:
        sources = {kind: _source(plan, cache, inputs, path, stack) for kind, path in given.items() if path is not None}
        return _samples(plan, cache, inputs, sources, quiet)


def _source(
    plan: BuildPlan, cache: Cache, inputs: Inputs, path: Path, stack: contextlib.ExitStack
) -> calibration.Source:
    name = str(path)
    if not iterables.is_function(name):
        return calibration.Source(path=path)
    folder = stack.enter_context(cache.scratch(f"samples of {name}")) / "given"
    folder.mkdir()
    iterables.collect(name, inputs, plan.options, folder, limit=CALIBRATION_LIMIT)
    return calibration.Source(path=folder, function=name)


def _samples(
    plan: BuildPlan, cache: Cache, inputs: Inputs, sources: Mapping[str, calibration.Source], quiet: bool
) -> Samples:
    step = Step(
        name="samples",
        version="2",
        title=f"prepare samples{plan.where}",
        inputs={kind: source.digest() for kind, source in sources.items()},
        params={
            "code": [plugins.module_digest(module.__name__) for module in (calibration, preprocessing, lint, likeness)],
            "inputs": [asdict(spec) for spec in inputs],
            "preprocess": {name: asdict(p) for name, p in plan.preprocess.items()},
            "limit": CALIBRATION_LIMIT,
            "verify": VERIFY_SAMPLES,
        },
    )
    entry = cache.output(step, lambda out: _write_samples(plan, inputs, sources, out, quiet))
    facts = json.loads((entry.path / "facts.json").read_text())
    if entry.reused and not quiet:
        lint.say_again(facts["said"])
    verify_folder, calib_folder = entry.path / "verify", entry.path / "calibration"
    return Samples(
        verify=verify_folder,
        verify_digest=digest_of(tree_digests(verify_folder)),
        verify_count=facts["verify"],
        synthetic=facts["synthetic"],
        calibration=Calibration(
            path=calib_folder, digest=digest_of(tree_digests(calib_folder)), count=facts["calibration"]
        )
        if "calibration" in sources
        else None,
    )


def _write_samples(
    plan: BuildPlan, inputs: Inputs, sources: Mapping[str, calibration.Source], out: Path, quiet: bool
) -> None:
    folders = {"samples": out / "verify", "calibration": out / ("calibration" if "samples" in sources else "all")}
    report = lint.Report(quiet=quiet)
    lint.check_means(plan.preprocess, report)
    counts, prints = {}, {}
    for kind, source in sources.items():
        declared = dict(plan.preprocess)
        counts[kind] = calibration.gather(source, inputs, declared, folders[kind], CALIBRATION_LIMIT, report)
        prints[kind] = likeness.fingerprints(folders[kind], inputs)
        likeness.check_distinct(prints[kind], source.label, _namer(source), report)
    facts: dict[str, Any] = {"synthetic": not sources, "calibration": counts.get("calibration", 0)}
    if "samples" in sources:
        facts["verify"] = counts["samples"]
    elif "calibration" in sources:
        used, held = calibration.split(
            folders["calibration"], counts["calibration"], out / "calibration", out / "verify", verify=VERIFY_SAMPLES
        )
        facts |= {"calibration": used, "verify": held}
        remove_folder(folders["calibration"])
    else:
        calibration.synthetic(inputs, dict(plan.preprocess), out / "verify", count=VERIFY_SAMPLES)
        facts["verify"] = VERIFY_SAMPLES
    if "calibration" in sources:
        _check_disjoint(sources, counts["calibration"], prints, report)
    (out / "facts.json").write_text(json.dumps({**facts, "said": report.said}, sort_keys=True))


def _check_disjoint(
    sources: Mapping[str, calibration.Source],
    count: int,
    prints: Mapping[str, likeness.Fingerprints],
    report: lint.Report,
) -> None:
    """Say which of the samples that INT8 is verified with were used for making it."""
    source, every = sources["calibration"], prints["calibration"]
    name = _namer(source)
    if "samples" in sources:
        other = sources["samples"]
        what = f"samples of {other.label} are also in {source.label}"
        likeness.check_disjoint(every, [prints["samples"]], what, (_namer(other), name), report)
        return
    used, held = calibration.parts(count, VERIFY_SAMPLES)
    if used == held:
        report.note(
            f"{source.label} has {count} samples, fewer than {2 * VERIFY_SAMPLES}: INT8 is calibrated and verified on "
            "the same ones, which flatters it (--samples gives others)"
        )
        return
    likeness.check_disjoint(
        every.chosen(used),
        [every.chosen(held)],
        f"samples of {source.label} that are held out for verification repeat one that is not",
        (lambda index: name(held[index]), lambda index: name(used[index])),
        report,
    )


def check_evaluation(
    plan: BuildPlan, cache: Cache, inputs: Inputs, samples: Samples, folder: Path, digest: str, count: int
) -> None:
    """Warn where evaluation data (`count` samples in the tensor folder `folder`) were also used to make INT8."""
    given, data, used = plan.calibration, plan.gate.data, samples.calibration
    if given is None or data is None or used is None:
        return
    function = str(given) if iterables.is_function(str(given)) else ""
    source = calibration.Source(path=given, function=function)
    total = used.count if plan.samples is not None else used.count + samples.verify_count
    chosen = list(range(used.count))
    if plan.samples is None and calibration.parts(total, VERIFY_SAMPLES)[0] != list(range(total)):
        chosen = calibration.parts(total, VERIFY_SAMPLES)[0]
    step = Step(
        name="evaluation overlap",
        version="1",
        title="compare evaluation with calibration",
        inputs={"data": digest, "calibration": used.digest},
        params={"code": plugins.module_digest(likeness.__name__), "names": [str(data), source.label]},
    )

    def make(out: Path) -> None:
        report = lint.Report()
        likeness.check_disjoint(
            likeness.fingerprints(used.path, inputs),
            likeness.pieces(folder, inputs, count),
            f"evaluation samples of {data} are also in the calibration set {source.label}",
            (
                functools.partial(calibration.sample_name, calibration.Source(path=data), limit=count),
                lambda index: _namer(source)(chosen[index]),
            ),
            report,
        )
        (out / "facts.json").write_text(json.dumps(report.said))

    entry = cache.output(step, make)
    if entry.reused:
        lint.say_again(json.loads((entry.path / "facts.json").read_text()))


def _namer(source: calibration.Source) -> likeness.Namer:
    return functools.partial(calibration.sample_name, source, limit=CALIBRATION_LIMIT)


def remove_folder(folder: Path) -> None:
    """Remove a folder that holds files only."""
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

"""check(): what of a model each engine can do at each precision, told before the work.

Import, graph passes, and each engine's float32 export and verification are done as `pipeline.build` does them, by
the same steps (a build that follows finds them in the cache). So what is said about float32 is what happened. fp16
and INT8 start from there: what is certainly impossible is told by the engines' own ``problems``, what computes in
float32 at INT8 by the table of operators, and whether the outputs are near enough only a build can measure.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgepack import operators, steps, verify
from edgepack.cache import Cache
from edgepack.errors import ModelError, Unsupported, UsageError, VariantError
from edgepack.interfaces import Engine
from edgepack.plan import NEEDS_DATA, NEEDS_DATA_HINT, BuildPlan
from edgepack.types import Model, Outcome, Precision, Problem, Variant

Effect = Literal["refused", "failed", "dropped", "float", "unlikely"]
Answer = Literal["yes", "likely", "unlikely", "no"]
CAUSES = 3
TOO_FAR_HINT = "Use another engine, or set [bounds] in a target profile if that is near enough."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that an engine can't do, or does in float32, and what to do about it. `node` may be empty."""

    effect: Effect
    node: str
    op: str
    reason: str
    hint: str = ""
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The answer for one variant.

    ``yes`` was tried, ``likely`` has no known obstacle, ``unlikely`` was not tried and has one, ``no`` has a finding.
    """

    variant: Variant
    answer: Answer
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """A model after import and passes, and what each variant's engine can do with it."""

    model: Model
    rows: tuple[Coverage, ...]
    synthetic: bool


def check(plan: BuildPlan, cache: Cache, *, quick: bool = False) -> CheckResult:
    """Say for every engine and precision of the plan what a build would meet; `quick`: by the tables alone.

    Raises `ModelError` when the source can't be imported, or its ONNX form is wrong; at the shapes of an input set that
    is an answer.
    """
    imported = steps.import_model(plan, cache)
    first, *sets = plan.for_sets(imported.inputs).values()
    result = _at(first, cache, imported, quick)
    rows = list(result.rows)
    for of_set in sets:
        try:
            rows += _at(of_set, cache, steps.import_model(of_set, cache), quick).rows
        except (ModelError, UsageError) as error:
            reason = f"the model at the shapes of {of_set.input_set}: {error.id}: {error.message}"
            failed = Finding(effect="failed", node="", op="", reason=reason, hint=error.hint)
            rows += [Coverage(variant=variant, answer="no", findings=(failed,)) for variant in of_set.variants]
    return replace(result, rows=tuple(rows))


def _at(plan: BuildPlan, cache: Cache, imported: Model, quick: bool) -> CheckResult:
    """`check` for one input set, whose model is imported."""
    samples = steps.samples_of(plan, cache, imported)
    reference = steps.run_reference(plan, cache, imported, samples)
    ran = steps.run_onnx(cache, imported, samples, "run the imported model")
    steps.check_import(imported, samples, reference, ran)
    model = steps.simplify(cache, imported, samples, ran)
    floats: dict[str, tuple[Finding, ...]] = {}
    rows = []
    for variant in _variants(plan):
        engine = plan.engine(variant.engine)
        if variant.engine not in floats:
            floats[variant.engine] = (
                expected(engine, model) if quick else _float32(plan, cache, engine, model, samples, reference)
            )
        row = _row(plan, engine, variant, model, floats[variant.engine])
        rows.append(_untried(row) if quick else row)
    others = (o for o in plan.refused if o.reason != NEEDS_DATA)
    return CheckResult(model=model, rows=(*rows, *map(_refused, others)), synthetic=samples.synthetic)


def _variants(plan: BuildPlan) -> list[Variant]:
    """The plan's, and INT8 that only lacks calibration data."""
    waiting = [outcome.variant for outcome in plan.refused if outcome.reason == NEEDS_DATA]
    return sorted({*plan.variants, *waiting}, key=lambda v: (v.engine, list(Precision).index(v.precision)))


def expected(engine: Engine, model: Model) -> tuple[Finding, ...]:
    """Why this engine has no right float32 files, or likely none, as far as the tables know."""
    if known := engine.problems(model, Precision.FP32):
        return tuple(map(_finding, known))
    return tuple(replace(_finding(p), effect="unlikely") for p in operators.unlikely(engine.name, model.path))


def _untried(row: Coverage) -> Coverage:
    if row.answer == "yes":
        return replace(row, answer="likely")
    sure = any(finding.effect == "refused" for finding in row.findings)
    return replace(row, answer="unlikely") if row.answer == "no" and not sure else row


def _float32(
    plan: BuildPlan, cache: Cache, engine: Engine, model: Model, samples: steps.Samples, reference: Any
) -> tuple[Finding, ...]:
    """Why this engine has no right float32 files; nothing when it has."""
    variant = Variant(engine=engine.name, precision=Precision.FP32, input_set=plan.input_set)
    known = engine.problems(model, Precision.FP32)
    if known:
        return tuple(map(_finding, known))
    try:
        exported = steps.export(cache, engine, model, Precision.FP32, None, None)
        checked = steps.check(cache, engine, variant, model, exported, samples, reference)
    except VariantError as error:
        effect: Effect = "refused" if isinstance(error, Unsupported) else "failed"
        return (Finding(effect=effect, node="", op="", reason=error.message, hint=error.hint), *_causes(engine, model))
    verdict = verify.judge(checked.metrics, plan.target.bounds[Precision.FP32], samples.verify_count)
    if verdict.passed:
        return ()
    reason = f"its outputs are too far from the source's: {verdict.reason}"
    return (Finding(effect="dropped", node="", op="", reason=reason, hint=TOO_FAR_HINT), *_causes(engine, model))


def _causes(engine: Engine, model: Model) -> tuple[Finding, ...]:
    """The nodes that are likely the cause of what a tool said without naming one."""
    return tuple(f for f in expected(engine, model) if f.op)[:CAUSES]


def _row(plan: BuildPlan, engine: Engine, variant: Variant, model: Model, floats: tuple[Finding, ...]) -> Coverage:
    if variant.precision is Precision.FP32:
        return Coverage(variant=variant, answer="no" if floats else "yes", findings=floats)
    # Where the float32 files can't be made, nothing that starts from them can.
    starts_there = engine.base(variant.precision) is Precision.FP32
    fatal = tuple(f for f in floats if f.effect != "dropped" and starts_there)
    fatal = fatal or tuple(map(_finding, engine.problems(model, variant.precision)))
    if fatal:
        return Coverage(variant=variant, answer="no", findings=fatal)
    findings: list[Finding] = []
    if variant.precision is Precision.INT8:
        findings = _in_float(engine.name, model)
        if plan.calibration is None:
            missing = Finding(effect="refused", node="", op="", reason=NEEDS_DATA, hint=NEEDS_DATA_HINT)
            return Coverage(variant=variant, answer="no", findings=(missing, *findings))
    return Coverage(variant=variant, answer="likely", findings=tuple(findings))


def _in_float(engine: str, model: Model) -> list[Finding]:
    """What computes in float32 at INT8, by operator, with the first node of each."""
    import onnx

    nodes: dict[str, list[str]] = defaultdict(list)
    for node in onnx.load(model.path, load_external_data=False).graph.node:
        nodes[node.op_type].append(node.name or (node.output[0] if node.output else ""))
    return [
        Finding(
            effect="float",
            node=nodes[op][0],
            op=op,
            reason=f"{engine} has no INT8 form of it: it computes in float32",
            count=len(nodes[op]),
        )
        for op in operators.stays_float(engine, nodes)
    ]


def _finding(problem: Problem) -> Finding:
    return Finding(effect="refused", node=problem.node, op=problem.op, reason=problem.message, hint=problem.hint)


def _refused(outcome: Outcome) -> Coverage:
    finding = Finding(effect="refused", node="", op="", reason=outcome.reason, hint=outcome.hint)
    return Coverage(variant=outcome.variant, answer="no", findings=(finding,))


def text(result: CheckResult) -> str:
    """The answers for people."""
    lines = []
    width = max(len(str(row.variant)) for row in result.rows)
    for row in result.rows:
        lines.append(f"{row.variant!s:<{width}} {row.answer}")
        for finding in row.findings:
            many = f" and {finding.count - 1} more" if finding.count > 1 else ""
            where = f"{finding.op} {finding.node!r}{many}: " if finding.op else ""
            lines.append(f"    {finding.effect}: {where}{finding.reason}")
            if finding.hint:
                lines.append(f"        {finding.hint}")
    lines.append(f"Opset {result.model.opset}; yes: converted, run and compared; likely: no obstacle is known.")
    if any(row.answer == "unlikely" for row in result.rows):
        lines.append("unlikely: not tried, and such forms never came out right. Without --quick they are tried.")
    lines.append("Every engine here runs on the CPU: nothing falls back from an accelerator.")
    return "\n".join(lines)


def content(result: CheckResult) -> dict[str, Any]:
    """The answers for programs."""
    return {
        "opset": result.model.opset,
        "operators": list(result.model.operators),
        "synthetic": result.synthetic,
        "variants": [
            {
                "variant": str(row.variant),
                "answer": row.answer,
                "findings": [{**vars(f), "opset": result.model.opset} for f in row.findings],
            }
            for row in result.rows
        ],
    }

"""Whether an exported variant ships: its bounds, its accuracy gate, and for INT8 the repair when it misses them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgepack import evaluation, explain, log, repair, steps, verify
from edgepack.cache import Cache, Entry
from edgepack.errors import VariantError
from edgepack.evaluation import Evaluation
from edgepack.interfaces import Engine
from edgepack.plan import BuildPlan
from edgepack.quantizers.static import has_quantized
from edgepack.types import GateResult, Int8Facts, Int8Options, Model, Precision, Variant, Verdict


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A variant made in one way, and how it did. `gate` is None where there is none, or the bounds were missed."""

    int8: Int8Options
    checked: steps.Checked
    size: int
    verdict: Verdict
    gate: GateResult | None
    facts: Int8Facts | None = None

    @property
    def passed(self) -> bool:
        """Whether it ships."""
        return self.verdict.passed and (self.gate is None or self.gate.passed)

    @property
    def reason(self) -> str:
        """Why it doesn't."""
        return self.verdict.reason or (self.gate.reason if self.gate is not None else "")

    @property
    def sqnr_db(self) -> float:
        """Of the worst output, on the verification samples."""
        return min((metric.sqnr_db for metric in self.verdict.metrics), default=0.0)

    @property
    def rule(self) -> str:
        """The rule for ranges that the engine's quantizer took."""
        return str(self.checked.artifact.facts.get("ranges") or self.int8.ranges)

    @property
    def in_float(self) -> frozenset[str]:
        """Which of the layers that should stay in float the engine's quantizer found and left there."""
        return frozenset(self.checked.artifact.facts.get("kept_float", ()))


class Dropped(VariantError):
    """A variant whose outputs are too far from the source's. Never shipped."""

    id = "EP102"

    def __init__(self, settled: Settled, tried: str = "") -> None:
        gate = settled.gate
        if gate is not None:
            self.id = "EP103"
            what = f"it misses the accuracy gate: {settled.reason}{tried}"
            bound = "ask for less with --min-sqnr" if gate.metric == "sqnr" else "allow more with --max-drop"
            hint = f"Use another precision or engine, give more typical calibration data, or {bound}."
        else:
            what = f"its outputs are too far from the source's: {settled.reason}{tried}"
            hint = (
                "Use another precision or engine, give more typical calibration data, or set [bounds] in a target "
                "profile."
            )
        if settled.checked.variant.precision is Precision.INT8:
            hint += " --max-float-macs lets a repair leave more layers in float." if tried else ""
            hint += " `edgepack explain-int8` shows which layers make the error."
        super().__init__(what, hint)
        self.verdict = settled.verdict
        self.gate = gate


@dataclass(frozen=True, kw_only=True)
class Maker:
    """All that a variant is made from and held against."""

    plan: BuildPlan
    cache: Cache
    variant: Variant
    model: Model
    samples: steps.Samples
    reference: Entry
    base: Entry | None
    data: Evaluation | None

    @property
    def engine(self) -> Engine:
        """The variant's engine."""
        return self.plan.engine(self.variant.engine)

    def export(self, int8: Int8Options) -> Entry:
        """The variant's files, remembered."""
        precision = self.variant.precision
        data = self.samples.calibration if precision is Precision.INT8 else None
        return steps.export(self.cache, self.engine, self.model, precision, data, self.base, int8)

    def measure(self, int8: Int8Options, exported: Entry) -> Settled:
        """Run what was exported on the host, and judge it."""
        plan, engine, variant, model = self.plan, self.engine, self.variant, self.model
        checked = steps.check(self.cache, engine, variant, model, exported, self.samples, self.reference)
        bound = plan.target.bounds[variant.precision]
        verdict = verify.judge(checked.metrics, bound, self.samples.verify_count)
        gate = None
        if verdict.passed and self.data is not None and variant.precision is not Precision.FP32:
            gate = evaluation.judge(
                plan, self.cache, engine, variant, model, checked.artifact, exported.digest, self.data
            )
        size = sum((exported.path / name).stat().st_size for name in checked.artifact.files)
        return Settled(int8=int8, checked=checked, size=size, verdict=verdict, gate=gate)

    def attempt(self, int8: Int8Options) -> Settled | None:
        """Export and measure; None where the engine can't make it so."""
        way = f"{self.variant} with ranges {int8.ranges}, {len(int8.keep_float)} layers in float"
        try:
            found = self.measure(int8, self.export(int8))
        except VariantError as error:
            log.note(f"{way}: {error.message}")
            return None
        log.note(f"{way}: {'passes' if found.passed else found.reason}")
        return found

    def explain(self, int8: Int8Options) -> tuple[explain.Layer, ...]:
        """Every layer's error on calibration samples: those that judge don't choose."""
        calibration = self.samples.calibration
        assert calibration is not None
        try:
            found = explain.explain(self.cache, self.model, calibration, int8, calibration.path, calibration.digest)
        except VariantError as error:
            log.note(f"{self.variant} can't be repaired layer by layer: {error.message}")
            return ()
        return found.layers


def settle(make: Maker, exported: Entry) -> Settled:
    """Judge an exported variant, and repair an INT8 one that misses. Raises `Dropped`."""
    int8 = make.plan.int8
    first = make.measure(int8, exported)
    if make.variant.precision is not Precision.INT8:
        if not first.passed:
            raise Dropped(first)
        return first
    facts = Int8Facts(effort=int8.effort, ranges=int8.ranges, size=first.size, full_int8_size=first.size)
    if first.passed:
        return replace(first, facts=facts)
    spec = make.plan.gate
    if not spec.repair or has_quantized(make.model):
        raise Dropped(first)
    log.note(f"{make.variant}: {first.reason}; looking for layers to leave in float")
    found = repair.repair(first, make.attempt, make.explain, spec.max_float_macs / 100.0)
    if found.passed is None:
        share = f"at most {spec.max_float_macs:g} % of the multiply-accumulates in float"
        nearest = f", the nearest has SQNR {found.nearest_db:.1f} dB" if found.nearest_db > first.sqnr_db else ""
        raise Dropped(first, f"; {found.tries} other ways with {share} didn't reach it either{nearest}")
    passed = found.passed
    assert isinstance(passed, Settled)
    facts = replace(facts, ranges=passed.int8.ranges, kept_float=found.kept, tries=found.tries, size=passed.size)
    return replace(passed, facts=facts)

"""The table: what people read at the end of a build."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgepack import report
from edgepack.types import (
    Bound,
    GateResult,
    Int8Facts,
    KeptFloat,
    Metric,
    Outcome,
    Precision,
    SelfTest,
    Status,
    Variant,
    Verdict,
)


def outcome(engine: str, precision: Precision, **changes: Any) -> Outcome:
    return Outcome(variant=Variant(engine=engine, precision=precision), **{"status": Status.BUILT, **changes})


def result(*outcomes: Outcome, synthetic: bool = False) -> Any:
    plan = SimpleNamespace(target=SimpleNamespace(name="rk3588"), results=None)
    return SimpleNamespace(
        plan=plan,
        outcomes=outcomes,
        bundle=Path("m.edgepack"),
        digest="d",
        samples=16,
        synthetic=synthetic,
        seconds=1.0,
        input_sets=(),
    )


def built(precision: Precision, size: int) -> Outcome:
    metric = Metric(output="y", cosine=0.99996, cosine_min=0.9, sqnr_db=41.26, max_abs=0.1, top1=0.9375, finite=True)
    verdict = Verdict(metrics=(metric,), bound=Bound(), samples=16, passed=True)
    test = SelfTest(how="emulated", passed=True, metrics=({"sqnr_db": 32.4},))
    return outcome("ncnn", precision, size=size, verdict=verdict, self_test=test, host_latency_ms=1.5)


def test_a_cosine_is_never_rounded_up_to_one() -> None:
    assert "0.9999 " in report.table(result(built(Precision.FP32, 1000)))


def test_sizes_are_shares_of_the_same_engines_fp32() -> None:
    text = report.table(result(built(Precision.FP32, 1_000_000), built(Precision.INT8, 260_000)))

    assert "26%" in text and "100%" in text


def test_the_self_test_tells_how_it_was_run_and_its_own_figure() -> None:
    assert "ok (emulated, 32 dB)" in report.table(result(built(Precision.FP16, 1)))


def test_one_reason_of_several_variants_is_said_once() -> None:
    missing = [
        outcome("tflite", p, status=Status.UNSUPPORTED, reason="no library", hint="use ncnn")
        for p in (Precision.FP32, Precision.INT8)
    ]
    text = report.table(result(built(Precision.FP32, 1), *missing))

    assert text.count("no library") == 1
    assert "tflite-fp32, tflite-int8: unsupported: no library" in text


def test_a_runtime_is_compared_with_the_whole_engine_where_that_is_known() -> None:
    size = {"runtime_size": 1_320_000}
    plain = report.table(result(outcome("ncnn", Precision.FP32, **size)))
    compared = report.table(result(outcome("ncnn", Precision.FP32, **size, full_size=5_380_000)))

    assert "1.32 of" not in plain and "whole engine" not in plain
    assert "1.32 of 5.38" in compared and "whole engine" in compared


def test_synthetic_samples_are_called_synthetic() -> None:
    assert "synthetic" in report.table(result(built(Precision.FP32, 1), synthetic=True))
    assert "synthetic" not in report.table(result(built(Precision.FP32, 1)))


def test_int8_that_was_not_faster_is_told_and_called_a_measurement_of_this_host() -> None:
    slow = replace(built(Precision.INT8, 1), host_latency_ms=1.8)
    text = report.table(result(built(Precision.FP16, 1), slow))

    assert "ncnn-int8 was not clearly faster than ncnn-fp16 (1.80 against 1.50 ms, x1.20)" in text
    assert "not on the device" in text


def test_int8_is_never_called_faster_by_the_few_runs_of_a_build() -> None:
    fast = replace(built(Precision.INT8, 1), host_latency_ms=0.3)

    assert "faster" not in report.table(result(built(Precision.FP16, 1), fast))


def test_int8_is_compared_with_the_fastest_float_of_its_own_engine_only() -> None:
    other = outcome("tflite", Precision.FP32, host_latency_ms=0.1)
    int8 = replace(built(Precision.INT8, 1), host_latency_ms=0.5)

    assert "faster" not in report.table(result(built(Precision.FP16, 1), other, int8))


def test_a_repair_lists_what_it_left_in_float_and_what_that_costs() -> None:
    kept = KeptFloat(layer="conv\n9", op="Conv", macs=0.0123, weights=0.1, single_db=3.0)
    facts = Int8Facts(
        effort="normal", ranges="auto", kept_float=(kept,), tries=5, size=1_200_000, full_int8_size=1_000_000
    )
    text = report.table(result(replace(built(Precision.INT8, 1), int8=facts)))

    assert "1 layers stay in float (1.23% of the MACs, +0.20 MB): conv\\n9." in text


def test_a_gate_that_was_passed_is_shown_with_its_figures() -> None:
    gate = GateResult(
        metric="top1", unit="%", score=79.5, source=80.0, limit=79.0, samples=200, labelled=True, passed=True
    )
    text = report.table(result(replace(built(Precision.INT8, 1), gate=gate)))

    assert "top1 79.5 % on 200 labelled samples, the float model's is 80 %, the gate is 79 %" in text

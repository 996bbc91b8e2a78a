"""Whether INT8 pays on a device: by records of this very bundle, the latest session, or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepack import payoff
from edgepack.types import Outcome, Precision, Status, Variant


def record(precision: str, **changes: Any) -> Any:
    facts = {
        "bundle": "digest", "valid": True, "how": "native", "device": {"name": "board"}, "time": "2026-01-02",
        "session": "b", "precision": precision, "engine": "ncnn", "threads": 1, "variant": f"ncnn-{precision}",
        "statistics": {"median_ns": 10}, "comparisons": (),
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **changes})


def said(monkeypatch: pytest.MonkeyPatch, *found: Any) -> list[str]:
    monkeypatch.setattr("edgepack.records.read", lambda path: list(found))
    return payoff.on_devices("digest", Path("results.jsonl"))


def against(other: str, verdict: str, ratio: float) -> dict[str, Any]:
    return {"with": f"{other} x1", "of": "median", "verdict": verdict, "ratio": ratio}


def test_a_measured_verdict_is_told_with_its_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = record("int8", comparisons=(against("ncnn-fp16", "slower", 1.12),))
    faster = record("int8", comparisons=(against("ncnn-fp16", "faster", 0.8),))

    assert said(monkeypatch, record("fp16"), slower) == [
        "on board: ncnn-int8 x1 is slower than ncnn-fp16 (1.12 times as long)"
    ]
    assert "is faster than ncnn-fp16 (0.80 times" in said(monkeypatch, record("fp16"), faster)[0]


def test_a_tie_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    tie = record("int8", comparisons=(against("ncnn-fp16", "tie", 0.98),))

    assert "is no faster than ncnn-fp16" in said(monkeypatch, record("fp16"), tie)[0]


def test_other_bundles_emulated_and_doubtful_figures_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for change in ({"bundle": "another"}, {"how": "emulated"}, {"valid": False}):
        int8 = record("int8", comparisons=(against("ncnn-fp16", "faster", 0.5),), **change)
        assert said(monkeypatch, record("fp16", **change), int8) == []


def test_the_latest_session_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"time": "2026-01-01", "session": "a"}
    first = record("int8", comparisons=(against("ncnn-fp16", "faster", 0.5),), **old)
    second = record("int8", comparisons=(against("ncnn-fp16", "slower", 1.5),))

    assert said(monkeypatch, record("fp16", **old), first, record("fp16"), second) == [
        "on board: ncnn-int8 x1 is slower than ncnn-fp16 (1.50 times as long)"
    ]


def test_a_later_session_without_a_comparison_does_not_hide_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"time": "2026-01-01", "session": "a"}
    compared = record("int8", comparisons=(against("ncnn-fp16", "slower", 1.5),), **old)

    assert len(said(monkeypatch, record("fp16", **old), compared, record("int8"))) == 1


def outcome(precision: Precision, latency: float | None, engine: str = "ncnn") -> Outcome:
    variant = Variant(engine=engine, precision=precision)
    return Outcome(variant=variant, status=Status.BUILT, host_latency_ms=latency)


def test_builds_own_times_never_call_int8_faster_but_say_where_it_is_not() -> None:
    quick, slow = outcome(Precision.INT8, 1.0), outcome(Precision.INT8, 3.9)
    floats = [outcome(Precision.FP32, 5.0), outcome(Precision.FP16, 4.0)]

    assert payoff.notes([quick, *floats], "digest", None) == []
    assert payoff.notes([slow, *floats], "digest", None) == [
        "ncnn-int8 was not clearly faster than ncnn-fp16 (3.90 against 4.00 ms, x0.97): a few runs on this host, not "
        "on the device."
    ]


def test_another_engine_or_no_time_is_nothing_to_compare_with() -> None:
    others = [outcome(Precision.FP32, 0.1, "tflite"), outcome(Precision.FP32, None)]

    assert payoff.notes([outcome(Precision.INT8, 5.0), *others], "digest", None) == []

"""Whether INT8 pays on a device: by records of this very bundle, the latest session, or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepack import payoff


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

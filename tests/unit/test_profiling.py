"""What `edgepack profile` makes of a harness's lines."""

from __future__ import annotations

from typing import Any

from edgepack import profiling

OPERATORS = [
    {"index": 0, "name": "conv\n1", "op": "Conv", "ns": 6_000_000, "share": 0.6, "calls": 2},
    {"index": 1, "name": "relu", "op": "Relu", "ns": 1_000_000, "share": 0.1, "calls": 2},
    {"index": 2, "name": "conv2", "op": "Conv", "ns": 3_000_000, "share": 0.3, "calls": 2},
]


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "variant": "ncnn-fp32", "how": "native", "threads": 1, "status": "ok", "runs": 2, "total_ns": 10_100_000,
        "sum_ns": 10_000_000, "plain_ns": 9_000_000, "reason": None, "operators": OPERATORS,
        "kinds": profiling.by_kind(OPERATORS), **changes,
    }  # fmt: skip


def test_operators_of_one_type_are_taken_together_the_slowest_first() -> None:
    kinds = profiling.by_kind(OPERATORS)
    assert [(kind["op"], kind["ns"], kind["calls"]) for kind in kinds] == [
        ("Conv", 9_000_000, 4),
        ("Relu", 1_000_000, 2),
    ]
    assert abs(kinds[0]["share"] - 0.9) < 1e-12


def test_times_are_told_per_inference_and_names_are_quoted() -> None:
    text = profiling.text(facts())
    assert "4.500 ms per inference, 5.050 ms with the engine's timer" in text
    assert " 90.0%     4.500      2  Conv" in text
    assert "60.0%     3.000      1     0 Conv 'conv\\n1'" in text
    assert "Note" not in text and "emulated" not in text


def test_an_emulated_profile_and_a_sum_that_is_off_say_so() -> None:
    text = profiling.text(facts(how="emulated", reason="the operators add up to 80.0 % of the total: why"))
    assert "(emulated: no measure of the device)" in text
    assert text.endswith("Note: the operators add up to 80.0 % of the total: why.")


def test_an_engine_that_cannot_tell_is_no_table() -> None:
    text = profiling.text({"variant": "x-fp32", "how": "native", "status": "unsupported", "reason": "no timer"})
    assert text == "x-fp32: no timer"

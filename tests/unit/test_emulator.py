"""A self-test is believed only when the harness said all that it had to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import config, emulator
from edgepack.emulator import Emulator
from edgepack.types import Completed, SelfTest

RUNNER = Emulator(how="emulated", description="qemu", digest="x", prefix=())
END = {"type": "end", "status": "ok", "peak_rss_bytes": 1}


def golden(index: int, status: str = "ok", cosine: float | None = 1.0) -> dict[str, Any]:
    return {"type": "golden", "index": index, "output": 0, "status": status, "cosine": cosine, "sqnr_db": 60.0}


def text_of(lines: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(line) for line in lines)


def judge(lines: list[dict[str, Any]], *, count: int, returncode: int = 0, stderr: str = "") -> SelfTest:
    done = Completed(argv=("h",), returncode=returncode, stdout=text_of(lines), stderr=stderr, seconds=0.0)
    return emulator.judge(done, RUNNER, count)


def test_all_samples_and_an_end_line_are_a_pass() -> None:
    result = judge([{"type": "context"}, golden(0), golden(1), END], count=2)
    assert result.passed and result.how == "emulated" and len(result.metrics) == 2


def test_no_end_line_means_that_the_harness_died_and_its_last_words_are_told() -> None:
    result = judge([golden(0)], count=1, returncode=-4, stderr="qemu: uncaught target signal 4\n")
    assert result.passed is False
    assert "SIGILL" in result.detail and "uncaught target signal 4" in result.detail


def test_a_harness_that_a_signal_ended_is_reported_as_a_crash_of_its_engine_whatever_it_had_said() -> None:
    """Also when all lines came and only then it died: a result from a process that crashed is no result."""
    for code in (-11, 139):
        done = Completed(
            argv=("h",), returncode=code, stdout=text_of([golden(0), END]), stderr="x\nboom\n", seconds=0.0
        )
        result = emulator.judge(done, RUNNER, 1, "tflite")
        assert result.passed is False
        assert result.detail == (
            "the engine tflite crashed: the harness was ended by signal 11 (SIGSEGV). Its model file may be damaged: "
            "build the bundle again. If it still crashes, leave this engine out. x boom"
        )


@pytest.mark.parametrize(
    ("code", "words"),
    [(-4, "instructions that this CPU hasn't"), (-9, "memory runs out"), (-6, "SIGABRT"), (-7, "SIGBUS")],
)
def test_the_cure_of_a_crash_fits_its_signal(code: int, words: str) -> None:
    assert words in " ".join(emulator.describe_crash(code, "onnxruntime") or ())
    assert emulator.describe_crash(3, "onnxruntime") is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LINES = st.fixed_dictionaries(
    {"type": st.sampled_from(["golden", "end"]) | VALUES},
    optional=dict.fromkeys(["index", "output", "status", "cosine", "sqnr_db", "finite"], st.just("ok") | VALUES),
)


@given(st.lists(LINES, max_size=4), st.text(max_size=20), st.sampled_from([0, 1, 3, -11]))
def test_lines_of_a_damaged_harness_are_never_a_traceback(lines: list[dict[str, Any]], junk: str, code: int) -> None:
    """Keys of any type and junk between the lines: a verdict and words, and no pass without an ok for each sample."""
    done = Completed(
        argv=("h",), returncode=code, stdout=f"{junk}\n{text_of(lines)}\n{'[' * 2000}", stderr="", seconds=0.0
    )
    result = emulator.judge(done, RUNNER, 2)
    assert result.passed is False or sum(line.get("status") == "ok" for line in lines) >= 3


def test_fewer_samples_than_were_given_are_not_a_pass() -> None:
    result = judge([golden(0), END], count=2)
    assert result.passed is False and "1 of 2 samples" in result.detail
    assert judge([END], count=0).passed, "nothing to test is all of nothing"


def test_the_worst_output_is_named_when_outputs_differ() -> None:
    lines = [golden(0), golden(1, "failed", 0.7), golden(2, "failed", 0.2), {**END, "status": "failed"}]
    result = judge(lines, count=3, returncode=1)
    assert result.passed is False
    assert "2 of 3" in result.detail and "sample 2" in result.detail and "cosine 0.2" in result.detail


def test_a_not_finite_output_counts_as_the_worst() -> None:
    result = judge([golden(0, "failed", None), golden(1, "failed", 0.2), END], count=2, returncode=1)
    assert "sample 0" in result.detail


def test_an_ok_with_a_bad_exit_code_is_not_a_pass() -> None:
    assert judge([golden(0), END], count=1, returncode=3, stderr="cannot read\n").passed is False


def test_lines_that_are_no_json_objects_are_skipped() -> None:
    assert emulator.json_lines('talk\n{"type":"a"}\n[1]\n{"broken"\n') == [{"type": "a"}]


def test_a_program_of_this_architecture_is_not_run_on_a_cpu_that_lacks_its_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures\t: fp asimd\n")
    monkeypatch.setattr(emulator, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    new, old = config.load_target("rk3588"), config.load_target("linux-aarch64")
    assert emulator.find(new, static=True) is None
    assert "asimddp" in emulator.why_not(new)
    native = emulator.find(old, static=True)
    assert native is not None and native.how == "native"


def test_the_reason_for_no_emulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    target = config.load_target("rk3588")
    assert emulator.find(target, static=True) is None
    assert "qemu-aarch64" in emulator.why_not(target) and "apt install qemu-user" in emulator.why_not(target)


def test_the_emulated_cpu_sees_itself_in_proc_cpuinfo_and_not_the_host() -> None:
    assert "asimddp" in emulator._cpuinfo(config.load_target("rk3588"))
    assert "asimddp" not in emulator._cpuinfo(config.load_target("raspberrypi4"))
    assert "vfpv4" in emulator._cpuinfo(config.load_target("linux-armhf"))

"""The whole harness with its real engines under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

The engines' own shared libraries are not instrumented; ncnn is compiled along, so it is. The null engine and the unit
tests run under the same sanitizers in test_cpp_runtime.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgepack import harness
from tests.conftest import ROOT, missing, need
from tests.integration.native import ASAN, TSAN, Native, done, run

BUILDS = [("onnxruntime", ASAN), ("tflite", ASAN), ("ncnn", ASAN), ("onnxruntime", TSAN), ("tflite", TSAN)]


@pytest.mark.parametrize(("engine", "sanitize"), BUILDS, ids=["-".join(build) for build in BUILDS])
def test_every_command_of_a_real_engine_runs_clean(
    native: Native, tiny_bundle: Path, tmp_path: Path, engine: str, sanitize: str
) -> None:
    """All commands, bench also with two variants that take turns: right outputs, and no sanitizer speaks."""
    program = native.program(engine, sanitize)
    variant, golden = tiny_bundle / "variants" / f"{engine}-fp32", tiny_bundle / "golden"
    for words in (
        ["info"],
        ["self-test", "--golden", golden],
        ["bench", "--golden", golden, "--threads", "2", "--variant", variant, "--warmup", "1", "--min-seconds", "0"],
        ["profile", "--golden", golden, "--runs", "3"],
        ["run", "--inputs", golden / "0", "--outputs", tmp_path],
    ):
        ran = run(program, words[0], "--variant", variant, *words[1:])
        assert not ran.sanitizer, ran.said
        assert ran.code == 0, ran.said
        assert ran.lines[-1]["status"] == "ok"
    assert (tmp_path / "out_0.npy").is_file()


def test_the_unit_tests_run_clean_under_the_thread_sanitizer(tmp_path: Path) -> None:
    """Among them threads with a handle each."""
    need("cmake", "apt install cmake")
    options = ["-DEDGEPACK_BACKEND=null", f"-DEDGEPACK_SANITIZE={TSAN}", "-DCMAKE_BUILD_TYPE=Debug"]
    done(["cmake", "-S", ROOT / "cpp_runtime", "-B", tmp_path, *options])
    done(["cmake", "--build", tmp_path, "--parallel", str(os.cpu_count() or 1)])
    said = done(["ctest", "--test-dir", tmp_path, "--output-on-failure"])
    assert "100% tests passed" in said and " threads " in said


def test_clang_tidy_finds_nothing_in_the_ncnn_backend(native: Native) -> None:
    """`make tidy` leaves this one file out, because it needs ncnn's headers."""
    tidy = harness.program("clang-tidy")
    if tidy is None:
        missing("clang-tidy is neither on PATH nor in this environment (make setup installs it)")
    home = native.program("ncnn", ASAN).parent.parent
    source = next((home / "ncnn").rglob("net.h")).parent
    flags = [line for line in (ROOT / "cpp_runtime" / "compile_flags.txt").read_text().splitlines() if line[:2] != "-I"]
    own = [f"-I{ROOT / 'cpp_runtime' / name}" for name in ("include", "src", "backends")]
    system = ["-isystem", source, "-isystem", home / "build" / "ncnn" / "src"]
    done([tidy, "--quiet", ROOT / "cpp_runtime" / "backends" / "ncnn.cpp", "--", *flags, *own, *system])

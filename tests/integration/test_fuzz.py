"""libFuzzer on everything in cpp_runtime that reads bytes which others wrote, under ASan and UBSan.

A minute in all by default, which only guards against what is easy to find; `make fuzz SECONDS=3600` looks longer. What
is found is left in the corpus, where ctest replays it with any compiler from then on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, missing, need
from tests.integration.native import ASAN, done

CORPUS = ROOT / "cpp_runtime" / "tests" / "fuzz" / "corpus"
TARGETS = sorted(path.name for path in CORPUS.iterdir())
SECONDS = float(os.environ.get("EDGEPACK_FUZZ_SECONDS", "60")) / len(TARGETS)


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cmake", "apt install cmake")
    clang = need("clang++", "apt install clang")
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "try.cpp").write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }')
    tried = subprocess.run(
        [clang, "-fsanitize=fuzzer,address", folder / "try.cpp", "-o", folder / "try"], capture_output=True, check=False
    )
    if tried.returncode != 0:
        missing("clang has no libFuzzer (apt install libclang-rt-dev)")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [
        "-DEDGEPACK_BACKEND=null",
        "-DEDGEPACK_FUZZ=ON",
        f"-DEDGEPACK_SANITIZE={ASAN}",
        "-DCMAKE_BUILD_TYPE=Debug",
    ]
    options += ["-DCMAKE_CXX_FLAGS_DEBUG=-O1", f"-DCMAKE_CXX_COMPILER={clang}"]
    done(["cmake", "-S", ROOT / "cpp_runtime", "-B", folder, *generator, *options])
    names = [f"fuzz_{name}" for name in TARGETS]
    done(["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1), "--target", *names])
    return folder / "tests" / "fuzz"


def test_no_bytes_make_a_reader_fail(fuzzers: Path, tmp_path: Path) -> None:
    """All targets, as many at a time as there are cores: no crash, no leak, no endless loop, no abort."""
    waiting, running, failed = list(TARGETS), {}, {}
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            name = waiting.pop()
            (tmp_path / name).mkdir()
            argv = [fuzzers / f"fuzz_{name}", tmp_path / name, CORPUS / name, f"-max_total_time={SECONDS:.0f}"]
            argv += ["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", f"-artifact_prefix={CORPUS / name}/found-"]
            with (tmp_path / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen([str(word) for word in argv], stderr=log, stdout=log)
        name, child = next(iter(running.items()))
        if child.wait() != 0:
            failed[name] = (tmp_path / f"{name}.log").read_text("utf-8", "replace")[-4000:]
        running.pop(name)

    assert failed == {}

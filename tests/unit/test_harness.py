"""A harness is built again when something that decides its bytes changed, and only then."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack import config, harness
from edgepack.harness import first_error
from edgepack.resources import data
from edgepack.types import Compiler, RuntimeSpec

SPEC = RuntimeSpec(backend="ncnn", version="1.0.1", cmake_args=("-DX=1",), digest="spec")
COMPILER = Compiler(toolchain="gnu", description="g++", digest="compiler", cmake_args=("-DCC=/here/gcc",), static=True)


def key(spec: RuntimeSpec = SPEC, target: str = "rk3588", compiler: Compiler = COMPILER, **changes: Any) -> object:
    return harness.key("ncnn", spec, replace(config.load_target(target), **changes), compiler)


def test_the_key_follows_the_engine_the_compiler_and_the_profile() -> None:
    keys = [
        key(),
        key(spec=replace(SPEC, digest="other")),
        key(spec=replace(SPEC, cmake_args=("-DX=2",))),
        key(compiler=replace(COMPILER, digest="newer")),
        key(compiler=replace(COMPILER, static=False)),
        key(libc_version="2.28"),
        key(cpu_features=("asimd",)),
        key(target="linux-riscv64"),
        key(spec=replace(SPEC, cpu_features=("asimdhp",))),
    ]
    assert all(keys.count(one) == 1 for one in keys)


def test_the_key_does_not_know_where_things_lie_nor_the_targets_name() -> None:
    elsewhere = replace(COMPILER, cmake_args=("-DCC=/there/gcc",), sysroot=Path("/there"), description="x")
    assert key() == key(compiler=elsewhere)
    assert key() == key(spec=replace(SPEC, libraries={"a": Path("/a")}))
    assert key() == key(name="another", description="profile", memory_mb=1)


def test_what_engines_share_is_made_once_for_a_compiler_and_a_size() -> None:
    rk3588 = config.load_target("rk3588")

    def core(compiler: Compiler = COMPILER, **changes: Any) -> object:
        return harness.core_key(replace(rk3588, **changes), compiler)

    assert core() == core(compiler=replace(COMPILER, cmake_args=("-DCC=/there/gcc",), description="x"))
    assert core() == core(name="raspberrypi5", cpu_features=("asimd",), libc_version="2.28")
    keys = [core(), core(size="small"), core(compiler=replace(COMPILER, digest="newer")), core(arch="riscv64")]
    assert all(keys.count(one) == 1 for one in keys)


def test_the_key_follows_the_runtimes_sources_but_not_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key()
    copy = tmp_path / "cpp_runtime"
    shutil.copytree(data("cpp_runtime"), copy)
    monkeypatch.setattr(harness, "data", lambda name: copy)
    assert key() == before
    (copy / "tests").mkdir(exist_ok=True)
    (copy / "tests" / "more.cpp").write_text("//")
    assert key() == before
    (copy / "src" / "main.cpp").write_text("//")
    assert key() != before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "[1/2] Building\n/x/c++ -Werror -c error.cpp\na.cpp:3:1: error: expected ';'\nmore",
            "a.cpp:3:1: error: expected ';'",
        ),
        ("ld: a.o: undefined reference to `f'\ncollect2: error: ld returned 1", "ld: a.o: undefined reference to `f'"),
        (
            "-- ok\nCMake Error at CMakeLists.txt:9 (message):\n  NCNN_SOURCE_DIR holds no\n  src/net.h\n\nCall Stack",
            "CMake Error at CMakeLists.txt:9 (message): NCNN_SOURCE_DIR holds no src/net.h",
        ),
        (
            "g++: fatal error: Killed signal terminated program cc1plus",
            "g++: fatal error: Killed signal terminated program cc1plus",
        ),
        ("only talk\nlast words", "last words"),
        ("", "it said nothing"),
    ],
)
def test_the_line_that_says_what_went_wrong_is_found(text: str, line: str) -> None:
    assert first_error(text) == line

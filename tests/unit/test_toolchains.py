"""A compiler is chosen that the target's libc can take, and zig compiles what GCC's flags ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack import config, converter, plugins, toolchains
from edgepack.errors import ToolMissing
from edgepack.toolchains import gnu
from edgepack.toolchains.android_ndk import AndroidNdk
from edgepack.toolchains.cmake_file import CMakeFile
from edgepack.toolchains.gnu import Gnu
from edgepack.toolchains.zig import Zig
from edgepack.toolchains.zig_wrapper import translate
from edgepack.types import Compiler, Target

ARCHIVES = ("libc.a", "libstdc++.a")


def with_gnu(monkeypatch: pytest.MonkeyPatch, libc: str, archives: tuple[str, ...] = ARCHIVES) -> None:
    found = gnu._Found(told="g++ 12.2.0", number="12.2.0", libc=libc, digest="d", archives=archives)
    monkeypatch.setattr(gnu, "_examine", lambda cxx: found)
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/bin/{name}")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("march", "mcpu"),
    [
        ("armv8-a", "generic+v8a"),
        ("armv8.2-a+fp16", "generic+v8_2a+fullfp16"),
        ("armv8.2-a+fp16+dotprod", "generic+v8_2a+fullfp16+dotprod"),
        ("armv8.4-a+i8mm", "generic+v8_4a+i8mm"),
        ("armv8.6-a+sve2+bf16", "generic+v8_6a+sve2+bf16"),
        ("rv64gcv_zfh", "generic_rv64+m+a+f+d+c+v+zfh"),
    ],
)
def test_zig_gets_a_cpu_where_gcc_gets_an_architecture(march: str, mcpu: str) -> None:
    assert translate(["-O2", f"-march={march}", "-c"], "") == [f"-mcpu={mcpu}", "-O2", "-c"]


def test_zig_gets_the_profiles_cpu_where_nothing_else_is_asked_and_the_last_architecture_wins() -> None:
    assert translate(["-c"], "cortex_a7") == ["-mcpu=cortex_a7", "-c"]
    assert translate(["-c"], "") == ["-c"]
    assert translate(["-march=armv8-a", "-march=armv8.2-a+fp16"], "") == ["-mcpu=generic+v8_2a+fullfp16"]


def test_flags_that_zig_refuses_and_its_triple_says_already_are_left_out() -> None:
    given = ["-mfpu=neon-vfpv4", "-mfloat-abi=hard", "-static-libstdc++", "-static-libgcc", "-mavx2", "a.cpp"]
    assert translate(given, "") == ["-mavx2", "a.cpp"]


@pytest.mark.parametrize(("libc", "need"), [("2.31", "2.31"), ("2.34", "2.34"), ("2.36", "2.35"), ("2.41", "2.38")])
def test_programs_need_less_than_the_libc_that_they_are_linked_against(libc: str, need: str) -> None:
    assert gnu.needed(libc) == need


def test_gnu_makes_static_programs_for_any_libc_and_dynamic_ones_only_down_to_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_gnu(monkeypatch, "2.36")
    old, new = config.load_target("linux-aarch64"), config.load_target("rk3588")
    assert old.libc_version == "2.31" and new.libc_version == "2.36"
    assert Gnu().locate(old, static=False) is None
    assert Gnu().locate(new, static=False) is not None
    static = Gnu().locate(old, static=True)
    assert static is not None and static.static
    assert Gnu().locate(config.load_target("android-arm64"), static=False) is None
    assert Gnu().locate(config.load_target("android-arm64"), static=True) is not None


def test_a_gnu_compiler_without_the_static_libraries_that_we_link_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = config.load_target("rk3588")
    with_gnu(monkeypatch, "2.36", archives=("libstdc++.a",))
    assert Gnu().locate(target, static=True) is None
    assert Gnu().locate(target, static=False) is not None
    with_gnu(monkeypatch, "2.36", archives=())
    assert Gnu().locate(target, static=False) is None


def test_a_newer_compiler_or_other_libraries_to_link_change_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    target = config.load_target("rk3588")
    digests = set()
    for told, linked in (("g++ 12.2.0", "a"), ("g++ 13.1.0", "a"), ("g++ 12.2.0", "b")):
        with_gnu(monkeypatch, "2.36")
        found = gnu._Found(told=told, number="", libc="2.36", digest=linked, archives=ARCHIVES)
        monkeypatch.setattr(gnu, "_examine", lambda cxx, found=found: found)
        compiler = Gnu().locate(target, static=True)
        assert compiler is not None
        digests.add(compiler.digest)
    assert len(digests) == 3


def test_a_compiler_is_asked_once_and_again_when_it_or_its_libraries_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler, library = tmp_path / "g++", tmp_path / "libc.a"
    compiler.write_text("1")
    library.write_text("1")
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    asked = []

    def ask(cxx: str) -> tuple[gnu._Found, list[Path]]:
        asked.append(cxx)
        return gnu._Found(told=f"g++ {len(asked)}", number="", libc="2.36", digest=""), [library]

    monkeypatch.setattr(gnu, "_ask", ask)
    examine = gnu._examine.__wrapped__  # as in another process: without what this one remembers
    assert examine(str(compiler)).told == examine(str(compiler)).told == "g++ 1"
    library.write_text("22")
    assert examine(str(compiler)).told == "g++ 2"
    for note in (tmp_path / "cache" / "toolchains").iterdir():
        note.write_text("{")
    assert examine(str(compiler)).told == "g++ 3"


def test_armhf_gets_neon_only_where_the_profile_promises_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gnu(monkeypatch, "2.36")
    target = config.load_target("linux-armhf")
    compiler = Gnu().locate(target, static=True)
    assert compiler is not None and any("neon-vfpv4" in a for a in compiler.cmake_args)
    compiler = Gnu().locate(replace(target, cpu_features=("vfp", "vfpv3")), static=True)
    assert compiler is not None and not any("neon" in a for a in compiler.cmake_args)


def test_zig_links_dynamic_programs_for_the_profiles_own_libc_and_static_ones_with_musl(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(converter, "prepared", lambda script: True)
    target = config.load_target("linux-aarch64")
    dynamic, static = Zig().locate(target, static=False), Zig().locate(target, static=True)
    assert dynamic is not None and "aarch64-linux-gnu.2.31" in dynamic.description
    assert static is not None and "aarch64-linux-musl" in static.description
    assert dynamic.digest != static.digest
    armhf = Zig().locate(config.load_target("linux-armhf"), static=True)
    assert armhf is not None and "arm-linux-musleabihf" in armhf.description


def test_zig_is_not_offered_where_it_would_have_to_be_fetched_but_must_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(converter, "prepared", lambda script: False)
    monkeypatch.setattr(converter, "environment", lambda script: pytest.fail("locate must not fetch"))
    target = config.load_target("linux-aarch64")
    monkeypatch.setenv("EDGEPACK_OFFLINE", "1")
    assert Zig().locate(target, static=True) is None
    monkeypatch.delenv("EDGEPACK_OFFLINE")
    assert Zig().locate(target, static=True) is not None


def test_the_users_own_toolchain_file_is_used_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.cmake"
    target = replace(config.load_target("rk3588"), cmake_toolchain_file=str(path))
    with pytest.raises(ToolMissing, match=r"mine\.cmake"):
        CMakeFile().locate(target, static=True)
    path.write_text("set(CMAKE_SYSTEM_NAME Linux)")
    compiler = CMakeFile().locate(target, static=True)
    assert compiler is not None and f"-DCMAKE_TOOLCHAIN_FILE={path}" in compiler.cmake_args
    assert CMakeFile().locate(config.load_target("rk3588"), static=True) is None


def test_the_ndk_serves_android_only_and_a_wrong_path_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    android = config.load_target("android-arm64")
    assert AndroidNdk().locate(config.load_target("rk3588"), static=True) is None
    with pytest.raises(ToolMissing, match="ANDROID_NDK_HOME"):
        AndroidNdk().locate(android, static=True)
    (tmp_path / "build" / "cmake").mkdir(parents=True)
    (tmp_path / "build" / "cmake" / "android.toolchain.cmake").touch()
    compiler = AndroidNdk().locate(android, static=True)
    assert compiler is not None and "-DANDROID_ABI=arm64-v8a" in compiler.cmake_args


class Fake:
    """A toolchain that finds a compiler or not."""

    version = "1"

    def __init__(self, name: str, found: bool) -> None:
        self.name, self.found = name, found

    def locate(self, target: Target, *, static: bool) -> Compiler | None:
        return (
            Compiler(toolchain=self.name, description="", digest="", cmake_args=(), static=static)
            if self.found
            else None
        )

    def advice(self, target: Target) -> str:
        return f"Install {self.name}."


def with_toolchains(monkeypatch: pytest.MonkeyPatch, **found: bool) -> None:
    fakes: dict[str, Any] = {name: Fake(name, there) for name, there in found.items()}
    names = plugins.names
    monkeypatch.setattr(plugins, "names", lambda group: sorted(fakes) if group == "toolchains" else names(group))
    monkeypatch.setattr(plugins, "load", lambda group, name: fakes[name])


def test_the_users_own_comes_first_and_a_download_last(monkeypatch: pytest.MonkeyPatch) -> None:
    target = config.load_target("rk3588")
    order = ["cmake_file", "android_ndk", "gnu", "zig", "another"]
    for number, name in enumerate(order):
        with_toolchains(monkeypatch, **{other: other in order[number:] for other in order})
        assert toolchains.select(target, "ncnn").toolchain == name


def test_only_ncnn_is_linked_statically(monkeypatch: pytest.MonkeyPatch) -> None:
    with_toolchains(monkeypatch, gnu=True)
    target = config.load_target("rk3588")
    assert toolchains.select(target, "ncnn").static
    assert not toolchains.select(target, "onnxruntime").static


def test_a_profile_may_ask_for_a_dynamic_ncnn(monkeypatch: pytest.MonkeyPatch) -> None:
    with_toolchains(monkeypatch, gnu=True)
    target = replace(config.load_target("rk3588"), static=False)
    assert not toolchains.select(target, "ncnn").static


def test_without_a_compiler_every_toolchain_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_toolchains(monkeypatch, gnu=False, zig=False)
    with pytest.raises(ToolMissing) as caught:
        toolchains.select(config.load_target("linux-aarch64"), "onnxruntime")
    assert "glibc 2.31" in caught.value.message and "onnxruntime" in caught.value.message
    assert "Install gnu." in caught.value.hint and "Install zig." in caught.value.hint

"""A build folder that is used again keeps what a good build left there, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack import build_folder


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cpp_runtime"
    (folder / "src").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "src" / "main.cpp").write_text("int main() {}")
    return folder


OBJECTS = ("main.cpp.o", "ncnn/src/net.cpp.o", "ncnn/ncnn.dir/layer.cpp.o", "ncnn/libncnn.a", "CMakeCache.txt")


def a_good_build(runtime: Path) -> Path:
    with build_folder.locked("key", runtime) as folder:
        for name in OBJECTS:
            path = folder.build / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("compiled")
        (folder.build / "build.ninja").write_text("rules")
        folder.trust()
    return folder.build


def left(runtime: Path) -> set[str]:
    with build_folder.locked("key", runtime) as folder:
        return {name for name in OBJECTS if (folder.build / name).is_file()}


def test_objects_of_a_good_build_are_kept_but_for_the_list_of_layers(runtime: Path) -> None:
    a_good_build(runtime)

    assert left(runtime) == {*OBJECTS} - {"ncnn/ncnn.dir/layer.cpp.o"}


def test_a_damaged_object_and_one_of_a_killed_build_are_not_believed(runtime: Path) -> None:
    build = a_good_build(runtime)
    (build / "ncnn" / "src" / "net.cpp.o").write_text("")
    (build / "ncnn" / "src" / "half.cpp.o").write_text("half")

    assert "ncnn/src/net.cpp.o" not in left(runtime)
    assert not (build / "ncnn" / "src" / "half.cpp.o").exists()
    assert (build / "build.ninja").is_file()


def test_without_a_note_nothing_is_believed(runtime: Path) -> None:
    build = a_good_build(runtime)
    (build.parent / build_folder.NOTE).write_text("{")

    assert left(runtime) == set()


def test_changed_sources_of_ours_leave_ncnns_objects(runtime: Path) -> None:
    build = a_good_build(runtime)
    (runtime / "src" / "main.cpp").write_text("int main() { return 1; }")

    assert left(runtime) == {"ncnn/src/net.cpp.o", "ncnn/libncnn.a"}
    assert "return 1" in (build.parent / "runtime" / "src" / "main.cpp").read_text()
    assert not (build.parent / "runtime" / "tests").exists()

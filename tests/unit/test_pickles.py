"""Naming what a pickle would import, without unpickling it."""

from __future__ import annotations

import collections
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.importers import pickles

canary: list[str] = []


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def named(content: bytes) -> set[str]:
    return pickles.globals_of(io.BytesIO(content))


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_function_that_a_pickle_calls_is_named_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    content = pickle.dumps({"a": [Runs(os.system, f"touch {proof}")]}, protocol)
    assert "posix.system" in named(content)
    assert not proof.exists()


def test_plain_data_names_nothing() -> None:
    assert named(pickle.dumps({"a": [1, 2.5, "os\nsystem", (None, True)], "b": b"x"})) == set()


def test_two_objects_of_one_class_are_named_through_the_memo() -> None:
    content = pickle.dumps([Runs(os.system, "true"), "posix", "system", Runs(os.getcwd), Runs(os.system, "false")])
    assert named(content) == {"posix.system", "posix.getcwd"}


def test_strings_that_are_pushed_and_popped_do_not_hide_the_name() -> None:
    content = (
        b"\x80\x04\x8c\x05posix\x8c\x06system"  # what is really called
        b"\x8c\x0bcollections\x8c\x0bOrderedDict00"  # pushed and popped again
        b"\x93\x8c\x04true\x85R."
    )
    assert named(content) == {"posix.system"}


def test_a_mark_that_is_popped_does_not_hide_the_name() -> None:
    content = b"\x80\x04\x8c\x05posix\x8c\x06system(\x8c\x0bcollections\x8c\x0bOrderedDict1\x93\x8c\x04true\x85R."
    assert named(content) == {"posix.system"}


def test_a_name_that_is_made_at_run_time_is_reported_as_such() -> None:
    # The module's name comes out of a call, so no reading of the pickle can tell it.
    content = b"\x80\x04cbuiltins\nstr\n\x8c\x02os\x85R\x8c\x06system\x93\x8c\x04true\x85R."
    assert named(content) == {"builtins.str", pickles.UNNAMED}


def test_an_extension_code_is_reported() -> None:
    assert named(b"\x80\x02\x82\x05)R.") == {"(copyreg extension 5)"}


def test_what_a_state_dict_needs_is_not_offending(tmp_path: Path) -> None:
    content = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n)Ru."
    path = zipped(tmp_path / "w.pt", {"archive/data.pkl": content, "archive/data/0": b"\x80\x02 numbers"})
    assert pickles.offending(path) == []


def test_a_pickle_in_a_zip_in_a_zip_is_found(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Runs(os.system, "true")))
    path = zipped(tmp_path / "m.pt2", {"m/models/model.json": b"{}", "m/data/sample_inputs/model.pt": inner.getvalue()})
    assert pickles.offending(path) == ["posix.system"]


def test_zips_nested_without_end_are_reported(tmp_path: Path) -> None:
    content = pickle.dumps(1)
    for _ in range(6):
        outer = io.BytesIO()
        with zipfile.ZipFile(outer, "w") as archive:
            archive.writestr("a/data.pkl", content)
        content = outer.getvalue()
    (tmp_path / "deep.pt").write_bytes(content)
    assert pickles.offending(tmp_path / "deep.pt") == ["(a zip nested too deep)"]


def test_a_pickle_under_a_harmless_name_is_found(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.pt2", {"m/data/weights/weight_0": pickle.dumps(Runs(os.system, "true"))})
    assert pickles.offending(path) == ["posix.system"]


def test_every_pickle_of_the_legacy_format_is_read(tmp_path: Path) -> None:
    row = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2)]
    row.append(pickle.dumps(collections.OrderedDict(a=Runs(os.system, "true")), 2))
    (tmp_path / "legacy.pt").write_bytes(b"".join(row) + b"\x00\x01 numbers")
    assert pickles.offending(tmp_path / "legacy.pt") == ["posix.system"]


def test_a_zip_that_starts_as_a_pickle_is_read_as_the_pickle_that_torch_would_load(tmp_path: Path) -> None:
    path = tmp_path / "polyglot.pt"
    zipped(path, {"archive/data.pkl": pickle.dumps({})})
    path.write_bytes(pickle.dumps(Runs(os.system, "true"), 2) + path.read_bytes())
    assert pickles.offending(path) == ["posix.system"]


def test_a_huge_pickle_in_a_small_zip_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as member:
        for _ in range(pickles.LARGEST // (1 << 20) + 1):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    assert pickles.offending(path) == [f"(a pickle of {pickles.LARGEST + (1 << 20):,} bytes)"]


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x02}q", b"not a pickle", b"\x80\x02.", b"PK\x03\x04 cut"])
def test_what_is_no_whole_pickle_is_called_damaged_or_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    try:
        assert pickles.offending(tmp_path / "x.pt") == []
    except pickles.Damaged as error:
        assert str(error)


def test_a_tar_is_called_damaged_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        member = tarfile.TarInfo("pickle")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(pickles.Damaged):
        pickles.offending(tmp_path / "old.pt")


@given(st.binary(max_size=300))
def test_any_bytes_end_in_names_or_damaged(content: bytes) -> None:
    try:
        assert isinstance(named(b"\x80\x04" + content), set)
    except pickles.Damaged:
        pass

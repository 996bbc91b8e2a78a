"""What the PyTorch importer does before torch runs."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgepack import converter
from edgepack.errors import ModelError, UsageError
from edgepack.importers import factory
from edgepack.importers.onnx import OnnxImporter
from edgepack.importers.torch import TorchImporter

OPTIONS: dict[str, Any] = {"weights": None, "python": None, "dtypes": {}, "pythonpath": []}


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(f"archive/{name}", content)
    return path


def state_dict(path: Path, content: object = None) -> Path:
    return archive(path, **{"data.pkl": pickle.dumps(content or collections.OrderedDict(a=1), 2), "data/0": b"1234"})


def torchscript(path: Path) -> Path:
    return archive(path, **{"data.pkl": b"x", "constants.pkl": b"x", "code/__torch__.py": b"class M: pass"})


def pt2(path: Path, sample: bytes = b"") -> Path:
    members = {"archive_format": b"pt2", "models/model.json": b"{}", "data/weights/weight_0": b"1234"}
    return archive(path, **members, **({"data/sample_inputs/model.pt": sample} if sample else {}))


def refusal(source: Path | str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as refused:
        TorchImporter().digest(str(source), {**OPTIONS, **options})
    assert refused.value.hint
    return refused.value


@pytest.mark.parametrize("name", ["m.pt", "m.bin"])
def test_archives_are_recognised_by_content_under_any_name(tmp_path: Path, name: str) -> None:
    for make in (torchscript, pt2, state_dict):
        path = str(make(tmp_path / name))
        assert TorchImporter().accepts(path)
        assert not OnnxImporter().accepts(path)


def test_a_factory_is_accepted_and_a_missing_file_or_another_format_is_not(tmp_path: Path) -> None:
    assert TorchImporter().accepts("package.module:factory")
    for source in ("missing.pt", "package.module", "a b:c", "package:", str(tmp_path)):
        assert not TorchImporter().accepts(source)
    (tmp_path / "m.bin").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(64))
    assert not TorchImporter().accepts(str(tmp_path / "m.bin"))


@pytest.mark.parametrize("content", [b"", b"hello, this is a note", b"\x1c\x00\x00\x00TFL3" + bytes(64)])
def test_a_mislabelled_file_is_refused_with_what_it_looks_like(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    error = refusal(path)
    assert error.id == "EP302"
    assert "not a PyTorch model" in error.message


@pytest.mark.parametrize("tenth", range(1, 10))
def test_an_archive_cut_at_any_tenth_is_refused_as_cut_off(tmp_path: Path, tenth: int) -> None:
    whole = torchscript(tmp_path / "whole.pt").read_bytes()
    path = tmp_path / "model.pt"
    path.write_bytes(whole[: len(whole) * tenth // 10])
    assert "cut off or damaged" in refusal(path).message


def test_a_state_dict_as_a_source_is_refused_with_the_command_that_uses_it(tmp_path: Path) -> None:
    path = state_dict(tmp_path / "my weights.pth")
    error = refusal(path)
    assert error.id == "EP309"
    assert "weights without a model" in error.message
    assert f"--weights '{path}'" in error.hint


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_named_and_never_unpickled(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Runs(f"touch {canary}"), protocol))
    error = refusal(path)
    assert error.id == "EP309"
    assert "posix.system" in error.message
    assert not canary.exists()


def test_weights_that_run_code_are_refused_before_torch_sees_them(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = state_dict(tmp_path / "w.pt", {"a": Runs(f"touch {canary}")})
    error = refusal("os:getcwd", weights=path)
    assert error.id == "EP309"
    assert "posix.system" in error.message
    assert not canary.exists()


def test_a_pt2_archive_with_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    inner = state_dict(tmp_path / "inner.pt", {"a": Runs("true")}).read_bytes()
    error = refusal(pt2(tmp_path / "m.pt2", inner))
    assert error.id == "EP309"
    assert "posix.system" in error.message
    TorchImporter().digest(str(pt2(tmp_path / "good.pt2")), OPTIONS)


def test_a_pickle_cut_off_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps(list(range(1000)), 2)[:100])
    assert refusal(path).id == "EP303"


def test_names_from_a_pickle_are_shown_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"\x80\x04\x8c\x06evil\n\x1b\x8c\x01f\x93.")
    assert "evil\\n\\x1b.f" in refusal(path).message


def test_weights_beside_a_file_are_a_usage_error(tmp_path: Path) -> None:
    path = torchscript(tmp_path / "m.pt")
    with pytest.raises(UsageError, match="--weights"):
        TorchImporter().digest(str(path), {**OPTIONS, "weights": path})


def test_an_interpreter_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--python"):
        TorchImporter().digest(str(torchscript(tmp_path / "m.pt")), {**OPTIONS, "python": tmp_path / "python"})


def test_missing_input_shapes_are_refused_before_torch_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*args: Any, **options: Any) -> None:
        raise AssertionError("no converter may run")

    monkeypatch.setattr(converter, "convert", unexpected)
    out = tmp_path / "step" / "files"
    out.mkdir(parents=True)
    with pytest.raises(ModelError, match="doesn't say what it takes") as refused:
        TorchImporter().to_onnx(str(torchscript(tmp_path / "m.pt")), {}, OPTIONS, out)
    assert refused.value.id == "EP305"
    assert "--input" in refused.value.hint


def test_both_scripts_run_one_after_the_other_on_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def convert(script: str, request: Mapping[str, Any], out: Path, **how: Any) -> dict[str, Any]:
        calls.append((script, dict(request)))
        return {"notes": []}

    monkeypatch.setattr(converter, "convert", convert)
    source = torchscript(tmp_path / "m.pt")
    out = tmp_path / "step" / "files"
    out.mkdir(parents=True)
    options = {**OPTIONS, "dtypes": {"b": "int64"}}
    TorchImporter().to_onnx(str(source), {"a": (1, 3), "b": (1,)}, options, out)
    (first, exporting), (second, fixing) = calls
    assert (first, second) == ("torch_to_onnx", "import_onnx")
    assert exporting["inputs"] == [
        {"name": "a", "shape": [1, 3], "dtype": "float32"},
        {"name": "b", "shape": [1], "dtype": "int64"},
    ]
    assert (exporting["kind"], exporting["mode"]) == ("torchscript", "export")
    assert Path(exporting["source"]) != source
    assert fixing["shapes"] == {"a": [1, 3], "b": [1]}
    assert sorted(p.name for p in out.parent.iterdir()) == ["files"]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mymodel.py").write_text("def build():\n    from layers import block\n    return block()\n")
    (folder / "layers.py").write_text("import json\ndef block(): return 1\n")
    (folder / "unrelated.py").write_text("x = 1\n")
    monkeypatch.chdir(folder)
    return folder


def digest_of(source: str = "mymodel:build", **options: Any) -> str:
    return TorchImporter().digest(source, {**OPTIONS, **options})


def test_a_change_in_code_that_the_factory_imports_changes_its_digest(code: Path) -> None:
    before = digest_of()
    (code / "unrelated.py").write_text("x = 2\n")
    assert digest_of() == before
    (code / "layers.py").write_text("import json\ndef block(): return 2\n")
    assert digest_of() != before


def test_another_factory_or_other_weights_change_the_digest(code: Path, tmp_path: Path) -> None:
    one, two = state_dict(tmp_path / "1.pt"), state_dict(tmp_path / "2.pt", {"b": 2})
    found = {digest_of(), digest_of("mymodel:other"), digest_of(weights=one), digest_of(weights=two)}
    assert len(found) == 4


def test_an_installed_package_counts_whole_and_its_imports_do_not(code: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "nets" / "sub").mkdir(parents=True)
    (site / "nets" / "__init__.py").write_text("import other\n")
    (site / "nets" / "sub" / "layer.py").write_text("a = 1\n")
    (site / "other.py").write_text("b = 1\n")
    before = digest_of("nets.sub:make", pythonpath=[str(site)])
    (site / "other.py").write_text("b = 2\n")
    assert digest_of("nets.sub:make", pythonpath=[str(site)]) == before
    (site / "nets" / "sub" / "layer.py").write_text("a = 2\n")
    assert digest_of("nets.sub:make", pythonpath=[str(site)]) != before


def test_an_editable_install_is_found_through_its_path_file(code: Path, tmp_path: Path) -> None:
    site, checkout = tmp_path / "site", tmp_path / "checkout"
    site.mkdir()
    checkout.mkdir()
    (site / "nets.pth").write_text(f"# a comment\nimport os\n{checkout}\n")
    (checkout / "nets.py").write_text("a = 1\n")
    before = digest_of("nets:make", pythonpath=[str(site)])
    (checkout / "nets.py").write_text("a = 2\n")
    assert digest_of("nets:make", pythonpath=[str(site)]) != before


def test_code_that_does_not_parse_is_left_for_the_child_to_report(code: Path) -> None:
    (code / "mymodel.py").write_text("def build(:\n")
    assert digest_of()


def test_finding_code_imports_none_of_it(code: Path) -> None:
    (code / "mymodel.py").write_text("raise SystemExit('imported')\n")
    assert factory.digest("mymodel:build", code, [])

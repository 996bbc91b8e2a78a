"""What the ONNX importer does before any tool runs."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepack import converter
from edgepack.errors import EdgepackError, ModelError, ToolFailed, ToolMissing, UsageError
from edgepack.importers import staging
from edgepack.importers.onnx import OnnxImporter
from edgepack.importers.sniff import SUPPORTED, Kind, kind_of
from edgepack.types import Model, TensorSpec

OPTIONS: dict[str, Any] = {"weights": None, "python": None, "dtypes": {}, "pythonpath": []}


def save(path: Path, *, side: str | None = None, ir_version: int = 8) -> Path:
    """A model that adds its eight weights, which lie in the file `side` when that is named."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])
    weights = onnx.numpy_helper.from_array(np.arange(8, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    if side is None:
        onnx.save(model, path)
    else:
        (path.parent / side).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path, save_as_external_data=True, location=side, size_threshold=0)
    return path


class Tools:
    """Stands in for `converter.convert`; remembers requests and what the child would see."""

    def __init__(self, answer: dict[str, Any] | Exception | None = None) -> None:
        self.answer = answer if answer is not None else {"notes": []}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.seen: dict[str, bytes] = {}

    def __call__(self, script: str, request: Mapping[str, Any], out: Path, **how: Any) -> dict[str, Any]:
        self.calls.append((script, dict(request)))
        path = Path(request.get("model") or request["files"][0])
        self.seen = {str(p.relative_to(path.parent)): p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    fake = Tools()
    monkeypatch.setattr(converter, "convert", fake)
    return fake


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "step" / "files"
    folder.mkdir(parents=True)
    return folder


def zip_of(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


BAD = {
    "empty": (b"", "EP302", "is empty (0 bytes), not an ONNX model"),
    "one byte": (b"\x08", "EP302", "(1 byte) is not an ONNX model"),
    "text": (b"hello, this is a note\n", "EP302", "this looks like a text file"),
    "page": (b"<!DOCTYPE html><html><body>log in</body></html>", "EP302", "this looks like a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "EP302", "Git LFS pointer"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "EP302", "this looks like a TFLite model"),
    "ort": (b"\x1c\x00\x00\x00ORTM" + bytes(64), "EP302", "this looks like an ONNX Runtime model"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "EP302", "this looks like an HDF5 file"),
    "zip": (zip_of({"a": b"1"}), "EP302", "this looks like a zip archive"),
    "torchscript": (
        zip_of({"m/constants.pkl": b"x", "m/data.pkl": b"x", "m/code/a.py": b"x"}),
        "EP302",
        "this looks like a TorchScript archive",
    ),
    "state dict": (zip_of({"m/data.pkl": b"x"}), "EP302", "this looks like a PyTorch pickle"),
    "pickle": (pickle.dumps({"a": 1}), "EP302", "this looks like a Python pickle"),
    "keras": (zip_of({"config.json": b"{}", "metadata.json": b"{}"}), "EP302", "this looks like a Keras model"),
    "safetensors": (b"\x10" + bytes(7) + b'{"a":1}' + bytes(64), "EP302", "this looks like a safetensors file"),
    "noise": (bytes(range(255, 100, -1)), "EP302", "no other model format"),
    "protobuf of something": (b"\x08\xff\xff\xff" * 20, "EP303", "protobuf wire error"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_no_onnx_model_is_refused_with_what_it_looks_like(tmp_path: Path, what: str) -> None:
    content, expected, text = BAD[what]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    importer = OnnxImporter()
    assert importer.accepts(str(path)) == (kind_of(path) not in SUPPORTED - {Kind.PROTOBUF})
    with pytest.raises(ModelError) as refused:
        importer.digest(str(path), OPTIONS)
    assert refused.value.id == expected
    assert text in refused.value.message
    assert refused.value.hint
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_model_cut_at_any_tenth_is_refused_as_cut_off(tmp_path: Path, tenth: int) -> None:
    whole = save(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: len(whole) * tenth // 10])
    with pytest.raises(ModelError) as refused:
        OnnxImporter().digest(str(path), OPTIONS)
    assert "cut off" in refused.value.message or "is not an ONNX model" in refused.value.message


def test_a_directory_is_a_usage_error_that_says_what_to_give(tmp_path: Path) -> None:
    assert not OnnxImporter().accepts(str(tmp_path))
    with pytest.raises(UsageError, match="is a directory") as refused:
        OnnxImporter().digest(str(tmp_path), OPTIONS)
    assert "file inside" in refused.value.hint


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model.onnx")

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match=r"can't be read: Permission denied"):
        OnnxImporter().digest(str(path), OPTIONS)


def test_an_onnx_file_is_recognised_under_any_name(tmp_path: Path) -> None:
    path = save(tmp_path / "model.bin")
    assert OnnxImporter().accepts(str(path))
    (tmp_path / "notes.bin").write_bytes(b"hello, this is a note")
    assert not OnnxImporter().accepts(str(tmp_path / "notes.bin"))
    assert not OnnxImporter().accepts("package.module:factory")


def test_the_digest_is_of_the_content_not_of_the_name(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a.onnx"), save(tmp_path / "b.onnx")
    assert OnnxImporter().digest(str(one), OPTIONS) == OnnxImporter().digest(str(two), OPTIONS)


def test_a_changed_byte_in_a_side_file_changes_the_digest(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", side="data/w.bin")
    importer = OnnxImporter()
    before = importer.digest(str(path), OPTIONS)
    content = bytearray((tmp_path / "data" / "w.bin").read_bytes())
    content[3] ^= 1
    (tmp_path / "data" / "w.bin").write_bytes(content)
    assert OnnxImporter().digest(str(path), OPTIONS) != before


@pytest.mark.parametrize(("option", "flag"), [("weights", "--weights"), ("python", "--python")])
def test_pytorchs_options_are_refused_for_an_onnx_file(tmp_path: Path, option: str, flag: str) -> None:
    path = save(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=flag):
        OnnxImporter().digest(str(path), {**OPTIONS, option: Path("x")})


def test_the_converter_sees_a_copy_with_its_side_files_that_is_gone_afterwards(
    tmp_path: Path, out: Path, tools: Tools
) -> None:
    path = save(tmp_path / "source" / "model.onnx", side="data/w.bin")
    (tmp_path / "source" / "private.txt").write_text("not part of the model")
    OnnxImporter().to_onnx(str(path), {"x": (8,)}, {**OPTIONS, "dtypes": {"x": "float32"}}, out)
    [(script, request)] = tools.calls
    assert script == "import_onnx"
    assert Path(request["model"]).parent != path.parent
    assert tools.seen == {
        "model.onnx": path.read_bytes(),
        "data/w.bin": (path.parent / "data" / "w.bin").read_bytes(),
    }
    assert (request["shapes"], request["dtypes"], request["name"]) == ({"x": [8]}, {"x": "float32"}, "model.onnx")
    assert sorted(p.name for p in out.parent.iterdir()) == ["files"]


def test_a_file_that_changes_between_digest_and_copy_is_noticed(
    tmp_path: Path, out: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "model.onnx", side="w.bin")
    copy = staging.copy

    def swapped(stream: Any, target: Path) -> None:
        (tmp_path / "w.bin").write_bytes(b"x" * 32)
        copy(stream, target)

    monkeypatch.setattr(staging, "copy", swapped)
    with pytest.raises(ModelError, match="changed while it was read"):
        OnnxImporter().to_onnx(str(path), {}, OPTIONS, out)
    assert tools.calls == []


def test_a_link_that_replaces_a_side_file_after_the_check_is_not_followed(
    tmp_path: Path, out: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "model" / "model.onnx", side="w.bin")
    (tmp_path / "secret").write_bytes(b"s" * 32)
    copy = staging.copy

    def swapped(stream: Any, target: Path) -> None:
        (path.parent / "w.bin").unlink(missing_ok=True)
        (path.parent / "w.bin").symlink_to(tmp_path / "secret")
        copy(stream, target)

    monkeypatch.setattr(staging, "copy", swapped)
    with pytest.raises(ModelError, match="symbolic link"):
        OnnxImporter().to_onnx(str(path), {}, OPTIONS, out)
    assert tools.calls == []


def test_a_model_that_names_itself_as_its_weights_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", side="w.bin")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="names itself"):
        OnnxImporter().digest(str(path), OPTIONS)


def test_the_reference_runs_the_source_itself_without_optimisations(tmp_path: Path, out: Path, tools: Tools) -> None:
    path = save(tmp_path / "model.onnx", ir_version=14)
    spec = TensorSpec(name="x", dtype="float32", shape=(8,))
    model = Model(
        path=tmp_path, digest="", opset=17, inputs=(spec,), outputs=(TensorSpec(**{**vars(spec), "name": "y"}),)
    )
    OnnxImporter().reference(str(path), model, OPTIONS, tmp_path / "samples", out)
    [(script, request)] = tools.calls
    assert script == "run_onnxruntime"
    assert request["optimize"] is False
    assert (request["inputs"], request["outputs"]) == (["x"], ["y"])
    seen, source = onnx.load_from_string(tools.seen["model.onnx"]), onnx.load(path)
    assert source.ir_version == 14 and seen.ir_version == 13
    assert seen.graph == source.graph


@pytest.mark.parametrize(
    ("kind", "family", "exit_code"),
    [("usage", UsageError, 2), ("model", ModelError, 3), ("tool", ToolMissing, 4)],
)
def test_a_refusal_in_the_child_comes_back_as_the_exception_it_is(
    tmp_path: Path, out: Path, tools: Tools, kind: str, family: type[EdgepackError], exit_code: int
) -> None:
    tools.answer = {"error": {"kind": kind, "id": "EP305", "message": "What happened.", "hint": "What to do."}}
    with pytest.raises(family) as refused:
        OnnxImporter().to_onnx(str(save(tmp_path / "model.onnx")), {}, OPTIONS, out)
    assert (refused.value.id, refused.value.exit_code) == ("EP305", exit_code)
    assert (refused.value.message, refused.value.hint) == ("What happened.", "What to do.")


def test_a_crash_of_the_child_keeps_the_copy_so_that_the_step_can_be_repeated(
    tmp_path: Path, out: Path, tools: Tools
) -> None:
    kept = tmp_path / "failed"
    kept.mkdir()
    path = save(tmp_path / "model.onnx")
    inside = str(out.parent / "files.source" / "model.onnx")
    (kept / "request.json").write_text(json.dumps({"model": inside}))
    tools.answer = ToolFailed("The converter import_onnx crashed.", "Repeat it.", log=kept / "log.txt")
    with pytest.raises(ModelError) as failed:
        OnnxImporter().to_onnx(str(path), {}, OPTIONS, out)
    assert (failed.value.id, failed.value.hint, failed.value.log) == ("EP331", "Repeat it.", kept / "log.txt")
    again = Path(json.loads((kept / "request.json").read_text())["model"])
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in out.parent.iterdir()) == ["files"]

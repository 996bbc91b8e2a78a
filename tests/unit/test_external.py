"""The gate for ONNX external data."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgepack.converters.wire import WireError
from edgepack.errors import ModelError
from edgepack.importers import external

SECRET = b"the numbers of somebody else!!!!"


def tensor(name: str = "w", **entries: str) -> TensorProto:
    """A float32 tensor of 8 whose numbers are elsewhere."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        made.external_data.add(key=key, value=value)
    return made


def model(*initializers: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])
    graph = helper.make_graph(nodes or [helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], list(initializers))
    return helper.make_model(graph)


def saved(folder: Path, content: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content.SerializeToString())
    return path


def gate(folder: Path, content: onnx.ModelProto) -> list[str]:
    return external.check(external.scan(saved(folder, content)), folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "model"
    inner.mkdir()
    (inner / "w.bin").write_bytes(bytes(32))
    (tmp_path / "secret").write_bytes(SECRET)
    return inner


def test_a_model_in_one_file_names_no_other_file(folder: Path) -> None:
    inline = onnx.numpy_helper.from_array(np.zeros(8, np.float32), "w")
    assert gate(folder, model(inline)) == []


def test_a_plain_file_beside_the_model_passes_and_is_named_once(folder: Path) -> None:
    content = model(tensor(location="w.bin"), tensor("v", location="./w.bin", offset="16", length="16"))
    assert gate(folder, content) == ["w.bin"]


def test_a_file_in_a_folder_below_passes(folder: Path) -> None:
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "deep" / "w.bin").write_bytes(bytes(32))
    assert gate(folder, model(tensor(location="data/deep/w.bin"))) == ["data/deep/w.bin"]


def _constant(made: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=made)


def _in_subgraph(made: TensorProto) -> onnx.ModelProto:
    inner = helper.make_graph([_constant(made)], "inner", [], [helper.make_tensor_value_info("c", 1, [8])])
    return model(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)])


def _in_function(made: TensorProto) -> onnx.ModelProto:
    content = model()
    content.functions.append(
        helper.make_function("own", "F", [], ["c"], [_constant(made)], [helper.make_opsetid("", 17)])
    )
    return content


def _in_function_attribute(made: TensorProto) -> onnx.ModelProto:
    content = model()
    default = helper.make_attribute("d", made)
    content.functions.append(
        helper.make_function("own", "F", [], ["c"], [], [helper.make_opsetid("", 17)], attribute_protos=[default])
    )
    return content


def _in_sparse(made: TensorProto) -> onnx.ModelProto:
    content = model()
    sparse = content.graph.sparse_initializer.add()
    sparse.values.CopyFrom(made)
    sparse.dims.append(8)
    return content


def _in_sparse_attribute(made: TensorProto) -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(dims=[8])
    sparse.indices.CopyFrom(made)
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse)
    return model(nodes=[node])


def _in_tensors(made: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(made)
    return model(nodes=[node])


def _in_training(made: TensorProto) -> onnx.ModelProto:
    content = model()
    content.training_info.add().initialization.initializer.append(made)
    return content


@pytest.mark.parametrize(
    "hide",
    [
        lambda made: model(made),
        lambda made: model(nodes=[_constant(made)]),
        _in_subgraph,
        _in_function,
        _in_function_attribute,
        _in_sparse,
        _in_sparse_attribute,
        _in_tensors,
        _in_training,
    ],
)
def test_an_external_tensor_is_found_wherever_it_hides(
    folder: Path, hide: Callable[[TensorProto], onnx.ModelProto]
) -> None:
    with pytest.raises(ModelError, match=r"'hidden'.*'\.\./secret'.*leaves"):
        gate(folder, hide(tensor("hidden", location="../secret")))


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("", "names no file"),
        ("missing.bin", "not there"),
        ("../secret", "leaves the model's folder"),
        ("data/../../secret", "leaves the model's folder"),
        ("..", "leaves the model's folder"),
        ("/etc/passwd", "absolute"),
        ("..\\secret", "Windows"),
        ("C:secret", "Windows"),
        ("w.bin\0.txt", "control character"),
        ("w\n.bin", "control character"),
        ("w\x7f.bin", "control character"),
        ("data//w.bin", "no plain path"),
        ("data/./w.bin", "no plain path"),
        (".", "no plain path"),
        ("w.bin/", "no plain path"),
        ("a" * 256, "no plain path"),
        ("w.bin/x", "folder is a file"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("link", "symbolic link"),
        ("linked/secret", "folder is a symbolic link"),
        ("hard", "hard link"),
    ],
)
def test_a_location_that_is_no_plain_file_of_the_folder_is_refused(folder: Path, location: str, reason: str) -> None:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "hard").hardlink_to(folder.parent / "secret")
    with pytest.raises(ModelError, match=reason) as refused:
        gate(folder, model(tensor("weight", location=location)))
    assert refused.value.id == "EP304"
    assert "'weight'" in refused.value.message and repr(location) in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": "33"}, "starts at byte 33, but the file has 32"),
        ({"offset": "16", "length": "17"}, "bytes 16 to 33 are wanted, but the file has 32"),
        ({"length": str(10**17)}, "but the file has 32"),
        ({"offset": "-4"}, "its offset is '-4'"),
        ({"length": "0x10"}, "its length is '0x10'"),
        ({"length": "9" * 40}, "its length is"),
        ({"basepath": "/etc"}, "unknown key 'basepath'"),
        ({"__class__": "x"}, "unknown key '__class__'"),
        ({"checksum": "0" * 40}, "SHA-1 is .* but the model's record says 0{40}"),
    ],
)
def test_a_record_that_does_not_fit_its_file_is_refused(folder: Path, entries: dict[str, str], reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        gate(folder, model(tensor("weight", location="w.bin", **entries)))
    assert refused.value.id == "EP304"


def test_the_right_checksum_passes(folder: Path) -> None:
    right = hashlib.sha1(bytes(32)).hexdigest().upper()
    assert gate(folder, model(tensor(location="w.bin", checksum=right))) == ["w.bin"]


def test_a_location_that_is_not_utf8_is_refused(folder: Path) -> None:
    content = saved(folder, model(tensor(location="w.bin")))
    content.write_bytes(content.read_bytes().replace(b"w.bin", b"\xff.bin"))
    with pytest.raises(ModelError, match="not UTF-8"):
        external.check(external.scan(content), folder)


def test_a_key_that_is_there_twice_is_refused(folder: Path) -> None:
    twice = tensor(location="w.bin")
    twice.external_data.add(key="location", value="../secret")
    with pytest.raises(ModelError, match="twice"):
        gate(folder, model(twice))


def test_a_location_without_the_mark_counts_when_the_tensor_has_no_numbers_of_its_own(folder: Path) -> None:
    unmarked = tensor(location="../secret")
    unmarked.ClearField("data_location")
    with pytest.raises(ModelError, match="leaves"):
        gate(folder, model(unmarked))


def test_leftover_entries_of_a_tensor_with_its_own_numbers_are_ignored(folder: Path) -> None:
    leftover = onnx.numpy_helper.from_array(np.zeros(8, np.float32), "w")
    leftover.external_data.add(key="location", value="gone.bin")
    assert gate(folder, model(leftover)) == []


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_file_that_is_cut_off_says_at_which_byte_it_stops_making_sense(folder: Path, tenth: int) -> None:
    whole = model(onnx.numpy_helper.from_array(np.zeros(8000, np.float32), "w")).SerializeToString()
    path = folder / "model.onnx"
    path.write_bytes(whole[: len(whole) * tenth // 10])
    with pytest.raises(WireError, match=r"at byte \d+"):
        external.scan(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_bytes_end_in_a_refusal_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:  # fmt: skip  # noqa: E501
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(_in_subgraph(tensor(location="w.bin", offset="0")).SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "model.onnx"
    path.write_bytes(content)
    try:
        external.check(external.scan(path), folder)
    except (WireError, ModelError):
        pass


def test_nested_messages_without_end_are_refused(folder: Path) -> None:
    inner = b""
    for _ in range(200):  # attribute.g in node in graph ...
        inner = b"\x32" + _length(inner) + inner  # attribute: g
        inner = b"\x2a" + _length(inner) + inner  # node: attribute
        inner = b"\x0a" + _length(inner) + inner  # graph: node
    path = folder / "model.onnx"
    path.write_bytes(b"\x3a" + _length(inner) + inner)
    with pytest.raises(WireError, match="deep"):
        external.scan(path)


def test_scanning_takes_little_memory_whatever_the_size_of_the_model(folder: Path) -> None:
    path = saved(folder, model(onnx.numpy_helper.from_array(np.zeros(8 << 20, np.float32), "w")))
    tracemalloc.start()
    try:
        assert external.scan(path) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_containers_version_is_lowered_in_place_and_nothing_else_changes(folder: Path) -> None:
    content = model()
    content.ir_version = 14
    path = saved(folder, content)
    external.lower_versions(path, 13, 99)
    content.ir_version = 13
    assert path.read_bytes() == content.SerializeToString()
    external.lower_versions(path, 20, 99)
    assert path.read_bytes() == content.SerializeToString()


def _length(content: bytes) -> bytes:
    size = len(content)
    result = b""
    while size >= 0x80:
        result += bytes([size & 0x7F | 0x80])
        size >>= 7
    return result + bytes([size])

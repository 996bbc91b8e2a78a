"""ONNX files whose large weights stay on disk: what is read and written is what onnx reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from edgepack.converter import FOLDER

SIDE = 600  # squared and four bytes each: large


@pytest.fixture
def onnx_file(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import onnx_file

    return onnx_file


def model() -> onnx.ModelProto:
    dice = np.random.default_rng(0)
    held = [numpy_helper.from_array(dice.random((SIDE, SIDE), np.float32), name) for name in ("w", "v")]
    held.append(numpy_helper.from_array(dice.random(SIDE, np.float32), "small"))
    held[0].doc_string = "a field behind the numbers"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["b"]),
        helper.make_node("Add", ["b", "small"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIDE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_is_written_are_the_bytes_that_were_read(tmp_path: Path, onnx_file: Any) -> None:
    whole = model().SerializeToString(deterministic=True)
    (tmp_path / "model.onnx").write_bytes(whole)
    found = onnx_file.read(tmp_path / "model.onnx")
    assert [onnx_file.outside(tensor) for tensor in found.graph.initializer] == [True, True, False]
    assert found.ByteSize() < 10_000
    assert abs(onnx_file.size(found) - len(whole)) < 1000
    onnx_file.write(found, tmp_path, tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == whole


def test_large_external_data_stay_where_they_are_and_small_ones_come_in(tmp_path: Path, onnx_file: Any) -> None:
    whole = model()
    (tmp_path / "weights").mkdir()
    copied = onnx.ModelProto.FromString(whole.SerializeToString())
    with (tmp_path / "weights" / "all.bin").open("wb") as file:
        for tensor in copied.graph.initializer:
            file.write(b"between")
            where = {"location": "weights/all.bin", "offset": file.tell(), "length": len(tensor.raw_data)}
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, item in where.items():
                tensor.external_data.add(key=key, value=str(item))
    (tmp_path / "model.onnx").write_bytes(copied.SerializeToString())
    found = onnx_file.read(tmp_path / "model.onnx")
    assert [onnx_file.outside(tensor) for tensor in found.graph.initializer] == [True, True, False]
    onnx_file.write(found, tmp_path, tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == whole.SerializeToString(deterministic=True)
    for one, two in zip(found.graph.initializer, whole.graph.initializer, strict=True):
        array = numpy_helper.to_array(two)
        np.testing.assert_array_equal(onnx_file.array(one, tmp_path), array)
        np.testing.assert_array_equal(np.concatenate(list(onnx_file.blocks(one, tmp_path))), array.ravel())


def test_a_name_that_not_every_tool_takes_keeps_the_weights_inside(tmp_path: Path, onnx_file: Any) -> None:
    path = tmp_path / "my model (1).onnx"
    path.write_bytes(model().SerializeToString())
    assert not any(onnx_file.outside(tensor) for tensor in onnx_file.read(path).graph.initializer)


def test_numbers_that_do_not_fill_their_shape_are_found(tmp_path: Path, onnx_file: Any) -> None:
    cut = model()
    cut.graph.initializer[0].dims[0] += 1
    (tmp_path / "model.onnx").write_bytes(cut.SerializeToString())
    found = onnx_file.read(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="which take"):
        list(onnx_file.blocks(found.graph.initializer[0], tmp_path))


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_a_file_that_is_cut_is_no_model(tmp_path: Path, onnx_file: Any, length: int) -> None:
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString()[:length])
    with pytest.raises(DecodeError):
        onnx_file.read(tmp_path / "model.onnx")

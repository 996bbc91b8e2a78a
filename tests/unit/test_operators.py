"""The table of operators: which an engine refuses, and which compute in float32 at INT8."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from edgepack import operators, plugins


def test_every_engine_of_the_table_is_an_engine() -> None:
    assert {"onnxruntime", "tflite", "ncnn"} <= set(plugins.names("engines"))
    assert operators.stays_float("ncnn", ["Conv", "Reshape", "Softmax"]) == ["Softmax"]
    assert operators.stays_float("tflite", ["Conv", "Softmax", "Tanh"]) == ["Softmax"]
    assert operators.stays_float("onnxruntime", ["Conv", "Softmax", "Tanh"]) == ["Tanh"]


def test_every_operator_of_the_table_is_one_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    for engine in ("onnxruntime", "tflite", "ncnn"):
        listed = {*operators._table()[engine]["int8"], *operators.refused(engine), *operators._table()["moves"]}
        assert listed <= known, listed - known


def test_a_refused_operator_is_named_with_its_node(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    out = helper.make_tensor_value_info("at", TensorProto.INT64, [1, "n"])
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("NonZero", ["y"], ["at"], name="where")]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], [values[1], out])), path)
    (found,) = operators.problems("ncnn", path, ["NonZero", "Relu"])
    assert (found.node, found.op) == ("where", "NonZero") and "depends on the values" in found.message
    assert operators.problems("onnxruntime", path, ["NonZero", "Relu"]) == []

"""onnxsim as a graph pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepack import converter
from edgepack.errors import ToolFailed, ToolMissing
from edgepack.passes.simplify import Simplify
from edgepack.types import Model
from tests.conftest import missing


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        converter.environment("simplify_onnx")
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


def saved(path: Path, nodes: list[onnx.NodeProto], opset: int, output: list[int], **weights: np.ndarray) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), path)
    return Model(path=path, digest="", opset=opset, inputs=(), outputs=())


def shape_chain(opset: int) -> list[onnx.NodeProto]:
    """Flatten as exporters write it: Shape, Gather, Unsqueeze, Concat, Reshape."""
    return [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.int64))),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n"], ["n1"], axes=[0])
        if opset < 13
        else helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]


@pytest.mark.parametrize("opset", [11, 17])
def test_a_chain_of_shape_nodes_becomes_one_reshape(tmp_path: Path, opset: int) -> None:
    weights = {"rest": np.array([-1], np.int64)} | ({"axes": np.array([0], np.int64)} if opset >= 13 else {})
    model = saved(tmp_path / "model.onnx", shape_chain(opset), opset, [1, 32], **weights)
    before = model.path.read_bytes()
    (tmp_path / "out").mkdir()
    Simplify()(model, tmp_path / "out")
    made = onnx.load(tmp_path / "out" / "model.onnx")
    assert {node.op_type for node in made.graph.node} <= {"Reshape", "Constant"}
    x = np.arange(32, dtype=np.float32).reshape(1, 4, 8)
    np.testing.assert_array_equal(ReferenceEvaluator(made).run(None, {"x": x})[0], x.reshape(1, 32))
    assert model.path.read_bytes() == before, "the input file was changed"


def test_weights_that_are_computed_are_not_unrolled_into_a_large_file(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["dims"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Identity", ["m"], ["y"]),
    ]
    model = saved(tmp_path / "model.onnx", nodes, 17, [1, 4, 4096], dims=np.array([8, 4096], np.int64))
    (tmp_path / "out").mkdir()
    Simplify()(model, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 8192  # unrolled it is 131072 bytes


def test_a_file_that_is_not_onnx_is_a_failure_of_the_tool(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff" * 64)
    (tmp_path / "out").mkdir()
    with pytest.raises(ToolFailed, match="simplify_onnx"):
        Simplify()(Model(path=path, digest="", opset=17, inputs=(), outputs=()), tmp_path / "out")

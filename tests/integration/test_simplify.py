"""onnxsim as a graph pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepack import converter
from edgepack.errors import ToolFailed, ToolMissing
from edgepack.passes.simplify import Simplify
from edgepack.types import Model
from tests.conftest import missing

RANDOM = np.random.default_rng(0)
WIDE = 600  # squared and four bytes each: above what stays in onnxsim's sight


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


def simplified(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What the pass makes of a model, which must compute the same."""
    onnx.save(model, folder / "model.onnx")
    (folder / "out").mkdir()
    Simplify()(Model(path=folder / "model.onnx", digest="", opset=17, inputs=(), outputs=()), folder / "out")
    made = onnx.load(folder / "out" / "model.onnx")
    onnx.checker.check_model(made, full_check=True)
    feeds = {
        v.name: RANDOM.random([d.dim_value for d in v.type.tensor_type.shape.dim], np.float32)
        for v in model.graph.input
    }
    sessions = [onnxruntime.InferenceSession(one.SerializeToString()) for one in (model, made)]
    before, after = (session.run(None, feeds) for session in sessions)
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    return made


def wide(name: str, dtype: type = np.float32) -> TensorProto:
    values = (
        RANDOM.standard_normal((WIDE, WIDE)) / WIDE if dtype is np.float32 else RANDOM.integers(-9, 9, (WIDE * 4, WIDE))
    )
    return numpy_helper.from_array(values.astype(dtype), name)


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[int]],
    *held: TensorProto,
    opset: int = 17,
) -> onnx.ModelProto:
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in part.items()]
        for part in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *values, list(held))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def test_what_is_computed_from_a_large_weight_is_folded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Neg", ["t"], ["n"]),
        helper.make_node("MatMul", ["x", "n"], ["y"]),
    ]
    made = simplified(graph_of(nodes, {"x": [2, WIDE]}, {"y": [2, WIDE]}, wide("w")), tmp_path)
    assert [node.op_type for node in made.graph.node] == ["MatMul"]
    assert len(made.graph.initializer) == 1 and [value.name for value in made.graph.input] == ["x"]


def test_batch_normalization_goes_into_a_large_convolution(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "h", "m", "v"], ["n"], epsilon=0.01),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    weight = numpy_helper.from_array(RANDOM.standard_normal((WIDE, WIDE, 1, 1)).astype(np.float32) / WIDE, "w")
    numbers = [numpy_helper.from_array(RANDOM.random(WIDE, np.float32) + 0.1, name) for name in "bshmv"]
    made = simplified(graph_of(nodes, {"x": [1, WIDE, 2, 2]}, {"y": [1, WIDE, 2, 2]}, weight, *numbers), tmp_path)
    assert [node.op_type for node in made.graph.node] == ["Conv", "Relu"]


def test_large_weights_that_are_equal_are_kept_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "a"], ["z"]), helper.make_node("MatMul", ["z", "b"], ["y"])]
    one, two = wide("a"), TensorProto()
    two.CopyFrom(one)
    two.name = "b"
    made = simplified(graph_of(nodes, {"x": [2, WIDE]}, {"y": [2, WIDE]}, one, two), tmp_path)
    assert len(made.graph.initializer) == 1


def test_packed_weights_are_not_unpacked(tmp_path: Path) -> None:
    """Folding DequantizeLinear makes four bytes of one."""
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    scale = numpy_helper.from_array(np.array(0.01, np.float32), "scale")
    model = graph_of(nodes, {"x": [2, WIDE * 4]}, {"y": [2, WIDE]}, wide("q", np.int8), scale, opset=19)
    made = simplified(model, tmp_path)
    assert [node.op_type for node in made.graph.node] == ["DequantizeLinear", "MatMul"]


def test_a_branch_keeps_the_large_weights_that_it_takes(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["z", "w"], ["r"])
        return helper.make_graph([node], op, [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, [WIDE, WIDE])])

    nodes = [
        helper.make_node("Greater", ["x", "half"], ["c"]),
        helper.make_node("Add", ["x", "w"], ["z"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Mul"), else_branch=branch("MatMul")),
    ]
    half = numpy_helper.from_array(np.array([0.5], np.float32), "half")
    made = simplified(graph_of(nodes, {"x": [1]}, {"y": [WIDE, WIDE]}, wide("w"), half), tmp_path)
    assert "w" in {tensor.name for tensor in made.graph.initializer}


def loop(rounds: int) -> onnx.ModelProto:
    """v = (v + x * i) @ w, `rounds` times; each round's sum is collected."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["goes_on"], ["goes_on_out"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x", "f"], ["m"]),
            helper.make_node("Add", ["v", "m"], ["a"]),
            helper.make_node("MatMul", ["a", "w"], ["v_out"]),
            helper.make_node("ReduceSum", ["v_out"], ["sum"], keepdims=0),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("goes_on", TensorProto.BOOL, []),
            value("v", TensorProto.FLOAT, [1, 128]),
        ],
        [
            value("goes_on_out", TensorProto.BOOL, []),
            value("v_out", TensorProto.FLOAT, [1, 128]),
            value("sum", TensorProto.FLOAT, []),
        ],
    )
    nodes = [helper.make_node("Loop", ["n", "go", "x"], ["y", "sums"], body=body)]
    weight = numpy_helper.from_array(RANDOM.standard_normal((128, 128)).astype(np.float32) / 8, "w")
    held = [numpy_helper.from_array(np.array(v), k) for k, v in (("n", np.int64(rounds)), ("go", True))]
    return graph_of(nodes, {"x": [1, 128]}, {"y": [1, 128], "sums": [rounds]}, weight, *held)


def test_a_loop_of_a_few_rounds_is_written_out(tmp_path: Path) -> None:
    made = simplified(loop(4), tmp_path)
    operators = [node.op_type for node in made.graph.node]
    assert "Loop" not in operators and operators.count("MatMul") == 4


def test_a_loop_of_many_rounds_stays_one(tmp_path: Path) -> None:
    assert "Loop" in {node.op_type for node in simplified(loop(65), tmp_path).graph.node}


@pytest.mark.parametrize("backwards", [0, 1])
def test_a_scan_over_a_short_sequence_is_written_out(tmp_path: Path, backwards: int) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["a"]),
            helper.make_node("Add", ["a", "row"], ["h_out"]),
            helper.make_node("Tanh", ["h_out"], ["out"]),
        ],
        "body",
        [value("h", TensorProto.FLOAT, [128]), value("row", TensorProto.FLOAT, [128])],
        [value("h_out", TensorProto.FLOAT, [128]), value("out", TensorProto.FLOAT, [128])],
    )
    scan = helper.make_node(
        "Scan", ["first", "x"], ["last", "y"], body=body, num_scan_inputs=1, scan_input_axes=[1],
        scan_input_directions=[backwards], scan_output_directions=[backwards], scan_output_axes=[1],
    )  # fmt: skip
    held = [
        numpy_helper.from_array(RANDOM.standard_normal(s).astype(np.float32) / 8, n)
        for n, s in (("w", (128, 128)), ("first", (128,)))
    ]
    made = simplified(graph_of([scan], {"x": [128, 3]}, {"y": [128, 3]}, *held), tmp_path)
    operators = [node.op_type for node in made.graph.node]
    assert "Scan" not in operators and operators.count("Tanh") == 3

"""Repairs for ncnn: each form computes the same after it (by ONNX's reference evaluator), and ncnn then takes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepack import artifact as artifacts
from edgepack import converter
from edgepack.engines.ncnn import Ncnn
from edgepack.types import Model, Precision, TensorSpec

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
RNG = np.random.default_rng(3)


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(converter.FOLDER))
    import ncnn_forms
    import onnx_graph

    def repair(model: onnx.ModelProto) -> onnx.ModelProto:
        for form in ncnn_forms.FORMS:
            graph = onnx_graph.Graph(model)
            form(graph)
            model = graph.write(model)
        return model

    yield repair
    for name in ("ncnn_forms", "onnx_graph", "recurrence"):
        sys.modules.pop(name, None)


def values(*names: tuple[str, int, tuple[int, ...]]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(*name) for name in names]


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(","), outputs.split(","), **attributes)


def heads() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """Queries, keys and values cut out of one product through five axes."""
    nodes = [
        node("Gemm", "x,w", "product"),
        node("Reshape", "product,five", "shaped"),
        node("Transpose", "shaped", "moved", perm=[2, 0, 3, 1, 4]),
        *(node("Gather", f"moved,i{i}", f"part{i}", axis=0) for i in range(3)),
        node("Transpose", "part1", "turned", perm=[0, 1, 3, 2]),
        node("MatMul", "part0,turned", "scores"),
        node("Softmax", "scores", "weights", axis=-1),
        node("MatMul", "weights,part2", "y"),
    ]
    held = {"w": RNG.normal(size=(12, 36)).astype(np.float32), "five": np.array([1, 5, 3, 4, 3])}
    held |= {f"i{i}": np.array(i) for i in range(3)}
    x = RNG.normal(size=(5, 12)).astype(np.float32)
    return model(nodes, values(("x", FLOAT, (5, 12))), values(("y", FLOAT, (1, 4, 5, 3))), held), [x]


def state() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """An LSTM of one step whose state [2, 1, n] goes in and out, with weights in Constant nodes."""
    shapes = {"w": (1, 16, 3), "r": (1, 16, 4), "b": (1, 32)}
    held = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)) for name, array in held.items()
    ]
    nodes = [
        *weights,
        node("Gather", "state,zero", "h", axis=0),
        node("Gather", "state,one", "c", axis=0),
        node("Unsqueeze", "h,axis", "h0"),
        node("Unsqueeze", "c,axis", "c0"),
        node("LSTM", "x,w,r,b,,h0,c0", "all,h1,c1", hidden_size=4),
        node("Concat", "h1,c1", "next", axis=0),
        node("Relu", "h1", "y"),
    ]
    given = values(("x", FLOAT, (1, 1, 3)), ("state", FLOAT, (2, 1, 4)))
    made = values(("y", FLOAT, (1, 1, 4)), ("next", FLOAT, (2, 1, 4)))
    held = {"zero": np.array(0), "one": np.array(1), "axis": np.array([0])}
    arrays = [RNG.normal(size=s).astype(np.float32) for s in ((1, 1, 3), (2, 1, 4))]
    return model(nodes, given, made, held), arrays


def steps() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """An LSTM of three steps without a given state."""
    held = {"w": (1, 16, 3), "r": (1, 16, 4), "b": (1, 32)}
    weights: dict[str, np.ndarray] = {n: RNG.normal(size=s).astype(np.float32) for n, s in held.items()}
    nodes = [node("LSTM", "x,w,r,b", "all,h,c", hidden_size=4), node("Relu", "all", "y")]
    x = RNG.normal(size=(3, 1, 3)).astype(np.float32)
    return model(nodes, values(("x", FLOAT, (3, 1, 3))), values(("y", FLOAT, (3, 1, 1, 4))), weights), [x]


def one_hot() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """Bytes as one-hot rows times a table."""
    nodes = [
        node("Unsqueeze", "ids,last", "column"),
        node("Equal", "column,classes", "hot"),
        node("Cast", "hot", "row", to=FLOAT),
        node("MatMul", "row,table", "looked"),
        node("Tanh", "looked", "y"),
    ]
    held = {"last": np.array([2]), "classes": np.arange(6, dtype=np.int32).reshape(1, 1, 6)}
    held["table"] = RNG.normal(size=(6, 8)).astype(np.float32)
    ids = np.array([[0, 5, 3, 6]], np.int32)  # 6 is no class: its row is zero
    return model(nodes, values(("ids", INT32, (1, 4))), values(("y", FLOAT, (1, 4, 8))), held), [ids]


def mask() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """An attention mask of whole numbers that becomes 0 or -inf before a softmax."""
    nodes = [
        node("Cast", "mask", "bool", to=TensorProto.BOOL),
        node("Reshape", "bool,four", "wide"),
        node("And", "every,wide", "both"),
        node("Where", "both,nothing,never", "bias"),
        node("Add", "x,bias", "scores"),
        node("Softmax", "scores", "y", axis=-1),
    ]
    held = {"four": np.array([1, 1, 1, 4]), "every": np.ones((1, 1, 4, 1), bool)}
    held |= {"nothing": np.float32(0), "never": np.float32(-np.inf)}
    given = values(("mask", INT64, (1, 4)), ("x", FLOAT, (1, 2, 4, 4)))
    x = RNG.normal(size=(1, 2, 4, 4)).astype(np.float32)
    return model(nodes, given, values(("y", FLOAT, (1, 2, 4, 4))), held), [np.array([[1, 7, 0, 1]]), x]


def nothing() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A slice of everything, a lower bound of minus infinity, a lookup of every row, and a Gemm with a row to add."""
    nodes = [
        node("Slice", "x,start,end,axes", "whole"),
        node("Max", "whole,lowest", "same"),
        node("Gather", "same,rows", "again", axis=1),
        node("Gemm", "again,w,b", "y"),
    ]
    held = {"start": np.array([0]), "end": np.array([2**31 - 1]), "axes": np.array([1]), "rows": np.arange(6)}
    held |= {"lowest": np.float32(-np.inf), "w": np.float32(RNG.normal(size=(6, 4)))}
    held["b"] = np.float32(RNG.normal(size=(1, 4)))
    x = RNG.normal(size=(1, 6)).astype(np.float32)
    return model(nodes, values(("x", FLOAT, (1, 6))), values(("y", FLOAT, (1, 4))), held), [x]


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    held: dict[str, Any],
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


CASES = [heads, state, steps, one_hot, mask, nothing]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_repaired_graph_computes_the_same_and_is_valid(forms: Any, case: Any) -> None:
    before, arrays = case()
    feeds = {value.name: array for value, array in zip(before.graph.input, arrays, strict=True)}
    wanted = ReferenceEvaluator(before).run(None, feeds)
    after = forms(onnx.ModelProto.FromString(before.SerializeToString()))
    assert [n.op_type for n in after.graph.node] != [n.op_type for n in before.graph.node]
    onnx.checker.check_model(after)
    got = ReferenceEvaluator(after).run(None, feeds)
    for one, two in zip(wanted, got, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [heads, state, one_hot, mask], ids=lambda case: case.__name__)
def test_ncnn_takes_the_repaired_form_and_gives_the_sources_outputs(tmp_path: Path, case: Any) -> None:
    source, arrays = case()
    path = tmp_path / "model.onnx"
    onnx.save(source, path)

    def specs(found: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=value.name,
                dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                shape=tuple(d.dim_value for d in value.type.tensor_type.shape.dim),
            )
            for value in found
        )

    described = Model(
        path=path,
        digest="",
        opset=17,
        inputs=specs(source.graph.input),
        outputs=specs(source.graph.output),
        operators=tuple(sorted({n.op_type for n in source.graph.node})),
    )
    engine, made, given, out = Ncnn(), tmp_path / "made", tmp_path / "in", tmp_path / "out"
    for folder in (made, given, out):
        folder.mkdir()
    engine.export(described, Precision.FP32, None, None, made)
    for index, array in enumerate(arrays):
        np.save(given / f"{index}.npy", array[None])
    engine.run(artifacts.read(made), described, given, out)
    feeds = {value.name: array for value, array in zip(source.graph.input, arrays, strict=True)}
    for index, wanted in enumerate(ReferenceEvaluator(source).run(None, feeds)):
        np.testing.assert_allclose(np.load(out / f"{index}.npy")[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_graph_with_nothing_to_repair_keeps_its_nodes(forms: Any) -> None:
    plain = model(
        [node("Relu", "x", "a"), node("Sigmoid", "a", "y")],
        values(("x", FLOAT, (1, 4))),
        values(("y", FLOAT, (1, 4))),
        {},
    )
    after = forms(onnx.ModelProto.FromString(plain.SerializeToString()))
    assert [n.op_type for n in after.graph.node] == ["Relu", "Sigmoid"]

"""Operators that ONNX defines by others are written out, and what their definitions compute from shapes is folded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepack import converter

FLOAT = TensorProto.FLOAT


@pytest.fixture
def expand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(converter.FOLDER))
    import expand

    yield expand
    sys.modules.pop("expand", None)


def one(op: str, opset: int, shape: tuple[int, ...], **held: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *held], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_a_norm_that_converters_lack_becomes_operators_that_they_have(expand: Any) -> None:
    scale = np.array([1.0, 2.0, 0.5, 3.0], np.float32)
    model = one("RMSNormalization", 23, (1, 3, 4), scale=scale)
    written = expand.expanded(onnx.ModelProto.FromString(model.SerializeToString()))
    operators = {node.op_type for node in written.graph.node}
    assert "RMSNormalization" not in operators
    assert not operators & {"Shape", "Range", "Constant", "ConstantOfShape"}
    onnx.checker.check_model(written)
    x = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    wanted = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(ReferenceEvaluator(written).run(None, {"x": x})[0], wanted, rtol=1e-4, atol=1e-5)


def test_an_attribute_that_is_not_said_keeps_its_default(expand: Any) -> None:
    model = one("MeanVarianceNormalization", 13, (2, 3, 4, 5))  # over all axes but the channels'
    written = expand.expanded(onnx.ModelProto.FromString(model.SerializeToString()))
    assert "MeanVarianceNormalization" not in {node.op_type for node in written.graph.node}
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    wanted = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(ReferenceEvaluator(written).run(None, {"x": x})[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_constant_given_as_a_number_becomes_a_tensor(expand: Any) -> None:
    model = one("Relu", 17, (1, 4))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.5]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["n"], value_int=7))
    first, second = expand.with_plain_constants(model).graph.node[:2]
    assert numpy_helper.to_array(first.attribute[0].t) == 7
    assert numpy_helper.to_array(second.attribute[0].t).tolist() == [1.0, 2.5]


def test_a_model_without_such_operators_is_the_same_afterwards(expand: Any) -> None:
    model = one("Relu", 17, (1, 4))
    assert expand.expanded(model) is model

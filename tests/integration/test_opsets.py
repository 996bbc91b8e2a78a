"""Operators whose form or meaning changed on the way to opset 17, in models as old exporters write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.integration.test_importers import from_onnx, make, refused, value

RANDOM = np.random.default_rng(0)
SHAPE = [2, 3, 4, 6]


class Old:
    """A model of one opset in which each operator takes the input ``x`` and gives an output of its own."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.held: list[TensorProto] = []
        self.outputs: list[str] = []

    def add(self, op: str, *more: object, source: str = "x", outputs: int = 1, **attributes: object) -> str:
        """A node that takes `source` and constants; floats that are lists, and numbers that are tuples, of int64."""
        place = len(self.nodes)
        names = [source]
        for i, item in enumerate(more):
            dtype = np.int64 if isinstance(item, tuple) else np.float32
            names.append(f"c{place}_{i}")
            self.held.append(numpy_helper.from_array(np.asarray(item, dtype), names[-1]))
        made = [f"{op}{place}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, **attributes))
        self.outputs.append(made[0])
        return made[0]

    def between(self, op: str, *more: object, source: str = "x", **attributes: object) -> str:
        name = self.add(op, *more, source=source, **attributes)
        self.outputs.remove(name)
        return name


def old_model(opset: int) -> Old:
    m = Old(opset)
    m.add("Softmax")  # its default axis changed
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        m.add(op, axis=1)  # of a matrix before 13
    for mode in ("nearest", "linear"):
        scales = [1.0, 1.0, 2.0, 1.5]
        if opset < 9:
            m.add("Upsample", mode=mode, scales=scales)
        elif opset == 9:
            m.add("Upsample", scales, mode=mode)
        elif opset == 10:
            m.add("Resize", scales, mode=mode)
        else:
            m.add("Resize", [], scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="ceil")
            m.add("Resize", [], scales, mode=mode)
    numbers = [list(RANDOM.random(3) + 0.5) for _ in range(4)]
    m.add("BatchNormalization", *numbers, epsilon=0.01)
    m.add("InstanceNormalization", *numbers[:2])
    m.add("Dropout", **({"ratio": 0.5} if opset < 12 else {}))
    pads = (0, 0, 1, 1, 0, 0, 1, 2)
    if opset < 11:
        m.add("Pad", pads=pads, mode="reflect")
        m.add("Pad", pads=pads, value=3.0)
        m.add("Clip", min=0.2, max=0.7)
    else:
        m.add("Pad", pads, mode="reflect")
        m.add("Pad", pads, 3.0)
        m.add("Clip", 0.2, 0.7)
    if opset < 10:
        m.add("Slice", axes=[2, 3], starts=[1, -3], ends=[4, 100])
        m.add("TopK", outputs=2, k=2, axis=3)
    else:
        m.add("Slice", (1, -3), (4, 100), (2, 3), (1, 2))
        m.add("TopK", (2,), outputs=2, axis=3)
    m.add("Squeeze", source=m.between("Unsqueeze", axes=[0, 2]), axes=[0])
    m.add("ReduceSum", axes=[2], keepdims=0)
    m.add("ReduceMean", axes=[2, 3])
    m.add("Split", outputs=2, axis=3, split=[2, 4])
    m.add("Flatten", axis=2)
    flat = m.between("Flatten")
    m.add("Gemm", RANDOM.random((72, 5)).tolist(), numbers[0][:1] * 5, source=flat)
    sequence = m.between("Reshape", (4, 3, 12))
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        weights = [(RANDOM.random((1, gates * 4, size)) - 0.5).tolist() for size in (12, 4)]
        m.add(op, *weights, source=sequence, hidden_size=4)
    m.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])
    m.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    m.add("PRelu", [[[0.1]], [[0.2]], [[0.3]]])
    m.add("Cast", source=m.between("Cast", to=TensorProto.INT64), to=TensorProto.FLOAT)
    m.add("Cast", source=m.between("ArgMax", axis=1), to=TensorProto.FLOAT)
    return m


@pytest.mark.parametrize("opset", range(7, 13))
def test_every_operator_that_changed_is_lifted_to_17_and_computes_the_same(tmp_path: Path, opset: int) -> None:
    """Softmax and Hardmax changed their axis, Resize its counting, many an attribute to an input."""
    old = old_model(opset)
    outputs = [value(name, None) for name in old.outputs]
    done = from_onnx(tmp_path, make(old.nodes, [value("x", SHAPE)], outputs, old.held, opset=opset)).agrees()
    assert done.model.opset == 17


def test_a_model_that_only_has_operators_of_classical_learning_needs_no_standard_opset(tmp_path: Path) -> None:
    model = make(
        [helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])],
        [value("x", [1, 4])],
        [value("y", [1, 4])],
    )
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    assert from_onnx(tmp_path, model).agrees().model.operators == ("ai.onnx.ml.Scaler",)


@pytest.mark.parametrize(("dtype", "taken"), [(TensorProto.UINT8, True), (TensorProto.INT32, False)])
def test_an_operator_that_only_takes_more_types_since_is_the_same_for_the_old_ones(
    tmp_path: Path, dtype: int, taken: bool
) -> None:
    """BitShift of opset 28 shifts signed integers, too."""
    model = make(
        [helper.make_node("BitShift", ["x", "y"], ["z"], direction="LEFT")],
        [value("x", [4], dtype), value("y", [4], dtype)],
        [value("z", [4], dtype)],
        opset=28,
    )
    if taken:
        assert from_onnx(tmp_path, model).agrees().model.opset == 26
    else:
        error = refused(tmp_path, model)
        assert error.id == "EP307" and "it has BitShift in a form that is new" in error.message

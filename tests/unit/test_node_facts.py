"""What is said of nodes, and rules that are found from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import operators
from edgepack.node_facts import Described, described
from tests.conftest import ROOT

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def saved(path: Path, **attributes: Any) -> Path:
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"], name="sum", **attributes),
        helper.make_node("Add", ["s", "one"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", FLOAT, [2, 3, 4, 5, 6])]
    inputs.append(helper.make_tensor_value_info("axes", INT64, [1]))
    outputs = [helper.make_tensor_value_info("y", FLOAT, None)]
    weights = [numpy_helper.from_array(np.ones(1, np.float32), "one")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_facts_tell_attributes_and_their_defaults_types_axes_and_what_is_computed(tmp_path: Path) -> None:
    model, reduced, added = described(saved(tmp_path / "m.onnx", noop_with_empty_axes=1))

    assert {"an input is int64", "an input has more than 4 axes"} <= model.facts
    assert (reduced.name, reduced.op) == ("sum", "ReduceSum")
    wanted = {"keepdims = 1", "noop_with_empty_axes = 1", "input 1 is computed", "input 0 has a first axis over 1"}
    assert wanted <= reduced.facts
    assert added.name == "y" and "input 1 is a constant" in added.facts


def test_a_measured_rule_names_the_node_what_was_seen_and_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"op": "ReduceSum", "when": ["input 1 is computed"], "seen": "3 tests of the corpus: no axes"}
    monkeypatch.setattr(operators, "_measured", lambda: {"ncnn": [rule]})

    (found,) = operators.unlikely("ncnn", saved(tmp_path / "m.onnx"))

    assert (found.node, found.op) == ("sum", "ReduceSum")
    assert "where input 1 is computed" in found.message and "no axes" in found.message
    assert "a constant of the model" in found.hint
    assert operators.unlikely("tflite", saved(tmp_path / "m.onnx")) == []


def test_every_measured_rule_is_of_an_engine_an_operator_and_facts() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()} | {"Model"}
    for engine, rules in operators._measured().items():
        assert engine in ("onnxruntime", "tflite", "ncnn")
        for rule in rules:
            assert rule["op"] in known and rule["seen"] and len(rule["when"]) <= 2, rule


def test_rules_fit_nothing_that_came_out_right_and_prefer_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from corpus_tools import rules

    def one(op: str, *facts: str) -> list[Described]:
        return [Described("n", op, frozenset(facts))]

    models = {
        "conv 1": one("Conv", "input 1 is computed", "group = 1"),
        "conv 2": one("Conv", "input 1 is computed", "group = 2"),
        "resize 1": one("Resize", "mode = cubic", "input 0 is float"),
        "resize 2": one("Resize", "mode = cubic", "input 0 is float16"),
        "resize 3": one("Resize", "mode = linear", "input 0 is float"),
        "odd": one("Resize", "mode = linear", "input 0 is float", "antialias = 1"),
    }
    right = {name: name in ("resize 3",) for name in models}

    found = rules.learned(models, right)

    assert [(rule.op, rule.when) for rule in found] == [
        ("Conv", ("input 1 is computed",)),
        ("Resize", ("mode = cubic",)),
    ]
    assert rules.agreement(found, models, right) == {"agree": 5, "not": 1}  # one model is no rule

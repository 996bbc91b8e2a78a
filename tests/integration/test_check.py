"""`edgepack check` says before the work what a build then meets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from edgepack import operators, steps
from edgepack.cli import cli
from edgepack.errors import EdgepackError

FLOAT = TensorProto.FLOAT


def quantized(path: Path) -> Path:
    """A convolution in integers, which ncnn takes no part of."""
    held = {
        "w": np.random.default_rng(1).integers(0, 256, (4, 3, 3, 3), np.uint8),
        "zero": np.uint8(128),
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "z"], name="into integers"),
        helper.make_node("ConvInteger", ["q", "w", "z", "zero"], ["i"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["i"], ["f"], name="cast", to=FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["m"], name="out of integers"),
        helper.make_node("Softmax", ["m"], ["y"], name="soft", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_check_names_engine_operator_node_and_cure_and_build_says_the_same(tmp_path: Path) -> None:
    model = quantized(tmp_path / "m.onnx")
    words = [str(model), "-t", "rk3588", "--engine", "onnxruntime", "--engine", "ncnn", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["check", *words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    rows = {row["variant"]: row for row in document["variants"]}
    assert rows["onnxruntime-fp32"]["answer"] == "yes"
    assert rows["onnxruntime-int8"]["answer"] == "no"
    assert "calibration" in rows["onnxruntime-int8"]["findings"][0]["reason"]
    assert rows["ncnn-fp32"]["answer"] == "no"
    first = rows["ncnn-fp32"]["findings"][0]
    assert (first["op"], first["effect"], first["opset"]) == ("ConvInteger", "refused", document["opset"])
    assert first["node"] and first["hint"]
    assert not (tmp_path / "out").exists()
    built = CliRunner().invoke(
        cli, ["build", *words[:3], "--engine", "ncnn", "--precision", "fp32", "--json", *words[-2:]]
    )
    assert not isinstance(built.exception, EdgepackError) and built.exit_code == 3, built.output
    (outcome,) = json.loads(built.stdout)["outcomes"]
    assert outcome["status"] == "unsupported" and first["reason"] in outcome["reason"]


def test_check_of_a_model_that_nothing_can_build_exits_3(tmp_path: Path) -> None:
    model = quantized(tmp_path / "m.onnx")
    words = [str(model), "-t", "rk3588", "--engine", "ncnn", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["check", *words], catch_exceptions=False)
    assert done.exit_code == 3
    assert "ncnn takes quantized ONNX only as" in done.output


def test_quick_converts_nothing_and_names_the_node_that_never_came_out_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"op": "ConvInteger", "when": ["input 3 is a constant"], "seen": "2 tests of the corpus: no such layer"}
    monkeypatch.setattr(operators, "_measured", lambda: {"tflite": [rule]})
    monkeypatch.setattr(steps, "export", lambda *_: pytest.fail("quick has exported"))
    engines = ["--engine", "onnxruntime", "--engine", "tflite", "--engine", "ncnn"]
    words = [str(quantized(tmp_path / "m.onnx")), "-t", "rk3588", *engines, "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["check", *words, "--quick", "--json"], catch_exceptions=False)
    rows = {row["variant"]: row for row in json.loads(done.stdout)["variants"]}
    answers = [rows[f"{engine}-fp32"]["answer"] for engine in ("onnxruntime", "tflite", "ncnn")]
    assert answers == ["likely", "unlikely", "no"]
    (finding,) = rows["tflite-fp32"]["findings"]
    assert (finding["effect"], finding["op"]) == ("unlikely", "ConvInteger") and "no such layer" in finding["reason"]

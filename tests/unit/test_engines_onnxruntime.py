"""The engine onnxruntime without ONNX Runtime: which converter does what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack import artifact as artifacts
from edgepack.engines import onnxruntime
from edgepack.engines.onnxruntime import OnnxRuntime
from edgepack.errors import CalibrationError, Unsupported
from edgepack.quantizers import static
from edgepack.types import Calibration, Model, Precision, TensorSpec

X = TensorSpec(name="x y\n", dtype="float32", shape=(1, 4))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(path=tmp_path / "model.onnx", digest="", opset=17, inputs=(X,), outputs=(X,), operators=("Gemm",))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    made: list[tuple[str, dict[str, Any]]] = []

    def convert(script: str, request: dict[str, Any], out: Path) -> dict[str, Any]:
        made.append((script, request))
        (out / "model.onnx").write_bytes(b"")
        return {}

    monkeypatch.setattr(onnxruntime, "convert", convert)
    monkeypatch.setattr(static, "convert", convert)
    return made


@pytest.mark.parametrize(
    ("precision", "script", "file"),
    [
        (Precision.FP32, "onnx_to_ort", "model.ort"),
        (Precision.FP16, "onnx_to_fp16", "model.onnx"),
    ],
)
def test_a_float_precision_is_one_conversion(
    tmp_path: Path, model: Model, asked: list[Any], precision: Precision, script: str, file: str
) -> None:
    OnnxRuntime().export(model, precision, None, None, tmp_path)
    assert [name for name, _ in asked] == [script]
    made = artifacts.read(tmp_path)
    assert made.files == (file,)
    assert made.inputs == (artifacts.identity(X),)


def test_int8_quantizes_first_and_leaves_nothing_behind(tmp_path: Path, model: Model, asked: list[Any]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    OnnxRuntime().export(model, Precision.INT8, Calibration(path=tmp_path, digest="", count=1), None, out)
    assert [name for name, _ in asked] == ["quantize_onnx", "fuse_qdq"]
    assert asked[1][1]["model"] != str(model.path), "the float model was exported as INT8"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_model_that_is_quantized_already_is_exported_as_it_is(tmp_path: Path, model: Model, asked: list[Any]) -> None:
    quantized = replace(model, operators=("Conv", "DequantizeLinear", "QuantizeLinear"))
    OnnxRuntime().export(quantized, Precision.INT8, None, None, tmp_path)
    assert [name for name, _ in asked] == ["fuse_qdq"]


def test_int8_is_refused_without_samples_and_without_weights(tmp_path: Path, model: Model, asked: list[Any]) -> None:
    with pytest.raises(CalibrationError):
        OnnxRuntime().export(model, Precision.INT8, None, None, tmp_path)
    bare = replace(model, operators=("Relu", "Softmax"))
    with pytest.raises(Unsupported):
        OnnxRuntime().export(bare, Precision.INT8, Calibration(path=tmp_path, digest="", count=1), None, tmp_path)
    assert asked == []


def test_the_cache_key_names_every_script_that_a_precision_runs() -> None:
    engine = OnnxRuntime()
    assert set(engine.tools(Precision.INT8)) >= {"quantize_onnx", "fuse_qdq"}
    assert "onnx_to_fp16" in engine.tools(Precision.FP16)
    assert all("run_onnxruntime" in engine.tools(precision) for precision in Precision)

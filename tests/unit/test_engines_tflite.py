"""The engine tflite without LiteRT: what it asks of its converters, and what it makes of their answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack import artifact as artifacts
from edgepack.engines import tflite
from edgepack.engines.tflite import TFLite, to_engine
from edgepack.errors import CalibrationError, ToolFailed, Unsupported, VariantError
from edgepack.types import Artifact, Binding, Calibration, Model, Precision, TensorSpec

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 4, 5))
MAP = TensorSpec(name="map", dtype="float32", shape=(1, 2, 4, 5))
LAST = (0, 2, 3, 1)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(
        path=tmp_path / "model.onnx", digest="", opset=17, inputs=(IMAGE,), outputs=(MAP,), operators=("Conv",)
    )


def base_of(folder: Path) -> Artifact:
    folder.mkdir()
    base = Artifact(
        folder=folder,
        files=("model.tflite",),
        inputs=(Binding(name="i0", dtype="float32", shape=(1, 3, 4, 5), perm=(0, 1, 2, 3)),),
        outputs=(Binding(name="o0", dtype="float32", shape=(1, 4, 5, 2), perm=LAST),),
    )
    artifacts.write(base)
    (folder / "layers.json").write_text("{}")
    return base


def calls(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[str, dict[str, Any]]]:
    """Replace the child process; `answer` is called with (request, out)."""
    made: list[tuple[str, dict[str, Any]]] = []

    def convert(script: str, request: dict[str, Any], out: Path) -> dict[str, Any]:
        made.append((script, request))
        result: dict[str, Any] = answer(request, out)
        return result

    monkeypatch.setattr(tflite, "convert", convert)
    return made


def test_only_fp32_is_made_from_onnx_alone_and_the_others_from_it() -> None:
    engine = TFLite()
    assert [engine.base(p) for p in Precision] == [None, Precision.FP32, Precision.FP32]
    assert "onnx_to_tflite" in engine.tools(Precision.FP32)
    assert "onnx_to_tflite" not in engine.tools(Precision.FP16)


def test_the_bindings_of_fp32_are_what_the_converter_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    found = {
        "inputs": [{"name": "i0", "dtype": "float32", "shape": [1, 3, 4, 5], "perm": [0, 1, 2, 3]}],
        "outputs": [{"name": "o0", "dtype": "float32", "shape": [1, 4, 5, 2], "perm": list(LAST)}],
        "layers": {},
    }
    calls(monkeypatch, lambda request, out: found)
    TFLite().export(model, Precision.FP32, None, None, tmp_path)
    made = artifacts.read(tmp_path)
    assert made.outputs[0].perm == LAST
    assert made.outputs[0].scale is None


def test_int8_keeps_the_layout_of_fp32_and_takes_name_and_scale_from_the_quantizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    base = base_of(tmp_path / "base")
    (tmp_path / "cal").mkdir()
    np.save(tmp_path / "cal" / "0.npy", np.zeros((2, 1, 3, 4, 5), np.float32))
    new = {"name": "o0_quantized", "dtype": "int8", "scale": 0.5, "zero_point": -3}
    asked = calls(
        monkeypatch,
        lambda request, out: {
            "inputs": {"i0": {**new, "name": "i0"}},
            "outputs": {"o0": new},
            "float": [],
            "beside_xnnpack": [],
        },
    )
    out = tmp_path / "out"
    out.mkdir()
    calibration = Calibration(path=tmp_path / "cal", digest="", count=2)
    TFLite().export(model, Precision.INT8, calibration, base.folder, out)
    made = artifacts.read(out).outputs[0]
    assert (made.name, made.dtype, made.scale, made.zero_point) == ("o0_quantized", "int8", 0.5, -3)
    assert made.perm == LAST and made.shape == (1, 4, 5, 2)
    assert asked[0][1]["inputs"] == ["i0"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "cal", "out"], "samples were left behind"


def test_int8_is_refused_without_samples_and_without_weights(tmp_path: Path, model: Model) -> None:
    base = base_of(tmp_path / "base")
    with pytest.raises(CalibrationError):
        TFLite().export(model, Precision.INT8, None, base.folder, tmp_path)
    bare = Model(path=model.path, digest="", opset=17, inputs=(), outputs=(), operators=("Relu",))
    calibration = Calibration(path=tmp_path, digest="", count=1)
    with pytest.raises(Unsupported):
        TFLite().export(bare, Precision.INT8, calibration, base.folder, tmp_path)
    with pytest.raises(VariantError, match="fp32"):
        TFLite().export(model, Precision.FP16, None, None, tmp_path)


def test_samples_reach_the_engine_transposed_and_quantized(tmp_path: Path) -> None:
    values = np.arange(2 * 60, dtype=np.float32).reshape(2, 1, 3, 4, 5) / 8
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "in" / "0.npy", values)
    binding = Binding(name="i0", dtype="int8", shape=(1, 4, 5, 3), perm=LAST, scale=0.25, zero_point=-7)
    to_engine(tmp_path / "in", [binding], tmp_path / "out")
    got = np.load(tmp_path / "out" / "0.npy")
    wanted = np.clip(np.rint(values.transpose(0, 1, 3, 4, 2) / 0.25) - 7, -128, 127).astype(np.int8)
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, wanted)


def test_a_run_gives_outputs_back_in_the_source_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    base = base_of(tmp_path / "base")
    truth = np.random.default_rng(1).standard_normal((3, 1, 2, 4, 5)).astype(np.float32)

    def answer(request: dict[str, Any], out: Path) -> dict[str, Any]:
        assert np.load(Path(request["samples"], "0.npy")).shape == (3, 1, 3, 4, 5)
        np.save(out / "0.npy", truth.transpose(0, 1, 3, 4, 2))
        return {"latency_ms": 1.5, "engine_version": "x"}

    calls(monkeypatch, answer)
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "in" / "0.npy", np.zeros((3, 1, 3, 4, 5), np.float32))
    facts = TFLite().run(base, model, tmp_path / "in", tmp_path / "out")
    assert facts["latency_ms"] == 1.5
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "0.npy"), truth)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "in", "out"], "scratch was left behind"


def test_the_scales_of_a_quantized_source_go_from_the_float_file_to_the_quantizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    scales = {"activations": {"i0": [0.5, 3]}, "weights": {}, "asymmetric": ["c"]}
    tensor = {"name": "i0", "dtype": "float32", "shape": [1, 3, 4, 5], "perm": [0, 1, 2, 3]}
    found = {"inputs": [tensor], "outputs": [{**tensor, "name": "o0"}], "layers": {}, "scales": scales}
    calls(monkeypatch, lambda request, out: found)
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    quantized = replace(model, operators=("Conv", "DequantizeLinear", "QuantizeLinear"))
    TFLite().export(quantized, Precision.FP32, None, None, base)
    (tmp_path / "cal").mkdir()
    np.save(tmp_path / "cal" / "0.npy", np.zeros((2, 1, 3, 4, 5), np.float32))
    same = {"name": "i0", "dtype": "int8", "scale": 0.5, "zero_point": 3}
    made = {"inputs": {"i0": same}, "outputs": {"o0": same}, "float": [], "beside_xnnpack": [], "own_scales": 1}
    asked = calls(monkeypatch, lambda request, out: {**made, "asymmetric": ["c"]})
    warnings: list[str] = []
    monkeypatch.setattr(tflite.log, "warn", warnings.append)
    TFLite().export(quantized, Precision.INT8, Calibration(path=tmp_path / "cal", digest="", count=2), base, out)
    assert asked[0][1]["scales"] == scales
    assert artifacts.read(out).facts["own_scales"] == 1
    assert len(warnings) == 1 and "of c " in warnings[0] and "symmetric" in warnings[0]


@pytest.mark.parametrize(
    ("first", "again", "taken"),
    [
        (("dynamic", 19.0), ("full", 17.0), True),  # integers everywhere, and good enough
        (("dynamic", 24.0), ("full", 17.0), False),  # too dear
        (("dynamic", 14.0), ("full", 13.0), False),
        (("lean", 14.0), ("full", 15.5), True),  # poor both, and clearly nearer
        (("lean", 14.0), None, False),  # can't be converted again
        (("full", 17.0), ("full", 30.0), False),  # nothing to gain at this effort: not tried
    ],
)
def test_evened_channels_are_taken_where_they_allow_more_integers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Model,
    first: tuple[str, float],
    again: tuple[str, float] | None,
    taken: bool,
) -> None:
    base = base_of(tmp_path / "base")
    out = tmp_path / "out"
    for path in (tmp_path / "cal", out):
        path.mkdir()
    np.save(tmp_path / "cal" / "0.npy", np.zeros((2, 1, 3, 4, 5), np.float32))
    tensors: dict[str, dict[str, Any]] = {
        name: {"name": name, "dtype": "int8", "scale": 0.5, "zero_point": 0} for name in ("i0", "o0")
    }
    told = {"inputs": {"i0": tensors["i0"]}, "outputs": {"o0": tensors["o0"]}, "float": [], "beside_xnnpack": []}
    surface = {
        f"{kind}puts": [{"name": b.name, "dtype": b.dtype, "shape": list(b.shape), "perm": list(b.perm)} for b in bound]
        for kind, bound in (("in", base.inputs), ("out", base.outputs))
    }

    def answer(request: dict[str, Any], folder: Path) -> dict[str, Any]:
        if "kept" in request:
            return {"changed": 3}
        if "precision" not in request:
            return {**surface, "layers": {}}
        kind = again if "recipes" in request else first
        if kind is None:
            raise ToolFailed("no")
        (folder / "model.tflite").write_text("again" if "recipes" in request else "first")
        return {**told, "recipe": kind[0], "sqnr_db": kind[1]}

    calls(monkeypatch, answer)
    calibration = Calibration(path=tmp_path / "cal", digest="", count=2)
    TFLite().export(model, Precision.INT8, calibration, base.folder, out)
    assert (out / "model.tflite").read_text() == ("again" if taken else "first")
    assert artifacts.read(out).facts.get("equalised") == (3 if taken else None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "cal", "out"], "scratch was left behind"

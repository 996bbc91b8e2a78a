"""ncnn's INT8: zero points, layers in float, scales of quantized models, and models that aren't as they should be."""

from __future__ import annotations

import importlib
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import edgepack
from edgepack import artifact as artifacts
from edgepack import converter
from edgepack.engines.ncnn import Ncnn
from edgepack.errors import ToolFailed, ToolMissing
from edgepack.ncnn_export import PARAM, WEIGHTS
from edgepack.quantizers.static import StaticQuantizer
from edgepack.types import Artifact, Calibration, Int8Options, Model, Precision
from tests.conftest import missing
from tests.integration.test_int8_bad_input import SOUND, Change, prepared
from tests.integration.test_onnxruntime import calibration_of, folder_of, images, model_of

sys.path.insert(0, str(Path(edgepack.__file__).parent / "converters"))
files: Any = importlib.import_module("ncnn_files")
RNG = np.random.default_rng(23)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        for script in ("onnx_to_ncnn", "quantize_ncnn", "run_ncnn", "quantize_onnx"):
            converter.environment(script)
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


def untouched(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
    """The tiny classifier as it is."""


def int8(model: Model, calibration: Calibration, root: Path, options: Int8Options | None = None) -> Artifact:
    """The INT8 artifact; fp32 is made once per folder."""
    options = options or Int8Options()
    base = root / "fp32"
    if not base.is_dir():
        base.mkdir()
        Ncnn().export(model, Precision.FP32, None, None, base)
    out = root / f"int8-{len(list(root.iterdir()))}"
    out.mkdir()
    Ncnn().export(model, Precision.INT8, calibration, base, out, options)
    return artifacts.read(out)


def run(model: Model, artifact: Artifact, x: np.ndarray) -> np.ndarray:
    root = artifact.folder.parent
    out = root / f"ran-{len(list(root.iterdir()))}"
    out.mkdir()
    Ncnn().run(artifact, model, folder_of(out / "in", x), out)
    found: np.ndarray = np.load(out / "0.npy")
    return found


def decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(wanted - got).sum(), 1e-30)))


def expected(model: Model, x: np.ndarray) -> np.ndarray:
    evaluator = ReferenceEvaluator(str(model.path))
    return np.stack([evaluator.run(None, {model.inputs[0].name: row})[0] for row in x])


def scales(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """What each int8 layer of a file says: factors of the weights, of its input, and of what it hands on."""
    content, found, place = (folder / WEIGHTS).read_bytes(), {}, 0

    def floats(count: int) -> np.ndarray:
        nonlocal place
        place += 4 * count
        return np.frombuffer(content, np.float32, count, place - 4 * count)

    for layer in files.read_param((folder / PARAM).read_text()):
        term = layer.int(8) if layer.type in files.QUANTIZABLE else 0
        if not term:
            for block in files.WEIGHTED.get(layer.type, lambda _: [])(layer):
                place += files._size(block, np.frombuffer(content, np.uint8), place, layer)
            continue
        count, rows = layer.int(2 if layer.type == "InnerProduct" else 6), layer.int(0)
        place += 4 + (count + 3) // 4 * 4
        bias = floats(rows if layer.int(1 if layer.type == "InnerProduct" else 5) else 0)
        weights = floats(layer.int(7) if layer.type == "ConvolutionDepthWise" else rows)
        found[layer.name] = {"bias": bias, "weights": weights, "input": floats(1), "output": floats(term // 100)}
    assert place == len(content)
    return found


@pytest.mark.parametrize("change", SOUND)
def test_every_factor_is_a_positive_number_and_outputs_stay_finite(tmp_path: Path, change: Change) -> None:
    model, calibration = prepared(tmp_path, change)
    artifact = int8(model, calibration, tmp_path, Int8Options(effort="high"))
    for name, layer in scales(artifact.folder).items():
        assert np.isfinite(layer["bias"]).all(), name
        for part in ("weights", "input", "output"):
            assert np.isfinite(layer[part]).all() and (layer[part] > 0).all(), (name, part)
    assert np.isfinite(run(model, artifact, images(tmp_path, 4, 6))).all()


def test_nan_in_weights_names_the_layer(tmp_path: Path) -> None:
    def poison(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
        weights["w2"].flat[7] = np.nan

    model, calibration = prepared(tmp_path, poison)
    with pytest.raises(ToolFailed, match=r"layer conv\w+ has infinite or NaN weights"):
        int8(model, calibration, tmp_path)


def test_a_relus_output_uses_all_integers_and_padding_stands_for_zero(tmp_path: Path) -> None:
    """With strong borders: values far from zero everywhere, so that a wrong padding would be a large error."""

    def bright(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
        weights["b1"][:] = 4.0
        weights["w2"][:] = np.abs(weights["w2"])

    model, calibration = prepared(tmp_path, bright)
    artifact = int8(model, calibration, tmp_path)
    text = (artifact.folder / PARAM).read_text()
    layers = [layer for layer in files.read_param(text) if layer.type == "Convolution"]
    assert layers[1].params["18"] == "127" and "9" not in layers[0].params
    x = images(tmp_path, 8, 6)
    assert decibels(expected(model, x), run(model, artifact, x)) > 38


def test_layers_named_by_their_onnx_outputs_stay_in_float(tmp_path: Path) -> None:
    model, calibration = prepared(tmp_path, untouched)
    x = images(tmp_path, 8, 6)
    wanted = expected(model, x)
    every = int8(model, calibration, tmp_path)
    assert every.facts["kept_float"] == [] and len(every.facts["quantized"]) == 3
    kept = int8(model, calibration, tmp_path, Int8Options(keep_float=("c2", "nothing"), wide=("scores",)))
    assert kept.facts["kept_float"] == ["c2", "scores"]
    assert kept.facts["unmapped"] == ["nothing"]
    assert list(scales(kept.folder)) == every.facts["quantized"][:1]
    assert decibels(wanted, run(model, kept, x)) > decibels(wanted, run(model, every, x))


def test_a_quantized_onnx_model_keeps_its_scales(tmp_path: Path) -> None:
    model, calibration = prepared(tmp_path, untouched)
    (tmp_path / "qdq").mkdir()
    StaticQuantizer().quantize(model, calibration, Int8Options(), tmp_path / "qdq")
    path = tmp_path / "qdq" / "model.onnx"
    proto = onnx.load(path)
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    pairs = {n.output[0]: n for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    operators = tuple(sorted({node.op_type for node in proto.graph.node}))
    quantized = replace(model, path=path, operators=operators)
    assert not Ncnn().problems(quantized, Precision.INT8)
    artifact = int8(quantized, calibration, tmp_path)
    assert artifact.facts["own_scales"] == len(artifact.facts["quantized"]) == 3
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    found = [layer for name, layer in scales(artifact.folder).items() if name.startswith("conv")]
    for node, layer in zip(convolutions, found, strict=True):
        assert layer["weights"] == pytest.approx(1 / constants[pairs[node.input[1]].input[1]], rel=1e-6)
    inside = pairs[convolutions[1].input[0]]
    assert found[1]["input"] == pytest.approx(1 / constants[inside.input[1]], rel=1e-6)
    x = images(tmp_path, 8, 6)
    assert decibels(expected(model, x), run(quantized, artifact, x)) > 28  # ONNX's evaluator has no per-channel pairs


def words(path: Path) -> Model:
    """int64 ids 1x6 -> a table's rows -> two products -> 1x6x16; columns of all weights differ by a factor of 50."""
    spread = np.geomspace(1.0, 0.02, 48)
    weights = {
        "table": RNG.standard_normal((64, 48)) * RNG.permutation(spread),
        "w1": RNG.standard_normal((48, 48)) * RNG.permutation(spread) / 7,
        "w2": RNG.standard_normal((48, 16)) * RNG.permutation(spread)[:16],
        "b1": RNG.standard_normal(48),
    }
    weights["w1"] /= np.abs(weights["table"]).max(axis=0)[:, None]  # so that every column counts
    weights["w2"] /= np.abs(weights["w1"]).max(axis=0)[:, None]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w1"], ["p"]),
        helper.make_node("Add", ["p", "b1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 16])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return model_of(path)


def test_tables_and_products_are_int8_with_a_factor_per_column(tmp_path: Path) -> None:
    model = words(tmp_path / "model.onnx")
    ids = RNG.integers(0, 64, (16, 1, 6))
    artifact = int8(model, calibration_of(tmp_path / "calibration", ids), tmp_path)
    layers = files.read_param((artifact.folder / PARAM).read_text())
    stored = {layer.type: layer.params.get("18") for layer in layers if layer.type in ("Embed", "Gemm")}
    assert stored == {"Embed": "2", "Gemm": "2"}, [layer.type for layer in layers]
    assert decibels(expected(model, ids), run(model, artifact, ids)) > 33


@pytest.mark.parametrize("effort", ["normal", "high"])
def test_one_and_two_threads_give_the_same_bytes(tmp_path: Path, effort: Any) -> None:
    model, calibration = prepared(tmp_path, untouched)
    base = tmp_path / "fp32"
    base.mkdir()
    Ncnn().export(model, Precision.FP32, None, None, base)
    samples = folder_of(tmp_path / "own", np.load(calibration.path / "0.npy").reshape(-1, 3, 16, 16))
    request = {
        "files": [str(base / PARAM), str(base / WEIGHTS)],
        "precision": "int8",
        "inputs": ["in0"],
        "samples": str(samples),
        "int8": asdict(Int8Options(effort=effort)),
        "onnx": str(model.path),
    }
    made = []
    for threads in (1, 2):
        out = tmp_path / f"threads-{threads}"
        out.mkdir()
        converter.convert("quantize_ncnn", request, out, threads=threads)
        made.append([(out / name).read_bytes() for name in (PARAM, WEIGHTS)])
    assert made[0] == made[1]


def test_uneven_channels_are_evened_where_weights_can_take_that(tmp_path: Path) -> None:
    """The first convolution's channels reach from 1 to 1000; the second one gives each the same weight."""
    reach = np.logspace(0, 3, 16).astype(np.float32)
    first = RNG.normal(size=(16, 3, 3, 3)).astype(np.float32) * reach[:, None, None, None]
    second = RNG.normal(size=(8, 16, 1, 1)).astype(np.float32) / reach[None, :, None, None]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "d"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 14, 14])
    weights = [numpy_helper.from_array(first, "a"), numpy_helper.from_array(second, "d")]
    graph = helper.make_graph(nodes, "uneven", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "m.onnx")
    model = model_of(tmp_path / "m.onnx")
    samples = RNG.normal(size=(16, 1, 3, 16, 16)).astype(np.float32)
    calibration = calibration_of(tmp_path / "calibration", samples)
    plain = int8(model, calibration, tmp_path, Int8Options(effort="fast"))
    evened = int8(model, calibration, tmp_path)
    assert evened.facts["evened"] and not plain.facts["evened"]
    wanted = expected(model, samples)
    better = decibels(wanted, run(model, evened, samples))
    assert better > decibels(wanted, run(model, plain, samples)) + 3
    found = Ncnn().layers(
        artifacts.read(tmp_path / "fp32"), evened, calibration.path, 4, Path(tempfile.mkdtemp(dir=tmp_path))
    )
    assert all(item["saturated"] < 0.05 for item in found.values() if "saturated" in item), found

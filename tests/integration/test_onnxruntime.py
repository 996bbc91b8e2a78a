"""The engine onnxruntime with the real ONNX Runtime, on nets of a few nodes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepack import artifact as artifacts
from edgepack import converter
from edgepack.engines.onnxruntime import OnnxRuntime
from edgepack.errors import CalibrationError, ToolFailed, ToolMissing, Unsupported, VariantError
from edgepack.quantizers.static import StaticQuantizer
from edgepack.types import Artifact, Calibration, Int8Options, Model, Precision, TensorSpec
from tests.conftest import missing
from tests.models import HOSTILE, samples, tiny_classifier

RNG = np.random.default_rng(11)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        converter.environment("run_onnxruntime")
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


def model_of(path: Path) -> Model:
    proto = onnx.load(path)

    def specs(values: object) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=value.name,
                dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                shape=tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values  # type: ignore[attr-defined]
        )

    return Model(
        path=path,
        digest="",
        opset=max(entry.version for entry in proto.opset_import),
        inputs=specs(proto.graph.input),
        outputs=specs(proto.graph.output),
        operators=tuple(sorted({node.op_type for node in proto.graph.node})),
    )


def folder_of(path: Path, *arrays: np.ndarray) -> Path:
    path.mkdir()
    for index, array in enumerate(arrays):
        np.save(path / f"{index}.npy", array)
    return path


def expected(model: Model, *arrays: np.ndarray) -> list[np.ndarray]:
    session = ReferenceEvaluator(str(model.path))
    rows = [
        session.run(None, {spec.name: row for spec, row in zip(model.inputs, rows, strict=True)})
        for rows in zip(*arrays, strict=True)
    ]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def calibration_of(path: Path, *arrays: np.ndarray) -> Calibration:
    return Calibration(path=folder_of(path, *arrays), digest="", count=len(arrays[0]))


def images(tmp_path: Path, count: int, seed: int, name: str = "image") -> np.ndarray:
    with np.load(samples(tmp_path / f"images{seed}.npz", input_name=name, count=count, seed=seed)) as archive:
        return np.asarray(archive[name])[:, None]


def made(model: Model, precision: Precision, folder: Path, calibration: Calibration | None = None) -> Artifact:
    folder.mkdir()
    OnnxRuntime().export(model, precision, calibration, None, folder)
    return artifacts.read(folder)


def ran(artifact: Artifact, model: Model, inputs: Path, out: Path) -> list[np.ndarray]:
    out.mkdir()
    facts = OnnxRuntime().run(artifact, model, inputs, out)
    assert facts["latency_ms"] > 0
    return [np.load(out / f"{index}.npy") for index in range(len(model.outputs))]


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def test_a_reduced_builds_config_names_the_operators_and_types_of_the_variants(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "tiny.onnx"))
    calibration = calibration_of(tmp_path / "calibration", images(tmp_path, 48, 3))
    float32, half = (made(model, p, tmp_path / str(p)) for p in (Precision.FP32, Precision.FP16))
    int8 = made(model, Precision.INT8, tmp_path / "int8", calibration)
    texts = []
    both = {"onnxruntime-fp32": float32, "onnxruntime-int8": int8}
    for name, variants in (("both", both), ("half", {"half": half}), ("ort", {"fp32": float32})):
        out = tmp_path / name
        out.mkdir()
        OnnxRuntime().build_config(variants, out)
        texts.append((out / "required_operators.config").read_text())
    for text in texts:
        assert str(tmp_path) not in text, "the same models give the same file wherever they are"
        rows = [line.split(";", 2) for line in text.splitlines() if not line.startswith("#")]
        assert rows and all(domain and opset.isdigit() and operators for domain, opset, operators in rows)
    assert "onnxruntime-fp32, onnxruntime-int8" in texts[0]
    assert "not --minimal_build" in texts[0] and "not --minimal_build" not in texts[2]
    assert "QLinearConv" in texts[0] and '"inputs"' in texts[0]
    assert "not --minimal_build" in texts[1] and 'Cast{"inputs": {"0": ["MLFloat16"' in texts[1]


def size(artifact: Artifact) -> int:
    return sum((artifact.folder / name).stat().st_size for name in artifact.files)


def wide_net(path: Path) -> Path:
    """1x64 -> 1x32 over 256 hidden values: weights that outweigh the rest of the file."""
    weights = {
        "w1": RNG.standard_normal((64, 256)) / 8, "b1": RNG.standard_normal((1, 256)),
        "w2": RNG.standard_normal((256, 32)) / 16, "b2": RNG.standard_normal(32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_fp32_gives_the_outputs_of_the_reference_evaluator(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    data = images(tmp_path, 4, 5)
    artifact = made(model, Precision.FP32, tmp_path / "out")
    (got,) = ran(artifact, model, folder_of(tmp_path / "in", data), tmp_path / "run")
    assert artifact.files == ("model.ort",)
    np.testing.assert_allclose(got, expected(model, data)[0], atol=1e-5)


def test_fp16_halves_the_file_and_keeps_float32_at_the_surface(tmp_path: Path) -> None:
    model = model_of(wide_net(tmp_path / "model.onnx"))
    data = RNG.standard_normal((4, 1, 64)).astype(np.float32)
    whole = made(model, Precision.FP32, tmp_path / "whole")
    half = made(model, Precision.FP16, tmp_path / "half")
    (got,) = ran(half, model, folder_of(tmp_path / "in", data), tmp_path / "run")
    assert size(half) < 0.6 * size(whole)
    assert got.dtype == np.float32
    assert sqnr(expected(model, data)[0], got) > 50


def test_fp16_leaves_a_weight_that_overflows_float16_in_float32(tmp_path: Path) -> None:
    path = wide_net(tmp_path / "model.onnx")
    proto = onnx.load(path)
    large = numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(1e6)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "w1"))
    onnx.save(proto, path)
    model = model_of(path)
    data = RNG.standard_normal((2, 1, 64)).astype(np.float32)
    half = made(model, Precision.FP16, tmp_path / "half")
    (got,) = ran(half, model, folder_of(tmp_path / "in", data), tmp_path / "run")
    assert np.isfinite(got).all()
    assert sqnr(expected(model, data)[0], got) > 50


def test_int8_is_a_quarter_of_the_size_and_close(tmp_path: Path) -> None:
    model = model_of(wide_net(tmp_path / "model.onnx"))
    data = RNG.standard_normal((32, 1, 64)).astype(np.float32)
    whole = made(model, Precision.FP32, tmp_path / "whole")
    small = made(model, Precision.INT8, tmp_path / "small", calibration_of(tmp_path / "cal", data))
    (got,) = ran(small, model, folder_of(tmp_path / "in", data[:8]), tmp_path / "run")
    assert size(small) < 0.3 * size(whole)
    assert sqnr(expected(model, data[:8])[0], got) > 25


def operators(artifact: Artifact) -> list[str]:
    """What a shipped INT8 file computes; ONNX Runtime changes nothing of it but layouts."""
    return [node.op_type for node in onnx.load(artifact.folder / artifact.files[0]).graph.node]


def test_int8_has_no_float_convolution_even_where_training_left_channels_dead(tmp_path: Path) -> None:
    path = tiny_classifier(tmp_path / "model.onnx")
    proto = onnx.load(path)
    for item in proto.graph.initializer:
        values = numpy_helper.to_array(item).copy()
        if item.name in ("w1", "w3"):
            values[2] *= 1e-8  # as weight decay leaves them: their bias has more steps of the sums than 32 bits
        if item.name in ("b1", "b3"):
            values[2] = 1.5
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    onnx.save(proto, path)
    model, data = model_of(path), images(tmp_path, 8, 6)
    small = made(model, Precision.INT8, tmp_path / "small", calibration_of(tmp_path / "cal", images(tmp_path, 32, 5)))
    assert operators(small).count("QLinearConv") == 2 and not {"Conv", "FusedConv", "Gemm"} & set(operators(small))
    assert small.facts["float"] == []
    (got,) = ran(small, model, folder_of(tmp_path / "in", data), tmp_path / "run")
    assert sqnr(expected(model, data)[0], got) > 20


def test_a_model_from_quantization_aware_training_has_no_float_convolution_for_its_float_biases(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    calibration = calibration_of(tmp_path / "cal", images(tmp_path, 32, 5))
    (tmp_path / "qdq").mkdir()
    StaticQuantizer().quantize(model, calibration, Int8Options(), tmp_path / "qdq")
    proto = onnx.load(tmp_path / "qdq" / "model.onnx")
    graph, constants = proto.graph, {item.name: item for item in proto.graph.initializer}
    for node in [n for n in graph.node if n.output[0].endswith("//bias")]:
        integers, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
        graph.initializer.append(numpy_helper.from_array((integers * scale).astype(np.float32), node.output[0]))
        graph.node.remove(node)
    onnx.save(proto, tmp_path / "qat.onnx")
    trained = replace(model_of(tmp_path / "qat.onnx"), inputs=model.inputs, outputs=model.outputs)
    small = made(trained, Precision.INT8, tmp_path / "small")
    assert operators(small).count("QLinearConv") == 2 and not {"Conv", "FusedConv"} & set(operators(small))
    data = images(tmp_path, 8, 6)
    (got,) = ran(small, model, folder_of(tmp_path / "in", data), tmp_path / "run")
    assert sqnr(expected(model, data)[0], got) > 20


def test_an_int8_file_is_hardly_more_than_its_weights(tmp_path: Path) -> None:
    model = model_of(wide_net(tmp_path / "model.onnx"))
    data = calibration_of(tmp_path / "cal", RNG.standard_normal((32, 1, 64)).astype(np.float32))
    small = made(model, Precision.INT8, tmp_path / "small", data)
    proto = onnx.load(small.folder / small.files[0])
    stored = sum(numpy_helper.to_array(item).nbytes for item in proto.graph.initializer)
    assert size(small) < stored + 160 * len(proto.graph.node) + 40 * len(proto.graph.initializer)
    assert len({item.SerializeToString().replace(item.name.encode(), b"") for item in proto.graph.initializer}) == len(
        proto.graph.initializer
    )


def test_int8_of_a_convolution_net_is_close_on_samples_it_has_not_seen(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    data = images(tmp_path, 8, 6)
    small = made(model, Precision.INT8, tmp_path / "small", calibration_of(tmp_path / "cal", images(tmp_path, 32, 5)))
    (got,) = ran(small, model, folder_of(tmp_path / "in", data), tmp_path / "run")
    assert sqnr(expected(model, data)[0], got) > 20


def test_the_same_model_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    calibration = calibration_of(tmp_path / "cal", images(tmp_path, 8, 5))
    for precision in Precision:
        files = [made(model, precision, tmp_path / f"{precision}{turn}", calibration).folder for turn in (1, 2)]
        first, second = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in files)
        assert first == second, precision


def test_names_that_look_like_code_come_through_unchanged(tmp_path: Path) -> None:
    path = tiny_classifier(tmp_path / "model.onnx", input_name=HOSTILE, output_name="o" + HOSTILE)
    model = model_of(path)
    data = images(tmp_path, 8, 5, name="image")
    calibration = calibration_of(tmp_path / "cal", data)
    for precision in Precision:
        artifact = made(model, precision, tmp_path / str(precision), calibration)
        assert artifact.inputs[0].name == HOSTILE
        (got,) = ran(artifact, model, folder_of(tmp_path / f"in{precision}", data), tmp_path / f"run{precision}")
        assert sqnr(expected(model, data)[0], got) > 20


def test_int8_without_samples_is_refused(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    with pytest.raises(CalibrationError, match="real samples"):
        made(model, Precision.INT8, tmp_path / "out")


def test_int8_of_a_model_without_weights_says_that_there_is_nothing_to_quantize(tmp_path: Path) -> None:
    model = replace(model_of(tiny_classifier(tmp_path / "model.onnx")), operators=("Add", "Relu"))
    calibration = calibration_of(tmp_path / "cal", images(tmp_path, 4, 5))
    with pytest.raises(Unsupported, match="nothing to quantize"):
        made(model, Precision.INT8, tmp_path / "out", calibration)


def test_calibration_that_computes_nan_is_named(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx", poison=True))
    calibration = calibration_of(tmp_path / "cal", images(tmp_path, 4, 5))
    with pytest.raises(ToolFailed, match="NaN or infinity"):
        made(model, Precision.INT8, tmp_path / "out", calibration)


def test_a_damaged_file_is_a_failure_that_names_the_engine(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    artifact = made(model, Precision.FP32, tmp_path / "out")
    file = artifact.folder / "model.ort"
    file.write_bytes(file.read_bytes()[:100])
    data = folder_of(tmp_path / "in", images(tmp_path, 2, 5))
    with pytest.raises(VariantError, match="cannot be loaded by ONNX Runtime"):
        ran(artifact, model, data, tmp_path / "run")


def test_layers_of_keep_float_stay_in_float(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    calibration = calibration_of(tmp_path / "cal", images(tmp_path, 8, 5))
    weights = {}
    for name, floating in {"all": (), "some": ("c1", "no such tensor")}.items():
        (tmp_path / name).mkdir()
        StaticQuantizer().quantize(model, calibration, Int8Options(keep_float=floating), tmp_path / name)
        proto = onnx.load(tmp_path / name / "model.onnx")
        weights[name] = {t.name: t.data_type for t in proto.graph.initializer if t.name.startswith("w1")}
    assert TensorProto.FLOAT in weights["some"].values()
    assert TensorProto.INT8 in weights["all"].values()


def test_the_quantizer_reports_how_well_it_did_and_keeps_its_input(tmp_path: Path) -> None:
    model = model_of(wide_net(tmp_path / "model.onnx"))  # its bias [1, 256] is what onnxruntime's tool fails on
    before = model.path.read_bytes()
    cal = calibration_of(tmp_path / "cal", RNG.standard_normal((8, 1, 64)).astype(np.float32))
    (tmp_path / "out").mkdir()
    request = {"model": str(model.path), "samples": str(cal.path), "int8": asdict(Int8Options())}
    facts = converter.convert("quantize_onnx", request, tmp_path / "out")
    assert facts["quantized"] == 2
    assert facts["sqnr_db"] > 25
    assert model.path.read_bytes() == before
    assert json.dumps(facts)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_a_layer_in_float_between_pairs_keeps_its_weights_when_the_file_is_loaded(tmp_path: Path, op: str) -> None:
    shape = (1, 4) if op == "Gemm" else (1, 4, 5, 5)
    weight = RNG.standard_normal((4, 4) if op == "Gemm" else (4, 4, 3, 3)).astype(np.float32)
    first = (slice(None), 0) if op == "Conv" else 0
    weight[first] *= 300.0  # read only zeros, and would take the one scale that ONNX Runtime gives all weights
    value = RNG.random(shape).astype(np.float32)
    value[:, 0] = 0.0
    numbers = {"s": np.float32(1 / 255), "z": np.uint8(0), "s2": np.float32(0.1), "z2": np.uint8(128), "w": weight}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node(op, ["d", "w"], ["made"]),
        helper.make_node("QuantizeLinear", ["made", "s2", "z2"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "pairs", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in numbers.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(made, tmp_path / "pairs.onnx")
    fused, out = tmp_path / "fused", tmp_path / "out"
    fused.mkdir()
    out.mkdir()

    converter.convert("fuse_qdq", {"model": str(tmp_path / "pairs.onnx")}, fused)
    request = {"files": [str(fused / "model.onnx")], "inputs": ["x"], "outputs": ["y"], "threads": 1, "timed": 0}
    converter.convert("run_onnxruntime", {**request, "samples": str(folder_of(tmp_path / "in", value[None]))}, out)

    (wanted,) = ReferenceEvaluator(made).run(None, {"x": value})
    assert np.abs(np.load(out / "0.npy")[0] - wanted).max() <= 0.1001  # one step

"""The ncnn engine with the real pnnx and ncnn, on nets of a few nodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepack import artifact as artifacts
from edgepack import converter
from edgepack.engines.ncnn import Ncnn
from edgepack.errors import ToolFailed, Unsupported, VariantError
from edgepack.ncnn_export import PARAM, WEIGHTS
from edgepack.types import Artifact, Calibration, Model, Precision, TensorSpec

RNG = np.random.default_rng(7)
FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
Shape = tuple[int, ...]
Value = tuple[str, int, Shape]


def net(
    folder: Path, nodes: list[onnx.NodeProto], inputs: list[Value], outputs: list[Value], **weights: np.ndarray
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path = folder / "model.onnx"
    onnx.save(model, path)

    def specs(values: list[Value]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=name, dtype=helper.tensor_dtype_to_np_dtype(kind).name, shape=shape)
            for name, kind, shape in values
        )

    return Model(
        path=path,
        digest="",
        opset=17,
        inputs=specs(inputs),
        outputs=specs(outputs),
        operators=tuple(sorted({node.op_type for node in nodes})),
    )


def samples(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir()
    for index, array in enumerate(arrays):
        np.save(folder / f"{index}.npy", array)
    return folder


def conv_net(folder: Path) -> Model:
    """Convolution, grouped convolution, pooling and a fully connected layer, with a name that is hostile on purpose."""
    return net(
        folder,
        [
            helper.make_node("Conv", ["x y\n=", "w1", "b1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Conv", ["r", "w2"], ["d"], pads=[1, 1, 1, 1], group=8),
            helper.make_node("Relu", ["d"], ["e"]),
            helper.make_node("GlobalAveragePool", ["e"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["*/ out"], transB=1),
        ],
        [("x y\n=", FLOAT, (1, 3, 16, 16))],
        [("*/ out", FLOAT, (1, 5))],
        w1=RNG.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
        b1=RNG.normal(0, 0.1, 8).astype(np.float32),
        w2=RNG.normal(0, 0.3, (8, 1, 3, 3)).astype(np.float32),
        w3=RNG.normal(0, 0.3, (5, 8)).astype(np.float32),
        b3=RNG.normal(0, 0.1, 5).astype(np.float32),
    )


def export(model: Model, precision: Precision, root: Path, calibration: Path | None = None) -> Artifact:
    engine = Ncnn()
    base = root / "fp32"
    out = root / str(precision)
    out.mkdir()
    data = (
        None
        if calibration is None
        else Calibration(path=calibration, digest="", count=len(np.load(calibration / "0.npy", mmap_mode="r")))
    )
    engine.export(model, precision, data, base if base != out else None, out)
    return artifacts.read(out)


def run(model: Model, artifact: Artifact, inputs: Path, root: Path) -> list[np.ndarray]:
    out = root / f"{artifact.folder.name}-outputs"
    out.mkdir()
    facts = Ncnn().run(artifact, model, inputs, out)
    assert facts["latency_ms"] > 0
    assert {p.name for p in root.iterdir() if p.name.endswith((".ncnn", ".run_ncnn"))} == set()  # nothing left behind
    return [np.load(out / f"{i}.npy") for i in range(len(model.outputs))]


def reference(model: Model, inputs: Path) -> list[np.ndarray]:
    evaluator = ReferenceEvaluator(str(model.path))
    arrays = [np.load(inputs / f"{i}.npy") for i in range(len(model.inputs))]
    rows = [
        evaluator.run(None, {spec.name: array[k] for spec, array in zip(model.inputs, arrays, strict=True)})
        for k in range(len(arrays[0]))
    ]
    return [np.stack([row[i] for row in rows]) for i in range(len(model.outputs))]


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(wanted**2) / max(np.sum((wanted - got) ** 2), 1e-30)))


def test_three_precisions_of_a_conv_net_agree_with_the_source(tmp_path: Path) -> None:
    model = conv_net(tmp_path)
    x = RNG.normal(0, 1, (12, 1, 3, 16, 16)).astype(np.float32)
    inputs = samples(tmp_path / "in", x)
    calibration = samples(tmp_path / "calibration", RNG.normal(0, 1, (16, 1, 3, 16, 16)).astype(np.float32))
    wanted = reference(model, inputs)[0]
    sizes = {}
    for precision, bound in ((Precision.FP32, 80), (Precision.FP16, 40), (Precision.INT8, 20)):
        artifact = export(model, precision, tmp_path, calibration)
        assert artifact.files == (PARAM, WEIGHTS)
        assert {"Convolution", "ConvolutionDepthWise", "InnerProduct", "Input"} <= set(artifact.layers)
        got = run(model, artifact, inputs, tmp_path)[0]
        assert got.shape == (12, 1, 5) and got.dtype == np.float32
        assert sqnr(wanted, got) > bound, precision
        sizes[precision] = (artifact.folder / WEIGHTS).stat().st_size
    assert sizes[Precision.INT8] < sizes[Precision.FP16] < sizes[Precision.FP32]


def test_the_same_export_gives_the_same_bytes_and_leaves_its_input_alone(tmp_path: Path) -> None:
    model = conv_net(tmp_path)
    before = model.path.read_bytes()
    calibration = samples(tmp_path / "calibration", RNG.normal(0, 1, (4, 1, 3, 16, 16)).astype(np.float32))
    content = []
    for name in ("a", "b"):
        root = tmp_path / name
        root.mkdir()
        folders = [export(model, p, root, calibration).folder for p in (Precision.FP32, Precision.FP16, Precision.INT8)]
        content.append([(f / n).read_bytes() for f in folders for n in (PARAM, WEIGHTS, "artifact.json")])
    assert content[0] == content[1]
    assert model.path.read_bytes() == before


def test_token_ids_reach_an_embedding_as_whole_numbers(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])],
        [("ids", INT64, (1, 6))],
        [("y", FLOAT, (1, 6, 4))],
        table=RNG.normal(0, 1, (50, 8)).astype(np.float32),
        w=RNG.normal(0, 1, (8, 4)).astype(np.float32),
    )
    inputs = samples(tmp_path / "in", RNG.integers(0, 50, (3, 1, 6)))
    artifact = export(model, Precision.FP32, tmp_path)
    assert artifact.inputs[0].dtype == "int32"
    assert sqnr(reference(model, inputs)[0], run(model, artifact, inputs, tmp_path)[0]) > 80
    negative = samples(tmp_path / "negative", np.full((1, 1, 6), -1))
    (tmp_path / "again").mkdir()
    with pytest.raises(VariantError, match="negative ids"):  # ncnn would take them all for 0
        run(model, artifact, negative, tmp_path / "again")


def test_a_uint8_picture_is_handed_over_as_float(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [helper.make_node("Cast", ["x"], ["f"], to=FLOAT), helper.make_node("Conv", ["f", "w"], ["y"])],
        [("x", UINT8, (1, 3, 8, 8))],
        [("y", FLOAT, (1, 4, 6, 6))],
        w=RNG.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
    )
    inputs = samples(tmp_path / "in", RNG.integers(0, 256, (3, 1, 3, 8, 8)).astype(np.uint8))
    artifact = export(model, Precision.FP32, tmp_path)
    assert sqnr(reference(model, inputs)[0], run(model, artifact, inputs, tmp_path)[0]) > 80


def test_an_attention_mask_of_int64_that_is_reshaped_before_its_cast_works(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Unsqueeze", ["mask", "axes"], ["m"]),
            helper.make_node("Cast", ["m"], ["f"], to=FLOAT),
            helper.make_node("Mul", ["c", "f"], ["y"]),
        ],
        [("x", FLOAT, (1, 3, 8, 8)), ("mask", INT64, (1, 6))],
        [("y", FLOAT, (1, 2, 6, 6))],
        w=RNG.normal(0, 1, (2, 3, 3, 3)).astype(np.float32),
        axes=np.array([1, 2]),
    )
    x, mask = RNG.normal(0, 1, (3, 1, 3, 8, 8)).astype(np.float32), RNG.integers(0, 2, (3, 1, 6))
    inputs = samples(tmp_path / "in", x, mask)
    got = run(model, export(model, Precision.FP32, tmp_path), inputs, tmp_path)[0]
    assert sqnr(reference(model, inputs)[0], got) > 80


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_sum_over_one_axis_is_not_lost(tmp_path: Path, keepdims: int) -> None:
    model = net(
        tmp_path,
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("ReduceSum", ["e", "axes"], ["y"], keepdims=keepdims),
        ],
        [("ids", INT64, (1, 6))],
        [("y", FLOAT, (1, 1, 8) if keepdims else (1, 8))],
        table=RNG.normal(0, 1, (50, 8)).astype(np.float32),
        axes=np.array([1]),
    )
    inputs = samples(tmp_path / "in", RNG.integers(0, 50, (3, 1, 6)))
    got = run(model, export(model, Precision.FP32, tmp_path), inputs, tmp_path)[0]
    assert sqnr(reference(model, inputs)[0], got) > 80


def test_a_mask_that_is_cast_at_the_end_comes_back_as_whole_numbers(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Mul", ["c", "ten"], ["m"]),
            helper.make_node("Cast", ["m"], ["y"], to=INT64),
        ],
        [("x", FLOAT, (1, 3, 8, 8))],
        [("y", INT64, (1, 2, 6, 6))],
        w=RNG.normal(0, 1, (2, 3, 3, 3)).astype(np.float32),
        ten=np.full((1, 1, 1, 1), 10.0, np.float32),
    )
    inputs = samples(tmp_path / "in", RNG.normal(0, 1, (3, 1, 3, 8, 8)).astype(np.float32))
    got = run(model, export(model, Precision.FP32, tmp_path), inputs, tmp_path)[0]
    wanted = reference(model, inputs)[0]
    assert got.dtype == np.int64
    assert np.mean(got != wanted) < 0.02 and np.abs(got - wanted).max() <= 1  # a sum near a whole number may fall


def test_two_inputs_and_two_outputs_keep_the_order_of_the_source(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [
            helper.make_node("Conv", ["second", "w"], ["c"]),
            helper.make_node("Add", ["c", "first"], ["late"]),
            helper.make_node("Sigmoid", ["c"], ["early"]),
        ],
        [("first", FLOAT, (1, 4, 6, 6)), ("second", FLOAT, (1, 3, 8, 8))],
        [("late", FLOAT, (1, 4, 6, 6)), ("early", FLOAT, (1, 4, 6, 6))],
        w=RNG.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
    )
    first = RNG.normal(0, 1, (2, 1, 4, 6, 6)).astype(np.float32)
    second = RNG.normal(0, 1, (2, 1, 3, 8, 8)).astype(np.float32)
    inputs = samples(tmp_path / "in", first, second)
    got = run(model, export(model, Precision.FP32, tmp_path), inputs, tmp_path)
    for wanted, found in zip(reference(model, inputs), got, strict=True):
        assert sqnr(wanted, found) > 80


def test_an_operator_that_ncnn_has_no_layers_for_is_named_with_its_node(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Det", ["c"], ["y"])],
        [("x", FLOAT, (1, 3, 6, 6))],
        [("y", FLOAT, (1, 4))],
        w=RNG.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
    )
    with pytest.raises(Unsupported, match=r"^ncnn has no form of Det \('y'\)") as caught:
        export(model, Precision.FP32, tmp_path)
    assert caught.value.hint


def test_a_batch_of_two_is_computed_although_pnnx_cant(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [("x", FLOAT, (2, 3, 6, 6))],
        [("y", FLOAT, (2, 4, 4, 4))],
        w=RNG.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
    )
    inputs = samples(tmp_path / "in", RNG.normal(0, 1, (2, 2, 3, 6, 6)).astype(np.float32))
    artifact = export(model, Precision.FP32, tmp_path)
    assert artifact.facts["way"] == "direct"
    assert sqnr(reference(model, inputs)[0], run(model, artifact, inputs, tmp_path)[0]) > 80


def test_a_model_that_pnnx_cant_take_has_three_precisions_too(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Pad", ["r", "wide"], ["p"]),
            helper.make_node("Conv", ["p", "w2"], ["c"], strides=[2, 2]),
            helper.make_node("ReduceMax", ["c"], ["m"], axes=[2, 3], keepdims=0),
            helper.make_node("Gemm", ["m", "w3"], ["y"], transB=1),
        ],
        [("x", FLOAT, (1, 3, 12, 12))],
        [("y", FLOAT, (1, 5))],
        w1=RNG.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32),
        wide=np.array([0, 1, 0, 0, 0, 1, 0, 0]),
        w2=RNG.normal(0, 0.3, (8, 8, 3, 3)).astype(np.float32),
        w3=RNG.normal(0, 0.3, (5, 8)).astype(np.float32),
    )
    inputs = samples(tmp_path / "in", RNG.normal(0, 1, (8, 1, 3, 12, 12)).astype(np.float32))
    for precision, bound in ((Precision.FP32, 80), (Precision.FP16, 40), (Precision.INT8, 20)):
        artifact = export(model, precision, tmp_path, inputs)
        if precision is Precision.FP32:
            assert artifact.facts["way"] == "direct"
        assert sqnr(reference(model, inputs)[0], run(model, artifact, inputs, tmp_path)[0]) > bound, precision
    assert len(artifact.facts["quantized"]) == 3


def test_a_model_without_convolutions_has_no_int8(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", FLOAT, (1, 4, 4, 4))],
        [("y", FLOAT, (1, 4, 4, 4))],
    )
    assert "none of them" in Ncnn().problems(model, Precision.INT8)[0].message
    export(model, Precision.FP32, tmp_path)
    calibration = samples(tmp_path / "calibration", np.ones((2, 1, 4, 4, 4), np.float32))
    with pytest.raises(Unsupported, match="no convolution"):
        export(model, Precision.INT8, tmp_path, calibration)


def test_a_product_of_matrices_is_quantized_too(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("MatMul", ["e", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["y"]),
        ],
        [("ids", INT64, (1, 6))],
        [("y", FLOAT, (1, 6, 64))],
        table=RNG.normal(0, 1, (50, 32)).astype(np.float32),
        w=RNG.normal(0, 1, (32, 64)).astype(np.float32),
        b=RNG.normal(0, 1, 64).astype(np.float32),
    )
    inputs = samples(tmp_path / "in", RNG.integers(0, 50, (3, 1, 6)))
    export(model, Precision.FP32, tmp_path)
    artifact = export(model, Precision.INT8, tmp_path, inputs)
    assert len(artifact.facts["quantized"]) == 2 and not artifact.facts["float"]  # the table and the product
    assert sqnr(reference(model, inputs)[0], run(model, artifact, inputs, tmp_path)[0]) > 25


def test_nan_in_the_calibration_data_names_the_blob(tmp_path: Path) -> None:
    model = conv_net(tmp_path)
    export(model, Precision.FP32, tmp_path)
    calibration = samples(tmp_path / "calibration", np.full((2, 1, 3, 16, 16), np.nan, np.float32))
    with pytest.raises(ToolFailed, match="NaN or infinity in the blob in0"):
        export(model, Precision.INT8, tmp_path, calibration)


def test_dead_channels_and_dead_inputs_give_no_infinite_scale(tmp_path: Path) -> None:
    weights = RNG.normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    weights[1] = 0
    model = net(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Mul", ["a", "zero"], ["z"]),
            helper.make_node("Conv", ["z", "v"], ["y"]),
        ],
        [("x", FLOAT, (1, 3, 8, 8))],
        [("y", FLOAT, (1, 2, 4, 4)), ("a", FLOAT, (1, 4, 6, 6))],
        w=weights,
        zero=np.zeros((1, 4, 1, 1), np.float32),
        v=RNG.normal(0, 1, (2, 4, 3, 3)).astype(np.float32),
    )
    x = samples(tmp_path / "x", RNG.normal(0, 1, (4, 1, 3, 8, 8)).astype(np.float32))
    export(model, Precision.FP32, tmp_path)
    got = run(model, export(model, Precision.INT8, tmp_path, x), x, tmp_path)
    assert np.isfinite(got[0]).all() and not got[0].any()
    assert sqnr(reference(model, x)[1], got[1]) > 20


def test_a_3x3_convolution_whose_sums_pass_winograds_limit_is_still_right(tmp_path: Path) -> None:
    """ncnn's int8 Winograd multiplies sums by 576 in 32 bits: 64 channels of full-scale values overflow it."""
    model = net(
        tmp_path,
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        [("x", FLOAT, (1, 64, 12, 12))],
        [("y", FLOAT, (1, 16, 12, 12))],
        w=np.ones((16, 64, 3, 3), np.float32),
    )
    x = samples(tmp_path / "x", np.ones((2, 1, 64, 12, 12), np.float32))
    export(model, Precision.FP32, tmp_path)
    artifact = export(model, Precision.INT8, tmp_path, x)
    assert len(artifact.facts["no_winograd"]) == 1
    assert sqnr(reference(model, x)[0], run(model, artifact, x, tmp_path)[0]) > 30


def test_weights_too_small_for_float16_stay_float32(tmp_path: Path) -> None:
    """pnnx's own float16 flushes them to zero: the output would be zero too."""
    model = net(
        tmp_path,
        [helper.make_node("Mul", ["x", "big"], ["b"]), helper.make_node("Conv", ["b", "w"], ["y"])],
        [("x", FLOAT, (1, 3, 8, 8))],
        [("y", FLOAT, (1, 4, 6, 6))],
        big=np.full((1, 3, 1, 1), 1000.0, np.float32),
        w=RNG.normal(0, 1e-5, (4, 3, 3, 3)).astype(np.float32),
    )
    x = samples(tmp_path / "x", RNG.normal(0, 1, (4, 1, 3, 8, 8)).astype(np.float32))
    export(model, Precision.FP32, tmp_path)
    artifact = export(model, Precision.FP16, tmp_path)
    assert len(artifact.facts["float32"]) == 1
    assert sqnr(reference(model, x)[0], run(model, artifact, x, tmp_path)[0]) > 40


def test_a_truncated_bin_is_a_sentence(tmp_path: Path) -> None:
    model = conv_net(tmp_path)
    artifact = export(model, Precision.FP32, tmp_path)
    weights = artifact.folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    x = samples(tmp_path / "x", np.ones((1, 1, 3, 16, 16), np.float32))
    with pytest.raises(VariantError, match=r"^cannot be loaded by ncnn: "):
        run(model, artifact, x, tmp_path)
    with pytest.raises(ToolFailed, match="ends inside the weights of"):
        export(model, Precision.INT8, tmp_path, x)


def test_pnnx_refusing_a_file_says_so_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a model")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ToolFailed) as caught:
        converter.convert("onnx_to_ncnn", {"model": str(broken)}, out)
    assert "\n" not in caught.value.message
    assert json.loads((caught.value.log.parent / "request.json").read_text())["model"] == str(broken)  # type: ignore[union-attr]

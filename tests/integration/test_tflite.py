"""The engine tflite with the real onnx2tf, ai-edge-quantizer and LiteRT, on nets of a few nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepack import artifact as artifacts
from edgepack import converter
from edgepack.engines.tflite import FILE, TFLite
from edgepack.errors import CalibrationError, ToolFailed, ToolMissing, VariantError
from edgepack.types import Artifact, Calibration, Model, Precision, TensorSpec
from tests.conftest import missing
from tests.models import HOSTILE, samples, tiny_classifier

RNG = np.random.default_rng(13)
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Value = tuple[str, int, list[int]]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        for script in ("onnx_to_tflite", "quantize_tflite", "run_tflite"):
            converter.environment(script)
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


def net(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[Value], outputs: list[Value], **weights: np.ndarray
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return model_of(path)


def model_of(path: Path) -> Model:
    proto = onnx.load(path)

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        return TensorSpec(name=value.name, dtype=dtype, shape=tuple(dim.dim_value for dim in kind.shape.dim))

    return Model(
        path=path,
        digest="",
        opset=17,
        inputs=tuple(spec(value) for value in proto.graph.input),
        outputs=tuple(spec(value) for value in proto.graph.output),
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


def made(
    model: Model,
    precision: Precision,
    folder: Path,
    calibration: Calibration | None = None,
    base: Artifact | None = None,
) -> Artifact:
    folder.mkdir()
    TFLite().export(model, precision, calibration, base.folder if base else None, folder)
    return artifacts.read(folder)


def ran(artifact: Artifact, model: Model, folder: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    out = folder.with_name(folder.name + "-out")
    out.mkdir()
    facts = TFLite().run(artifact, model, folder_of(folder, *arrays), out)
    assert facts["latency_ms"] > 0
    return [np.load(out / f"{index}.npy") for index in range(len(model.outputs))]


def images(tmp_path: Path, count: int, seed: int) -> np.ndarray:
    with np.load(samples(tmp_path / f"images{seed}.npz", count=count, seed=seed)) as archive:
        return np.asarray(archive["image"])[:, None]


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def test_every_precision_of_a_classifier_is_close_in_the_source_layout(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx", input_name=HOSTILE, output_name="o" + HOSTILE))
    data, seen = images(tmp_path, 8, 6), images(tmp_path, 24, 5)
    (wanted,) = expected(model, data)
    calibration = Calibration(path=folder_of(tmp_path / "cal", seen), digest="", count=24)
    base = made(model, Precision.FP32, tmp_path / "fp32")
    closeness = {Precision.FP32: 90.0, Precision.FP16: 40.0, Precision.INT8: 20.0}
    for precision, least in closeness.items():
        artifact = base
        if precision is not Precision.FP32:
            artifact = made(model, precision, tmp_path / str(precision), calibration, base)
        (got,) = ran(artifact, model, tmp_path / f"in-{precision}", data)
        assert got.shape == wanted.shape and got.dtype == np.float32
        assert sqnr(wanted, got) > least, precision
    assert artifacts.read(tmp_path / "int8").inputs[0].scale is not None


def test_a_layout_that_shapes_do_not_decide_is_found_by_a_run(tmp_path: Path) -> None:
    """1x3x3x3 in and out: channels first and last have the same shape."""
    weights = RNG.standard_normal((3, 3, 3, 3)).astype(np.float32)
    model = net(
        tmp_path / "model.onnx",
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
            helper.make_node("Sigmoid", ["c"], ["z"]),
        ],
        [("x", FLOAT, [1, 3, 3, 3])],
        [("y", FLOAT, [1, 3, 3, 3]), ("z", FLOAT, [1, 3, 3, 3])],
        w=weights,
    )
    data = RNG.standard_normal((4, 1, 3, 3, 3)).astype(np.float32)
    got = ran(made(model, Precision.FP32, tmp_path / "out"), model, tmp_path / "in", data)
    for wanted, value in zip(expected(model, data), got, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5)


def test_outputs_keep_the_source_order_and_inputs_of_other_types_pass(tmp_path: Path) -> None:
    """Token numbers and a float mask in, three outputs whose names sort differently from their order."""
    model = net(
        tmp_path / "model.onnx",
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("Mul", ["e", "mask"], ["z last"]),
            helper.make_node("MatMul", ["z last", "w"], ["a first"]),
            helper.make_node("ReduceMean", ["a first"], ["m"], axes=[1], keepdims=0),
        ],
        [("mask", FLOAT, [1, 6, 1]), ("ids", INT64, [1, 6])],
        [("z last", FLOAT, [1, 6, 8]), ("m", FLOAT, [1, 5]), ("a first", FLOAT, [1, 6, 5])],
        table=RNG.standard_normal((20, 8)).astype(np.float32),
        w=RNG.standard_normal((8, 5)).astype(np.float32),
    )
    mask = RNG.standard_normal((3, 1, 6, 1)).astype(np.float32)
    ids = RNG.integers(0, 20, (3, 1, 6))
    got = ran(made(model, Precision.FP32, tmp_path / "out"), model, tmp_path / "in", mask, ids)
    for wanted, value in zip(expected(model, mask, ids), got, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5)


def test_an_input_handed_through_as_an_output_survives_the_renaming(tmp_path: Path) -> None:
    model = net(
        tmp_path / "model.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", FLOAT, [1, 4])],
        [("y", FLOAT, [1, 4]), ("x", FLOAT, [1, 4])],
    )
    data = RNG.standard_normal((2, 1, 4)).astype(np.float32)
    y, x = ran(made(model, Precision.FP32, tmp_path / "out"), model, tmp_path / "in", data)
    np.testing.assert_array_equal(y, np.maximum(data, 0))
    np.testing.assert_array_equal(x, data)


def test_a_convolution_whose_weights_are_filled_at_run_time_converts(tmp_path: Path) -> None:
    filled = numpy_helper.from_array(np.array([0.25], np.float32))
    model = net(
        tmp_path / "model.onnx",
        [
            helper.make_node("ConstantOfShape", ["dims"], ["w"], value=filled),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ],
        [("x", FLOAT, [1, 2, 5, 5])],
        [("y", FLOAT, [1, 4, 3, 3])],
        dims=np.array([4, 2, 3, 3], np.int64),
    )
    data = RNG.standard_normal((2, 1, 2, 5, 5)).astype(np.float32)
    (got,) = ran(made(model, Precision.FP32, tmp_path / "out"), model, tmp_path / "in", data)
    np.testing.assert_allclose(got, expected(model, data)[0], atol=1e-5)


def test_a_pooling_padded_with_minus_infinity_does_not_spoil_int8(tmp_path: Path) -> None:
    model = net(
        tmp_path / "model.onnx",
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        ],
        [("x", FLOAT, [1, 3, 12, 12])],
        [("y", FLOAT, [1, 8, 5, 5])],
        w=(RNG.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32),
    )
    data = RNG.standard_normal((16, 1, 3, 12, 12)).astype(np.float32)
    base = made(model, Precision.FP32, tmp_path / "fp32")
    calibration = Calibration(path=folder_of(tmp_path / "cal", data), digest="", count=16)
    small = made(model, Precision.INT8, tmp_path / "int8", calibration, base)
    (got,) = ran(small, model, tmp_path / "in", data)
    assert sqnr(expected(model, data)[0], got) > 20


def test_int8_leaves_a_normalisation_in_float_where_integers_would_spoil_it(tmp_path: Path) -> None:
    """A layer normalisation in parts, with one channel a thousand times larger than the others."""
    scale = np.ones(16, np.float32)
    scale[3] = 1000.0
    model = net(
        tmp_path / "model.onnx",
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Mul", ["h", "s"], ["l"]),
            helper.make_node("ReduceMean", ["l"], ["mean"], axes=[-1]),
            helper.make_node("Sub", ["l", "mean"], ["d"]),
            helper.make_node("Div", ["d", "s"], ["n"]),
            helper.make_node("MatMul", ["n", "w2"], ["y"]),
        ],
        [("x", FLOAT, [1, 16])],
        [("y", FLOAT, [1, 8])],
        w1=(RNG.standard_normal((16, 16)) / 4).astype(np.float32),
        w2=(RNG.standard_normal((16, 8)) / 4).astype(np.float32),
        s=scale,
    )
    data = RNG.standard_normal((24, 1, 16)).astype(np.float32)
    base = made(model, Precision.FP32, tmp_path / "fp32")
    calibration = Calibration(path=folder_of(tmp_path / "cal", data), digest="", count=24)
    small = made(model, Precision.INT8, tmp_path / "int8", calibration, base)
    (got,) = ran(small, model, tmp_path / "in", data)
    assert sqnr(expected(model, data)[0], got) > 12


def test_the_same_model_gives_the_same_bytes_twice_and_keeps_its_input(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    before = model.path.read_bytes()
    calibration = Calibration(path=folder_of(tmp_path / "cal", images(tmp_path, 8, 5)), digest="", count=8)
    runs = []
    for turn in (1, 2):
        base = made(model, Precision.FP32, tmp_path / f"fp32-{turn}")
        small = [made(model, p, tmp_path / f"{p}-{turn}", calibration, base) for p in (Precision.FP16, Precision.INT8)]
        runs.append([(a.folder / FILE).read_bytes() for a in (base, *small)])
    assert runs[0] == runs[1]
    assert model.path.read_bytes() == before


def test_a_grouped_convolution_over_one_axis_with_weights_in_a_node_converts(tmp_path: Path) -> None:
    """onnx2tf knows groups over two axes only, and takes weights from initializers only."""
    weights = numpy_helper.from_array(RNG.standard_normal((6, 2, 3), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weights),
        helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[2, 1], strides=[2], dilations=[1]),
    ]
    model = net(tmp_path / "m.onnx", nodes, [("x", FLOAT, [1, 4, 9])], [("y", FLOAT, [1, 6, 5])])
    folder, got = tmp_path / "samples", tmp_path / "got"
    for made in (folder, got, tmp_path / "fp32"):
        made.mkdir()
    x = RNG.standard_normal((1, 1, 4, 9), np.float32)
    np.save(folder / "0.npy", x)
    TFLite().export(model, Precision.FP32, None, None, tmp_path / "fp32")
    TFLite().run(artifacts.read(tmp_path / "fp32"), model, folder, got)
    [expected] = ReferenceEvaluator(onnx.load(model.path)).run(None, {"x": x[0]})
    np.testing.assert_allclose(np.load(got / "0.npy")[0], expected, rtol=1e-4, atol=1e-5)


RECURRENT = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from unrolled import GATES, unrolled
random = np.random.default_rng(0)
for kind, gates in GATES.items():
    for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        for steps, given in ((1, False), (4, True)):
            sizes = {{"x": [steps, 2, 3], "h": [count, 2, 5]}} | ({{"c": [count, 2, 5]}} if kind == "LSTM" else {{}})
            states = [name for name in sizes if name != "x"] if given else []
            weights = {{"w": (count, gates * 5, 3), "r": (count, gates * 5, 5), "b": (count, 2 * gates * 5)}}
            held = [numpy_helper.from_array(random.standard_normal(s, np.float32), n) for n, s in weights.items()]
            outs = {{"y": [steps, count, 2, 5], "last": [count, 2, 5]}}
            outs |= {{"cell": sizes["c"]}} if "c" in sizes else {{}}
            for before in (0, 1) if kind == "GRU" else (None,):
                more = {{}} if before is None else {{"linear_before_reset": before}}
                inputs = ["x", "w", "r", "b", *(["", *states] if given else [])]
                node = helper.make_node(kind, inputs, list(outs), direction=direction, hidden_size=5, **more)
                values = [
                    [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in some.items()]
                    for some in ({{n: sizes[n] for n in ("x", *states)}}, outs)
                ]
                model = helper.make_model(
                    helper.make_graph([node], "g", *values, held), ir_version=8,
                    opset_imports=[helper.make_opsetid("", 17)],
                )
                feed = {{n: random.standard_normal(sizes[n], np.float32) for n in ("x", *states)}}
                run = lambda m: onnxruntime.InferenceSession(m.SerializeToString()).run(None, feed)
                expected, plain = run(model), unrolled(model)
                assert not {{n.op_type for n in plain.graph.node}} & set(GATES)
                for a, b in zip(expected, run(plain), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
"""


def test_recurrent_layers_written_out_compute_what_onnx_runtime_does(tmp_path: Path) -> None:
    code = RECURRENT.format(folder=str(converter.FOLDER))
    argv = [converter.environment("onnx_to_tflite"), "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_recurrent_model_answers_the_same_question_alike_whatever_it_was_asked_before(tmp_path: Path) -> None:
    """TFLite's own LSTM goes on from where the last run ended."""
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], direction="bidirectional", hidden_size=6)]
    weights = {"w": RNG.standard_normal((2, 24, 4), np.float32), "r": RNG.standard_normal((2, 24, 6), np.float32)}
    model = net(tmp_path / "m.onnx", nodes, [("x", FLOAT, [5, 1, 4])], [("y", FLOAT, [2, 1, 6])], **weights)
    folder, got = tmp_path / "samples", tmp_path / "got"
    for made in (folder, got, tmp_path / "fp32"):
        made.mkdir()
    question, other = RNG.standard_normal((2, 5, 1, 4), np.float32)
    np.save(folder / "0.npy", np.stack([question, other, question]))
    engine = TFLite()
    engine.export(model, Precision.FP32, None, None, tmp_path / "fp32")
    engine.run(artifacts.read(tmp_path / "fp32"), model, folder, got)
    answers = np.load(got / "0.npy")
    np.testing.assert_array_equal(answers[0], answers[2])
    [expected] = ReferenceEvaluator(onnx.load(model.path)).run(None, {"x": question})
    np.testing.assert_allclose(answers[0], expected, rtol=1e-4, atol=1e-5)


def test_int8_without_samples_is_refused(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    base = made(model, Precision.FP32, tmp_path / "fp32")
    with pytest.raises(CalibrationError, match="real samples"):
        made(model, Precision.INT8, tmp_path / "int8", None, base)


def test_an_operator_that_onnx2tf_does_not_know_is_a_failure_of_the_tool(tmp_path: Path) -> None:
    model = net(
        tmp_path / "model.onnx",
        [helper.make_node("Det", ["x"], ["y"])],
        [("x", FLOAT, [1, 4, 4])],
        [("y", FLOAT, [1])],
    )
    with pytest.raises(ToolFailed, match="onnx2tf"):
        made(model, Precision.FP32, tmp_path / "out")


def test_a_damaged_file_is_a_failure_that_names_the_engine(tmp_path: Path) -> None:
    model = model_of(tiny_classifier(tmp_path / "model.onnx"))
    artifact = made(model, Precision.FP32, tmp_path / "out")
    (artifact.folder / FILE).write_bytes(b"\x18\x00\x00\x00TFL3")
    with pytest.raises(VariantError, match="cannot be loaded by LiteRT"):
        ran(artifact, model, tmp_path / "in", images(tmp_path, 2, 5))


def test_what_a_where_does_not_take_stays_out_even_if_it_is_nan(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Where", ["mask", "zero", "low"], ["bias"]),
        helper.make_node("Add", ["x", "bias"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["soft"], axis=-1),
        helper.make_node("ReduceMax", ["bias"], ["most"], axes=[-1], keepdims=1),
        helper.make_node("Equal", ["most", "low"], ["none"]),
        helper.make_node("Where", ["none", "zero", "soft"], ["y"]),
    ]
    scalars = {"zero": np.zeros(1, np.float32), "low": np.full(1, -np.inf, np.float32)}
    surface: list[Value] = [("mask", TensorProto.BOOL, [2, 5]), ("x", FLOAT, [2, 5])]
    model = net(tmp_path / "m.onnx", nodes, surface, [("y", FLOAT, [2, 5])], **scalars)
    mask = np.array([[[False] * 5, [True, False, True, True, False]]])
    x = RNG.standard_normal((1, 2, 5)).astype(np.float32)

    (got,) = ran(made(model, Precision.FP32, tmp_path / "fp32"), model, tmp_path / "in", mask, x)

    (wanted,) = expected(model, mask, x)
    assert not wanted[0, 0].any()
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_an_elu_with_an_alpha_of_its_own_keeps_it(tmp_path: Path) -> None:
    node = helper.make_node("Elu", ["x"], ["y"], alpha=2.0)
    model = net(tmp_path / "m.onnx", [node], [("x", FLOAT, [1, 6])], [("y", FLOAT, [1, 6])])
    x = RNG.standard_normal((1, 1, 6)).astype(np.float32)

    (got,) = ran(made(model, Precision.FP32, tmp_path / "fp32"), model, tmp_path / "in", x)

    np.testing.assert_allclose(got, expected(model, x)[0], atol=1e-6)


def test_a_model_that_fails_with_an_operator_written_out_is_tried_with_it(tmp_path: Path) -> None:
    """Attention on rank 3: the written-out form doesn't run in LiteRT, onnx2tf's own does."""
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=3, kv_num_heads=3)
    surface: list[Value] = [("q", FLOAT, [2, 4, 24]), ("k", FLOAT, [2, 6, 24]), ("v", FLOAT, [2, 6, 24])]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(*value) for value in surface],
        [helper.make_tensor_value_info("y", FLOAT, [2, 4, 24])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    model = model_of(path)
    given = [RNG.standard_normal((1, *shape)).astype(np.float32) for _, _, shape in surface]

    (got,) = ran(made(model, Precision.FP32, tmp_path / "fp32"), model, tmp_path / "in", *given)

    np.testing.assert_allclose(got, expected(model, *given)[0], atol=1e-5)

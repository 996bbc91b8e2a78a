"""INT8 .tflite files by the real tools: own scales of quantized models, file size, and what XNNPACK takes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepack import artifact as artifacts
from edgepack import converter
from edgepack.engines.tflite import FILE, TFLite
from edgepack.errors import ToolMissing
from edgepack.types import Artifact, Calibration, Int8Options, Model, Precision
from tests.conftest import missing
from tests.integration.test_tflite import folder_of, model_of, ran, sqnr

RNG = np.random.default_rng(29)
TENSORS = """
import json, sys
from ai_edge_litert.interpreter import Interpreter
found = {}
for place in Interpreter(sys.argv[1]).get_tensor_details():
    coding = place["quantization_parameters"]
    found[str(place["index"])] = [place["name"], list(map(float, coding["scales"])),
        list(map(int, coding["zero_points"]))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        for script in ("onnx_to_tflite", "quantize_tflite", "run_tflite", "even_out"):
            converter.environment(script)
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


SPOILED = """
import sys
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
flat = schema.ModelT.InitFromPackedBuf(bytearray(open(sys.argv[1], "rb").read()))
flat.signatureDefs = None
for graph in flat.subgraphs:
    halves = []
    for tensor in list(graph.tensors):
        data = flat.buffers[tensor.buffer].data
        if tensor.type == schema.TensorType.FLOAT32 and data is not None and len(tensor.shape) == 4:
            half, buffer, widen = schema.TensorT(), schema.BufferT(), schema.OperatorT()
            half.name, half.shape, half.type = tensor.name + b"_half", tensor.shape, schema.TensorType.FLOAT16
            buffer.data = np.frombuffer(bytes(bytearray(data)), np.float32).astype(np.float16).view(np.uint8)
            flat.buffers.append(buffer)
            half.buffer, tensor.buffer = len(flat.buffers) - 1, 0
            graph.tensors.append(half)
            widen.inputs, widen.outputs = [len(graph.tensors) - 1], [graph.tensors.index(tensor)]
            widen.opcodeIndex = len(flat.operatorCodes)
            halves.append(widen)
    graph.operators = halves + graph.operators
code = schema.OperatorCodeT()
code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
code.version = 1
flat.operatorCodes.append(code)
for code in flat.operatorCodes:
    code.deprecatedBuiltinCode, code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode), 0
open(sys.argv[1], "wb").write(flatbuffer_utils.convert_object_to_bytearray(flat))
"""


def tensors_of(made: Artifact) -> list[tuple[str, list[float], list[int]]]:
    """Name, scales and zero points of every tensor of a .tflite that has a scale."""
    argv: list[Any] = [converter.environment("run_tflite"), "-c", TENSORS, made.folder / made.files[0]]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [tuple(item) for item in json.loads(done.stdout.splitlines()[-1]).values() if item[1]]


def pair(name: str, scale: float, zero: int, kind: type = np.uint8) -> tuple[list[Any], dict[str, np.ndarray]]:
    """A QuantizeLinear/DequantizeLinear pair: `name` -> `name`_q -> `name`_d."""
    terms = {f"{name}_s": np.array(scale, np.float32), f"{name}_z": np.array(zero, kind)}
    return [
        helper.make_node("QuantizeLinear", [name, *terms], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *terms], [f"{name}_d"]),
    ], terms


SCALES = {"x": (0.03, 128), "r": (0.0234, 0), "h": (0.05, 101), "y": (0.11, 140)}


def trained(path: Path, zero: int = 0) -> Model:
    """1x3x8x8 -> 1x5 as quantization-aware training leaves it: pairs around everything, integers for the weights.

    The first pair after a convolution stands behind its Relu, the second where a Relu was: its integers start at 0.
    """
    random = np.random.default_rng(1)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (5, 8)}
    arrays: dict[str, np.ndarray] = {}
    nodes = []
    for name, shape in shapes.items():
        # -127 is left out: a training tool's range need not be what the largest weight says
        arrays |= {
            name: random.integers(-90, 91, shape, np.int8),
            f"{name}_s": random.uniform(0.002, 0.006, shape[0]).astype(np.float32),
            f"{name}_z": np.full(shape[0], zero, np.int8),
        }
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_d"], axis=0))
    for name, (scale, offset) in SCALES.items():
        both, terms = pair(name, scale, offset)
        nodes += both
        arrays |= terms
    arrays["b1"] = random.standard_normal(8).astype(np.float32) / 4
    nodes += [
        helper.make_node("Conv", ["x_d", "w1_d", "b1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r_d", "w2_d"], ["h"], group=8),
        helper.make_node("MaxPool", ["h_d"], ["m"], kernel_shape=[6, 6]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w3_d"], ["y"], transB=1),
    ]
    order = {name: index for index, name in enumerate(("x", "c", "r", "h", "m", "f", "y"))}
    ranked = {"QuantizeLinear": 1, "DequantizeLinear": 2}

    def place(node: onnx.NodeProto) -> tuple[int, int]:
        first = node.input[0].removesuffix("_q") if node.op_type in ranked else node.output[0]
        return order.get(first, -1), ranked.get(node.op_type, 0)

    graph = helper.make_graph(
        sorted(nodes, key=place),
        "trained",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y_d", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return model_of(path)


def exported(model: Model, data: np.ndarray, folder: Path, int8: Int8Options | None = None) -> Artifact:
    for name in ("fp32", "int8"):
        (folder / name).mkdir(parents=True)
    TFLite().export(model, Precision.FP32, None, None, folder / "fp32")
    calibration = Calibration(path=folder_of(folder / "cal", data), digest="", count=len(data))
    TFLite().export(
        model, Precision.INT8, calibration, folder / "fp32", folder / "int8", int8 or Int8Options(effort="fast")
    )
    return artifacts.read(folder / "int8")


def test_a_model_trained_with_its_scales_keeps_them_in_the_file_and_gives_the_same_integers(tmp_path: Path) -> None:
    model = trained(tmp_path / "model.onnx")
    data = RNG.uniform(-3.5, 3.5, (24, 1, 3, 8, 8)).astype(np.float32)
    made = exported(model, data, tmp_path)
    there = tensors_of(made)
    for name, (scale, zero) in SCALES.items():
        assert any(s == [np.float32(scale)] and z == [zero - 128] for _, s, z in there), name
    weights = {item.name: numpy_helper.to_array(item) for item in onnx.load(model.path).graph.initializer}
    for name in ("w1", "w2", "w3"):
        assert any(np.array_equal(np.float32(s), weights[f"{name}_s"]) and not any(z) for _, s, z in there), name
    assert made.outputs[0].scale == np.float32(0.11) and made.outputs[0].zero_point == 140 - 128
    (got,) = ran(made, model, tmp_path / "in", data)
    session = ReferenceEvaluator(str(model.path))
    wanted = np.stack([session.run(None, {"x": row})[0] for row in data])
    steps = np.abs(got - wanted) / 0.11
    assert steps.max() < 1.5 and (steps > 0.5).mean() < 0.1, "a step of the output, and rarely"
    assert made.facts["float"] == [] and made.facts["own_scales"] >= 4


def test_weights_with_a_zero_point_stay_in_float_and_are_named(tmp_path: Path) -> None:
    model = trained(tmp_path / "model.onnx", zero=3)
    data = RNG.uniform(-3.5, 3.5, (16, 1, 3, 8, 8)).astype(np.float32)
    made = exported(model, data, tmp_path)
    assert sorted(made.facts["asymmetric"]) == ["c", "h", "y"]
    assert len([item for item in made.facts["float"] if item.split()[0] in ("CONV_2D", "DEPTHWISE_CONV_2D")]) == 2
    (got,) = ran(made, model, tmp_path / "in", data)
    session = ReferenceEvaluator(str(model.path))
    assert (
        sqnr(np.stack([session.run(None, {"x": row})[0] for row in data]), got) > 18
    )  # the last pair's step alone gives 20


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, np.ndarray, Path]:
    """Twelve convolutions of 64 channels, a hard sigmoid and a pooling; samples; and the folder of its float file."""
    folder = tmp_path_factory.mktemp("deep")
    arrays, nodes = {}, []
    for layer in range(12):
        source, target = f"t{layer}" if layer else "x", f"t{layer + 1}"
        arrays[f"w{layer}"] = (RNG.standard_normal((64, 64, 1, 1)) / 8).astype(np.float32)
        arrays[f"b{layer}"] = (RNG.standard_normal(64) / 8).astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"w{layer}", f"b{layer}"], [target]))
    nodes.append(helper.make_node("HardSigmoid", ["t12"], ["s"], alpha=0.2))
    nodes.append(helper.make_node("MaxPool", ["s"], ["y"], kernel_shape=[2, 2], strides=[2, 2]))
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, 2, 2])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model = model_of(path)
    (folder / "fp32").mkdir()
    TFLite().export(model, Precision.FP32, None, None, folder / "fp32")
    return model, RNG.standard_normal((8, 1, 64, 4, 4)).astype(np.float32), folder / "fp32"


def shrunk(deep: tuple[Model, np.ndarray, Path], base: Path, out: Path, int8: Int8Options) -> tuple[Artifact, float]:
    """The INT8 file of a float one, and how near it comes in dB."""
    model, data, _ = deep
    out.mkdir()
    calibration = Calibration(path=folder_of(out.with_name(f"{out.name}-cal"), data), digest="", count=len(data))
    TFLite().export(model, Precision.INT8, calibration, base, out, int8)
    made = artifacts.read(out)
    (got,) = ran(made, model, out.with_name(f"{out.name}-in"), data)
    session = ReferenceEvaluator(str(model.path))
    return made, sqnr(np.stack([session.run(None, {"x": row})[0] for row in data]), got)


def test_equal_vectors_are_stored_once_and_xnnpack_takes_every_operator(
    deep: tuple[Model, np.ndarray, Path], tmp_path: Path
) -> None:
    """Zero points of weights and biases are 12.6 kB of a file of 64 kB where each layer has its own."""
    made, closeness = shrunk(deep, deep[2], tmp_path / "int8", Int8Options(effort="fast"))
    content = (made.folder / FILE).read_bytes()
    assert content.count(bytes(8 * 64)) == 1
    assert len(content) <= 0.32 * (deep[2] / FILE).stat().st_size
    assert made.facts["beside_xnnpack"] == [] and made.facts["float"] == []
    assert made.inputs[0].dtype == made.outputs[0].dtype == "int8"
    assert closeness > 20


def test_the_surface_is_float_on_request_and_integers_are_inside(
    deep: tuple[Model, np.ndarray, Path], tmp_path: Path
) -> None:
    made, closeness = shrunk(deep, deep[2], tmp_path / "int8", Int8Options(effort="fast", surface="float"))
    assert made.inputs[0].dtype == made.outputs[0].dtype == "float32" and made.inputs[0].scale is None
    assert not [item for item in made.facts["float"] if "CONV" in item]
    assert closeness > 20


def test_a_file_with_old_operator_codes_and_float16_weights_is_quantized(
    deep: tuple[Model, np.ndarray, Path], tmp_path: Path
) -> None:
    base = tmp_path / "old"
    shutil.copytree(deep[2], base)
    python = converter.environment("quantize_tflite")
    subprocess.run([python, "-c", SPOILED, base / FILE], check=True, capture_output=True)
    made, closeness = shrunk(deep, base, tmp_path / "int8", Int8Options(effort="fast"))
    assert made.facts["float"] == [] and made.facts["beside_xnnpack"] == []
    assert closeness > 20


def test_channels_are_evened_out_with_the_same_nodes_and_outputs(tmp_path: Path) -> None:
    """A depthwise convolution reads channels of which one is two hundred times larger than the others."""
    scale = np.ones(8, np.float32)
    scale[2] = 200.0
    arrays = {
        "w1": (RNG.standard_normal((8, 3, 1, 1)) * scale[:, None, None, None]).astype(np.float32),
        "w2": RNG.standard_normal((8, 1, 3, 3)).astype(np.float32),
        "w3": (RNG.standard_normal((4, 8, 1, 1)) / scale[:, None, None]).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "uneven",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    source = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    data = RNG.standard_normal((6, 1, 3, 6, 6)).astype(np.float32)
    (tmp_path / "out").mkdir()
    request = {"model": str(source), "samples": str(folder_of(tmp_path / "samples", data)), "kept": []}
    assert converter.convert("even_out", request, tmp_path / "out")["changed"] >= 1
    made = onnx.load(tmp_path / "out" / "model.onnx")
    assert [node.output[0] for node in made.graph.node] == ["a", "b", "c", "y"]
    weights = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    rows = np.abs(weights[made.graph.node[0].input[1]]).max(axis=(1, 2, 3))
    assert rows.max() / rows.min() < 50 < np.abs(arrays["w1"]).max(axis=(1, 2, 3)).max()
    wanted, got = (ReferenceEvaluator(proto).run(None, {"x": data[0]})[0] for proto in (onnx.load(source), made))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)

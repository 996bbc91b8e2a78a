"""What users may ask of INT8, on ONNX Runtime and LiteRT: layers in float, rules, efforts, the same bytes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import artifact as artifacts
from edgepack import converter, process
from edgepack.engines.onnxruntime import OnnxRuntime
from edgepack.engines.tflite import LAYERS, TFLite, to_engine
from edgepack.errors import ToolMissing
from edgepack.quantizers.static import StaticQuantizer
from edgepack.types import Artifact, Calibration, Int8Options, Model, Precision
from tests.conftest import missing
from tests.integration.test_onnxruntime import calibration_of, expected, folder_of, model_of

RNG = np.random.default_rng(17)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        for script in ("quantize_onnx", "fuse_qdq", "onnx_to_tflite", "quantize_tflite", "run_tflite"):
            converter.environment(script)
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


def uneven_net(path: Path) -> Model:
    """1x3x16x16 -> 1x10: a batch normalisation, and a depth-wise convolution one of whose channels outshines the rest.

    As a detector's net it has residuals, and layers without an activation between them.
    """
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 1, 3, 3), "w3": (16, 16, 1, 1), "w4": (24, 16, 3, 3), "w5": (10, 24)}
    arrays = {name: RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    arrays["w2"][3] *= 60.0  # and what reads it makes up for that
    arrays["w3"][:, 3] /= 60.0
    arrays |= {name: RNG.standard_normal(16) / 4 for name in ("b2", "b3", "shift", "mean")}
    arrays |= {"gain": RNG.uniform(0.5, 2.0, 16), "variance": RNG.uniform(0.5, 2.0, 16)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "n1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "gain", "shift", "mean", "variance"], ["n"], "bn"),
        helper.make_node("Relu", ["n"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "n2", pads=[1, 1, 1, 1], group=16),
        helper.make_node("Conv", ["c2", "w3", "b3"], ["c3"], "n3"),
        helper.make_node("Add", ["c3", "r1"], ["a"], "add"),
        helper.make_node("Relu", ["a"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w4"], ["c4"], "n4", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c4"], ["r4"], "relu4"),
        helper.make_node("GlobalAveragePool", ["r4"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w5"], ["y"], "n5", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "uneven",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return model_of(path)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Calibration, Path]:
    """The net, calibration data for it, and the folder of its float .tflite."""
    folder = tmp_path_factory.mktemp("uneven")
    model = uneven_net(folder / "model.onnx")
    data = RNG.standard_normal((24, 1, 3, 16, 16)).astype(np.float32)
    (folder / "fp32").mkdir()
    TFLite().export(model, Precision.FP32, None, None, folder / "fp32")
    return model, calibration_of(folder / "calibration", data), folder / "fp32"


def quantized(uneven: tuple[Model, Calibration, Path], engine: str, out: Path, int8: Int8Options) -> Artifact:
    model, calibration, floating = uneven
    out.mkdir(parents=True)
    made: Any = OnnxRuntime() if engine == "onnxruntime" else TFLite()
    base = None if engine == "onnxruntime" else floating
    made.export(model, Precision.INT8, calibration, base, out, int8)
    return artifacts.read(out)


def ratio(uneven: tuple[Model, Calibration, Path], engine: str, made: Artifact) -> float:
    """Closeness to the float model on samples that calibration hasn't seen, in dB."""
    model, folder = uneven[0], made.folder
    data = np.random.default_rng(3).standard_normal((16, 1, 3, 16, 16)).astype(np.float32)
    (folder / "ran").mkdir()
    runner: Any = OnnxRuntime() if engine == "onnxruntime" else TFLite()
    runner.run(made, model, folder_of(folder / "in", data), folder / "ran")
    wanted, got = expected(model, data)[0], np.load(folder / "ran" / "0.npy")
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


@pytest.mark.parametrize("engine", ["onnxruntime", "tflite"])
def test_a_layer_that_is_named_stays_in_float_through_fusions(
    tmp_path: Path, uneven: tuple[Model, Calibration, Path], engine: str
) -> None:
    """The names of c1 and c2 are gone: one is fused with its normalisation, the other isn't."""
    plain = quantized(uneven, engine, tmp_path / "plain", Int8Options())
    asked = Int8Options(keep_float=("c1", "no such layer"), wide=("c4",))  # no engine has fast kernels for 16 bits
    mixed = quantized(uneven, engine, tmp_path / "mixed", asked)
    assert mixed.facts["kept_float"] == ["c1", "c4"]
    assert "kept_float" not in plain.facts
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(uneven[0].path).graph.initializer}
    layouts = (weights["w4"], weights["w4"].transpose(0, 2, 3, 1), weights["w4"].transpose(2, 3, 1, 0))
    exact = [np.ascontiguousarray(values).tobytes() for values in layouts]
    for made, there in ((plain, False), (mixed, True)):
        data = (made.folder / made.files[0]).read_bytes()
        assert any(values in data for values in exact) == there
    assert ratio(uneven, engine, mixed) > 20.0


@pytest.mark.parametrize("engine", ["onnxruntime", "tflite"])
def test_a_rule_and_every_effort_makes_a_file_and_more_effort_is_no_worse(
    tmp_path: Path, uneven: tuple[Model, Calibration, Path], engine: str
) -> None:
    found = {}
    for rule in ("average", "entropy") if engine == "onnxruntime" else ("entropy",):
        made = quantized(uneven, engine, tmp_path / rule, Int8Options(effort="fast", ranges=rule))  # type: ignore[arg-type]
        assert made.facts["ranges"] == rule and "sqnr_db" not in made.facts, "nothing is judged"
    for effort in ("fast", "high"):
        made = quantized(uneven, engine, tmp_path / effort, Int8Options(effort=effort))  # type: ignore[arg-type]
        found[effort] = ratio(uneven, engine, made)
    assert found["high"] > found["fast"] - 0.5
    assert found["high"] > 24.0


EVENED = """
import sys
from pathlib import Path
import numpy as np, onnx
sys.path.insert(0, sys.argv[1])
from onnx_session import prepare
from quantize_onnx import equalise, session_of
folder = Path(sys.argv[3])
prepared = prepare(Path(sys.argv[2]), folder / "prepared.onnx")
data = np.load(folder / "calibration" / "0.npy")
def outputs(names):
    onnx.save(prepared, folder / "evened.onnx")
    session = session_of(folder / "evened.onnx", "ORT_DISABLE_ALL")
    return [np.stack(column) for column in zip(*(session.run(names, {"x": row}) for row in data))]
prepared.graph.output.append(onnx.ValueInfoProto(name="c2"))
before = outputs(["y", "c2"])
del prepared.graph.output[1:]
assert equalise(prepared, set(), folder / "calibration", folder) > 0
onnx.checker.check_model(prepared)
prepared.graph.output.append(onnx.ValueInfoProto(name="c2"))
after = outputs(["y", "c2"])
np.testing.assert_allclose(after[0], before[0], rtol=1e-3, atol=1e-4)
spread = [np.abs(c).max(axis=(0, 1, 3, 4)) for c in (before[1], after[1])]
print(*(v.max() / np.median(v) for v in spread))
"""
COUNTED = """
import sys, onnx, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
options.optimized_model_filepath = sys.argv[2]
options.log_severity_level = 3
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(*(node.op_type for node in onnx.load(sys.argv[2]).graph.node))
"""


PARTS = """
import sys
from ai_edge_litert.interpreter import Interpreter
for file in sys.argv[1:]:
    interpreter = Interpreter(file, num_threads=1)
    interpreter.allocate_tensors()
    print(sum(operator["op_name"] == "DELEGATE" for operator in interpreter._get_ops_details()))
"""


def told(program: str, *arguments: Path, script: str = "quantize_onnx") -> list[str]:
    """The words that a program prints in the environment of a converter."""
    done = process.run([converter.environment(script), "-c", program, *arguments])
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_evened_channels_leave_the_float_model_as_it_is(
    tmp_path: Path, uneven: tuple[Model, Calibration, Path]
) -> None:
    model, calibration, _ = uneven
    shutil.copytree(calibration.path, tmp_path / "calibration")
    before, after = map(float, told(EVENED, converter.FOLDER, model.path, tmp_path))
    assert after < 0.5 * before


@pytest.mark.parametrize("effort", ["normal", "high"])
def test_every_convolution_runs_in_integers_and_no_float_weights_are_left(
    tmp_path: Path, uneven: tuple[Model, Calibration, Path], effort: str
) -> None:
    model, calibration, _ = uneven
    StaticQuantizer().quantize(model, calibration, Int8Options(effort=effort), tmp_path)  # type: ignore[arg-type]
    made = onnx.load(tmp_path / "model.onnx")
    used = {name for node in made.graph.node for name in node.input}
    assert {tensor.name for tensor in made.graph.initializer} <= used
    largest = max((int(np.prod(t.dims)) for t in made.graph.initializer if t.data_type == TensorProto.FLOAT), default=0)
    assert largest <= 24, "scales and factors of channels only"
    operators = told(COUNTED, tmp_path / "model.onnx", tmp_path / "optimised.onnx")
    assert operators.count("QLinearConv") == 4
    assert "Conv" not in operators and "FusedConv" not in operators and "Gemm" not in operators


def test_litert_hands_the_integer_graph_to_xnnpack_in_one_piece(
    tmp_path: Path, uneven: tuple[Model, Calibration, Path]
) -> None:
    made = quantized(uneven, "tflite", tmp_path / "int8", Int8Options(effort="fast"))
    assert told(PARTS, made.folder / made.files[0], script="quantize_tflite") == ["1"]


def test_the_same_seed_and_samples_give_the_same_bytes_with_one_and_two_threads(
    tmp_path: Path, uneven: tuple[Model, Calibration, Path]
) -> None:
    model, calibration, floating = uneven
    int8 = asdict(replace(Int8Options(), effort="high"))
    base = artifacts.read(floating)
    (tmp_path / "samples").mkdir()
    to_engine(calibration.path, base.inputs, tmp_path / "samples")
    requests: dict[str, dict[str, Any]] = {
        "quantize_onnx": {"model": str(model.path), "samples": str(calibration.path), "int8": int8},
        "quantize_tflite": {
            "model": str(floating / base.files[0]),
            "precision": "int8",
            "samples": str(tmp_path / "samples"),
            "inputs": [binding.name for binding in base.inputs],
            "layers": json.loads((floating / LAYERS).read_text()),
            "int8": int8,
        },
    }
    for script, request in requests.items():
        found = []
        for threads in (1, 2):
            out = tmp_path / f"{script}{threads}"
            out.mkdir()
            converter.convert(script, request, out, threads=threads)
            found.append(next(out.glob("model.*")).read_bytes())
        assert found[0] == found[1], script

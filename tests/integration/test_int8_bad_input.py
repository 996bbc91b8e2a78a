"""INT8 of models and samples that aren't as they should be: a sentence with the tensor's name, or a sound file.

Every engine is asked the same through `engine.export`, as a build does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import artifact as artifacts
from edgepack import calibration as calibrating
from edgepack import converter, plugins
from edgepack.cache import sha256_file
from edgepack.errors import CalibrationError, ToolFailed, ToolMissing, VariantError
from edgepack.quantizers.static import StaticQuantizer
from edgepack.types import Artifact, Calibration, Int8Options, Model, Precision
from tests.conftest import missing
from tests.integration.conftest import EDGEPACK
from tests.integration.test_onnxruntime import calibration_of, expected, folder_of, images, model_of
from tests.models import samples, tiny_classifier

ENGINES = ("onnxruntime", "tflite", "ncnn")
Change = Callable[[dict[str, np.ndarray], np.ndarray], None]
engines = pytest.mark.parametrize("name", ENGINES)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        for name in ENGINES:
            for precision in (Precision.FP32, Precision.INT8):
                for script in plugins.load("engines", name).tools(precision):
                    converter.environment(script)
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory):
    """Export a model in INT8 with one engine; the float file that it starts from is made once per model."""
    bases: dict[tuple[str, str], Path | VariantError] = {}

    def base_of(name: str, model: Model) -> Path | None:
        engine = plugins.load("engines", name)
        precision = engine.base(Precision.INT8)
        if precision is None:
            return None
        key = (name, sha256_file(model.path))
        if key not in bases:
            bases[key] = tmp_path_factory.mktemp(f"{name}-base")
            engine.export(model, precision, None, None, bases[key])
        return bases[key]

    def make(name: str, model: Model, data: Calibration | None, folder: Path, **options: object) -> Artifact:
        out = folder / f"{name}-int8"
        out.mkdir(parents=True)
        base = base_of(name, model)
        engine = plugins.load("engines", name)
        engine.export(model, Precision.INT8, data, base, out, Int8Options(**options))  # type: ignore[arg-type]
        return artifacts.read(out)

    return make


def outputs_of(name: str, found: Artifact, model: Model, data: Path, out: Path) -> list[np.ndarray]:
    out.mkdir()
    plugins.load("engines", name).run(found, model, data, out)
    return [np.load(out / f"{index}.npy") for index in range(len(model.outputs))]


def scales_in(found: Artifact) -> np.ndarray:
    """Every scale in a .tflite, flat."""
    code = (
        "import json, sys; from ai_edge_litert.interpreter import Interpreter\n"
        "tensors = Interpreter(sys.argv[1]).get_tensor_details()\n"
        "print(json.dumps([float(s) for t in tensors for s in t['quantization_parameters']['scales']]))"
    )
    argv = [converter.environment("run_tflite"), "-c", code, found.folder / found.files[0]]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return np.array(json.loads(done.stdout.splitlines()[-1]))


# --- models and samples that are odd, and sound all the same --------------------------------------------------------


def dead_channels(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    weights["w1"][0] = weights["b1"][0] = 0.0
    weights["w3"][2] = 0.0


def constant_activation(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    weights["w1"][:] = 0.0
    weights["b1"][:] = 3.0


def extreme_weight(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    weights["w2"][3, 0, 0, 0] = 1e18


def tiny_weights(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    weights["w1"] *= 1e-12
    weights["w2"] *= 1e-25


def black_samples(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    data[:] = 0.0


def extreme_sample(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    data[1, 0, 0, 3, 3] = 1e20


def no_change(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    pass


SOUND = [dead_channels, constant_activation, black_samples, extreme_weight, tiny_weights, extreme_sample]


def prepared(tmp_path: Path, change: Change, count: int = 8) -> tuple[Model, Calibration]:
    path = tiny_classifier(tmp_path / "model.onnx")
    proto = onnx.load(path)
    weights = {item.name: numpy_helper.to_array(item).copy() for item in proto.graph.initializer}
    data = images(tmp_path, count, 5)
    change(weights, data)
    for item in proto.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(weights[item.name], item.name))
    onnx.save(proto, path)
    return model_of(path), calibration_of(tmp_path / "calibration", data)


@pytest.mark.parametrize("change", SOUND)
def test_every_scale_in_an_onnx_file_is_a_positive_number(tmp_path: Path, change: Change) -> None:
    model, calibration = prepared(tmp_path, change)
    (tmp_path / "out").mkdir()
    StaticQuantizer().quantize(model, calibration, Int8Options(effort="high"), tmp_path / "out")
    proto = onnx.load(tmp_path / "out" / "model.onnx")
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        scale = constants[node.input[1]]
        assert np.isfinite(scale).all() and (scale > 0).all(), node.name


@engines
@pytest.mark.parametrize("change", SOUND)
def test_outputs_stay_finite(int8, tmp_path: Path, name: str, change: Change) -> None:
    model, calibration = prepared(tmp_path, change)
    found = int8(name, model, calibration, tmp_path)
    inputs = folder_of(tmp_path / "in", images(tmp_path, 4, 6))
    (scores,) = outputs_of(name, found, model, inputs, tmp_path / "ran")
    assert np.isfinite(scores).all()
    if name == "tflite":
        scales = scales_in(found)
        assert len(scales) and np.isfinite(scales).all() and (scales > 0).all()


@engines
def test_one_sample_is_enough_for_a_sound_file(int8, tmp_path: Path, name: str) -> None:
    model, calibration = prepared(tmp_path, no_change, count=1)
    found = int8(name, model, calibration, tmp_path)
    (scores,) = outputs_of(name, found, model, calibration.path, tmp_path / "ran")
    (wanted,) = expected(model, np.load(calibration.path / "0.npy"))
    assert np.abs(scores - wanted).max() < 0.1 * np.abs(wanted).max()


@engines
def test_the_same_samples_give_the_same_bytes_also_at_the_same_time(int8, tmp_path: Path, name: str) -> None:
    model, calibration = prepared(tmp_path, no_change)
    alone = int8(name, model, calibration, tmp_path / "alone")
    with ThreadPoolExecutor(2) as pool:
        beside = list(pool.map(lambda side: int8(name, model, calibration, tmp_path / side), ("left", "right")))
    for other in beside:
        assert other.files == alone.files and other.facts == alone.facts
        for file in alone.files:
            assert (other.folder / file).read_bytes() == (alone.folder / file).read_bytes()


# --- what is refused ------------------------------------------------------------------------------------------------


@engines
def test_no_samples_are_refused(int8, tmp_path: Path, name: str) -> None:
    model, _ = prepared(tmp_path, no_change)
    empty = calibration_of(tmp_path / "empty", np.zeros((0, 1, 3, 16, 16), np.float32))
    for number, data in enumerate((empty, None)):
        with pytest.raises(CalibrationError, match="real samples") as caught:
            int8(name, model, data, tmp_path / str(number))
        assert "--calib" in caught.value.hint


def test_samples_of_a_wrong_shape_or_type_never_reach_an_engine(tmp_path: Path) -> None:
    model, _ = prepared(tmp_path, no_change)
    wrong = {
        "NHWC": np.zeros((4, 16, 16, 3), np.float32),
        "size": np.zeros((4, 3, 16, 15), np.float32),
        "whole": np.zeros((4, 3, 16, 16), np.int64),
        "bool": np.zeros((4, 3, 16, 16), np.bool_),
        "none": np.zeros((0, 3, 16, 16), np.float32),
    }
    for what, array in wrong.items():
        np.savez(tmp_path / f"{what}.npz", image=array)
        with pytest.raises(CalibrationError, match=r"image|0 samples"):
            calibrating.gather(tmp_path / f"{what}.npz", model.inputs, {}, tmp_path / what)


@engines
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_or_infinity_in_weights_names_them(int8, tmp_path: Path, name: str, bad: float) -> None:
    def poison(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
        weights["w2"].flat[7] = bad

    model, calibration = prepared(tmp_path, poison)
    named = {"onnxruntime": "w2", "tflite": r"the weights \S+", "ncnn": r"the layer \S+"}[name]
    with pytest.raises(ToolFailed, match=rf"{named} (hold|has) .*(NaN|infinit)"):
        int8(name, model, calibration, tmp_path)


def infinite(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    weights["w1"][:] = 1e38
    data[:] = 1e3


def undefined(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
    weights["b1"][:] = np.finfo(np.float32).max
    weights["w2"][:, 0::2], weights["w2"][:, 1::2] = 1e38, -1e38  # infinity less infinity


@pytest.mark.parametrize(
    ("name", "change"),
    [*((name, infinite) for name in ENGINES), ("onnxruntime", undefined), ("tflite", undefined)],  # ncnn's ReLU gives 0
)
def test_nan_or_infinity_in_an_activation_names_it(int8, tmp_path: Path, name: str, change: Change) -> None:
    model, calibration = prepared(tmp_path, change)
    tensor = {"onnxruntime": r"[cr][12]", "tflite": r"\w+", "ncnn": r"the blob \w+"}[name]
    with pytest.raises(ToolFailed, match=rf"a calibration sample .*NaN or infinity in {tensor}: it can't be quantized"):
        int8(name, model, calibration, tmp_path)


@engines
def test_too_little_memory_is_told_with_the_limit(
    int8, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calibration = prepared(tmp_path, no_change)
    int8(name, model, calibration, tmp_path)  # so that the float file is there
    monkeypatch.setenv("EDGEPACK_CONVERTER_MEMORY_MB", "100")
    with pytest.raises(ToolFailed, match="memory limit of 100 MiB"):
        int8(name, model, calibration, tmp_path / "again")


# --- inputs of other types, quantized models, layers without an integer form ----------------------------------------


def lookup(path: Path) -> Path:
    """int64 ids 1x6 and a bool mask 1x6 -> an embedding, masked, through a fully connected layer -> 1x6x8."""
    random = np.random.default_rng(3)
    weights = {
        "table": random.standard_normal((40, 32)).astype(np.float32),
        "w": random.standard_normal((32, 8)).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Where", ["column", "rows", "zero"], ["masked"]),
        helper.make_node("MatMul", ["masked", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 6]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 6]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 8])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@engines
def test_whole_numbers_and_booleans_as_inputs_work_or_are_refused_in_a_sentence(
    int8, tmp_path: Path, name: str
) -> None:
    model = model_of(lookup(tmp_path / "model.onnx"))
    random = np.random.default_rng(4)
    data = calibration_of(tmp_path / "data", random.integers(0, 40, (20, 1, 6)), random.random((20, 1, 6)) < 0.7)
    try:
        found = int8(name, model, data, tmp_path)
    except VariantError as refusal:
        assert name == "ncnn" and refusal.message and refusal.hint
        return
    (got,) = outputs_of(name, found, model, data.path, tmp_path / "ran")
    (wanted,) = expected(model, np.load(data.path / "0.npy"), np.load(data.path / "1.npy"))
    assert np.square(got - wanted).sum() < 0.01 * np.square(wanted).sum()


@engines
def test_a_model_that_is_quantized_already_works_or_is_refused_in_a_sentence(int8, tmp_path: Path, name: str) -> None:
    model, calibration = prepared(tmp_path, no_change)
    (tmp_path / "qdq").mkdir()
    StaticQuantizer().quantize(model, calibration, Int8Options(), tmp_path / "qdq")
    quantized = model_of(tmp_path / "qdq" / "model.onnx")
    assert not plugins.load("engines", name).problems(quantized, Precision.INT8)
    try:
        found = int8(name, quantized, calibration, tmp_path)
    except VariantError as refusal:
        assert name != "onnxruntime" and refusal.message and refusal.hint
        return
    (got,) = outputs_of(name, found, model, calibration.path, tmp_path / "ran")
    (wanted,) = expected(model, np.load(calibration.path / "0.npy"))
    assert np.square(got - wanted).sum() < 0.02 * np.square(wanted).sum()


def mixed(path: Path) -> Path:
    """1x4x8x8 -> 1x4x16x16: a convolution, a sine, and a transposed depthwise convolution."""
    random = np.random.default_rng(3)
    weights = {
        "w1": random.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6,
        "w2": random.standard_normal((4, 1, 2, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Sin", ["c"], ["s"]),
        helper.make_node("ConvTranspose", ["s", "w2"], ["up"], strides=[2, 2], group=4),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("up", TensorProto.FLOAT, [1, 4, 16, 16])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@engines
def test_a_layer_without_an_integer_form_stays_in_float_and_is_listed(int8, tmp_path: Path, name: str) -> None:
    model = model_of(mixed(tmp_path / "model.onnx"))
    data = calibration_of(
        tmp_path / "data", np.random.default_rng(4).standard_normal((20, 1, 4, 8, 8)).astype(np.float32)
    )
    found = int8(name, model, data, tmp_path)

    layer = {"onnxruntime": "ConvTranspose up", "tflite": "SIN ", "ncnn": "DeconvolutionDepthWise "}[name]
    assert any(each.startswith(layer) for each in found.facts["float"]), found.facts["float"]
    (got,) = outputs_of(name, found, model, data.path, tmp_path / "ran")
    (wanted,) = expected(model, np.load(data.path / "0.npy"))
    assert np.square(got - wanted).sum() < 0.01 * np.square(wanted).sum()


def test_the_error_of_coarse_weights_does_not_shift_the_mean_of_an_output(int8, tmp_path: Path) -> None:
    def shifted(weights: dict[str, np.ndarray], data: np.ndarray) -> None:
        data += 20.0
        weights["w1"] += 0.3 * np.sign(weights["w1"])
        weights["w1"][:, 0, 0, 0] = 25.0  # one large weight a channel: the others have few steps

    model, calibration = prepared(tmp_path, shifted)
    wanted = expected(model, np.load(calibration.path / "0.npy"))[0]
    for name in ("onnxruntime", "tflite"):
        found = int8(name, model, calibration, tmp_path)
        (got,) = outputs_of(name, found, model, calibration.path, tmp_path / f"{name}-ran")
        shift = np.abs((got - wanted).mean(axis=(0, 1)))
        assert shift.max() < 0.01 * np.abs(wanted).mean(), name


# --- a whole build --------------------------------------------------------------------------------------------------


@engines
def test_an_interrupt_while_int8_is_calibrated_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    tiny_classifier(tmp_path / "tiny.onnx", side=16)
    samples(tmp_path / "calib.npz", count=512)
    argv = [
        EDGEPACK, "build", tmp_path / "tiny.onnx", "--target", "linux-x86_64", "--engine", name,
        "--precision", "int8", "--calib", tmp_path / "calib.npz", "-o", tmp_path / "o",
    ]  # fmt: skip
    environment = {**os.environ, "EDGEPACK_CACHE": str(tmp_path / "cache")}
    child = subprocess.Popen(list(map(str, argv)), env=environment, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if f"... export {name}-int8" in line:
            break
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()

    assert child.wait(30) == 130, rest
    assert not (tmp_path / "o").exists()
    assert not list((tmp_path / "cache" / "steps").glob("*/.*"))
    left = ["pgrep", "-af", str(tmp_path / "cache")]
    until = time.monotonic() + 20  # what was killed takes its time to go on a busy machine
    while subprocess.run(left, capture_output=True).stdout and time.monotonic() < until:
        time.sleep(0.1)
    assert subprocess.run(left, capture_output=True, text=True).stdout == ""

"""INT8 of models and samples that aren't as they should be: a sentence with the tensor's name, or a sound file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepack import artifact as artifacts
from edgepack import converter
from edgepack.engines.onnxruntime import OnnxRuntime
from edgepack.engines.tflite import TFLite
from edgepack.errors import ToolFailed, ToolMissing
from edgepack.quantizers.static import StaticQuantizer
from edgepack.types import Artifact, Calibration, Int8Options, Model, Precision
from tests.conftest import missing
from tests.integration.test_onnxruntime import calibration_of, expected, folder_of, images, model_of
from tests.models import tiny_classifier

Change = Callable[[dict[str, np.ndarray], np.ndarray], None]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        for script in ("quantize_onnx", "onnx_to_ort", "onnx_to_tflite", "quantize_tflite", "run_tflite"):
            converter.environment(script)
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


def dead_channels(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
    weights["w1"][0] = weights["b1"][0] = 0.0
    weights["w3"][2] = 0.0


def constant_activation(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
    weights["w1"][:] = 0.0
    weights["b1"][:] = 3.0


def black_samples(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
    samples[:] = 0.0


def extreme_weight(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
    weights["w2"][3, 0, 0, 0] = 1e18


def tiny_weights(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
    weights["w1"] *= 1e-12
    weights["w2"] *= 1e-25


def extreme_sample(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
    samples[1, 0, 0, 3, 3] = 1e20


SOUND = [dead_channels, constant_activation, black_samples, extreme_weight, tiny_weights, extreme_sample]


def prepared(tmp_path: Path, change: Change) -> tuple[Model, Calibration]:
    path = tiny_classifier(tmp_path / "model.onnx")
    proto = onnx.load(path)
    weights = {item.name: numpy_helper.to_array(item).copy() for item in proto.graph.initializer}
    data = images(tmp_path, 8, 5)
    change(weights, data)
    for item in proto.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(weights[item.name], item.name))
    onnx.save(proto, path)
    return model_of(path), calibration_of(tmp_path / "calibration", data)


def tflite_int8(model: Model, calibration: Calibration, tmp_path: Path) -> Artifact:
    for precision in (Precision.FP32, Precision.INT8):
        (tmp_path / precision).mkdir()
    engine = TFLite()
    engine.export(model, Precision.FP32, None, None, tmp_path / "fp32")
    engine.export(model, Precision.INT8, calibration, tmp_path / "fp32", tmp_path / "int8")
    return artifacts.read(tmp_path / "int8")


@pytest.mark.parametrize("change", SOUND)
def test_every_scale_in_an_onnx_file_is_a_positive_number(tmp_path: Path, change: Change) -> None:
    model, calibration = prepared(tmp_path, change)
    (tmp_path / "out").mkdir()
    StaticQuantizer().quantize(model, calibration, Int8Options(), tmp_path / "out")
    proto = onnx.load(tmp_path / "out" / "model.onnx")
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        scale = constants[node.input[1]]
        assert np.isfinite(scale).all() and (scale > 0).all(), node.name


@pytest.mark.parametrize("change", SOUND)
def test_outputs_stay_finite_on_every_engine(tmp_path: Path, change: Change) -> None:
    model, calibration = prepared(tmp_path, change)
    for engine, make in {OnnxRuntime: onnxruntime_int8, TFLite: tflite_int8}.items():
        folder = tmp_path / engine.name
        folder.mkdir()
        found = make(model, calibration, folder)
        (folder / "ran").mkdir()
        engine().run(found, model, folder_of(folder / "in", images(folder, 4, 6)), folder / "ran")
        assert np.isfinite(np.load(folder / "ran" / "0.npy")).all(), engine.name


def onnxruntime_int8(model: Model, calibration: Calibration, tmp_path: Path) -> Artifact:
    (tmp_path / "int8").mkdir()
    OnnxRuntime().export(model, Precision.INT8, calibration, None, tmp_path / "int8")
    return artifacts.read(tmp_path / "int8")


def test_nan_in_weights_names_them(tmp_path: Path) -> None:
    def poison(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
        weights["w2"].flat[7] = np.nan

    model, calibration = prepared(tmp_path, poison)
    (tmp_path / "out").mkdir()
    with pytest.raises(ToolFailed, match="w2 hold NaN or infinity"):
        StaticQuantizer().quantize(model, calibration, Int8Options(), tmp_path / "out")
    with pytest.raises(ToolFailed, match=r"weights .* hold NaN or infinity"):
        tflite_int8(model, calibration, tmp_path)


def test_infinity_in_an_activation_names_it(tmp_path: Path) -> None:
    def overflow(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
        weights["w1"][:] = 1e38
        samples[:] = 1e3

    model, calibration = prepared(tmp_path, overflow)
    (tmp_path / "out").mkdir()
    with pytest.raises(ToolFailed, match="compute NaN or infinity in r1"):
        StaticQuantizer().quantize(model, calibration, Int8Options(), tmp_path / "out")


def test_the_error_of_coarse_weights_does_not_shift_the_mean_of_an_output(tmp_path: Path) -> None:
    def shifted(weights: dict[str, np.ndarray], samples: np.ndarray) -> None:
        samples += 20.0
        weights["w1"] += 0.3 * np.sign(weights["w1"])
        weights["w1"][:, 0, 0, 0] = 25.0  # one large weight a channel: the others have few steps

    model, calibration = prepared(tmp_path, shifted)
    wanted = expected(model, np.load(calibration.path / "0.npy"))[0]
    for name, make in {"onnxruntime": onnxruntime_int8, "tflite": tflite_int8}.items():
        folder = tmp_path / name
        (folder / "ran").mkdir(parents=True)
        engine = OnnxRuntime() if name == "onnxruntime" else TFLite()
        engine.run(make(model, calibration, folder), model, calibration.path, folder / "ran")
        shift = np.abs((np.load(folder / "ran" / "0.npy") - wanted).mean(axis=(0, 1)))
        assert shift.max() < 0.01 * np.abs(wanted).mean(), name

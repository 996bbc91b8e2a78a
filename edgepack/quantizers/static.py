"""Static INT8 by ranges measured on real samples: a QDQ ONNX model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepack.converter import convert
from edgepack.errors import CalibrationError, Unsupported
from edgepack.types import Calibration, Int8Options, Model

# Operators with weights that INT8 makes smaller and faster, and those that may hold such operators inside.
_WEIGHTED = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "GRU", "If", "Loop", "LSTM", "MatMul", "RNN", "Scan"))


class StaticQuantizer:
    """Per-channel int8 weights, uint8 activations; ranges by trying how many rare values to leave out."""

    name = "static"
    version = "1"
    tools: tuple[str, ...] = ("quantize_onnx",)

    def quantize(self, model: Model, calibration: Calibration, int8: Int8Options, out: Path) -> dict[str, Any]:
        """Write ``out/model.onnx``; the layers of `int8.keep_float` stay in float. Returns what was `chosen`.

        Raises `ToolFailed` (a `VariantError`) when the model has nothing to quantize or the tool fails.
        """
        made = convert(
            "quantize_onnx",
            {
                "model": str(model.path),
                "samples": str(calibration.path),
                "int8": asdict(int8),
            },
            out,
        )
        return chosen(made)


def chosen(made: dict[str, Any]) -> dict[str, Any]:
    """What a quantizer's result tells of its choices: for an artifact's facts."""
    told = ("effort", "kept_float", "ranges", "recipe", "rounding", "equalised", "sqnr_db", "scales")
    return {key: made[key] for key in told if made.get(key) not in (None, [], 0)}


def has_quantized(model: Model) -> bool:
    """Whether the model holds QuantizeLinear/DequantizeLinear pairs already."""
    return "DequantizeLinear" in model.operators


def float_layers(quantized: Path) -> list[str]:
    """Layers with constant weights that a QDQ model computes in float, by their first output.

    A Conv has no integer kernel with a float bias, and a ConvTranspose none at all.
    """
    import onnx

    graph = onnx.load(quantized).graph
    integers = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    constants = {item.name for item in graph.initializer}
    return [
        f"{node.op_type} {node.output[0]}"
        for node in graph.node
        if node.op_type in _WEIGHTED
        and (constants.intersection(node.input[:2]) or not integers.isdisjoint(node.input[:2]))
        and (
            integers.isdisjoint(node.input)
            or node.op_type == "ConvTranspose"
            or (node.op_type == "Conv" and not constants.isdisjoint(node.input[2:]))
        )
    ]


def require_samples(calibration: Calibration | None, model: Model) -> Calibration:
    """The calibration data, where INT8 has both data and something to quantize.

    Raises `CalibrationError` without data (INT8 is never calibrated on noise) and `Unsupported` where no operator
    has weights.
    """
    if calibration is None or not calibration.count:
        raise CalibrationError(
            "INT8 needs real samples to measure the ranges of activations, and there are none.",
            "Give a folder of pictures or an .npz with --calib.",
        )
    if not _WEIGHTED.intersection(model.operators):
        raise Unsupported(
            "INT8 has nothing to quantize: the model has no convolution and no matrix product.",
            "Use fp32 or fp16; it would not get smaller or faster.",
        )
    return calibration

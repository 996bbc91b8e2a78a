"""Static INT8 by ranges measured on real samples: a QDQ ONNX model."""

from __future__ import annotations

from pathlib import Path

from edgepack.converter import convert
from edgepack.types import Calibration, Model


class StaticQuantizer:
    """Per-channel int8 weights, uint8 activations; ranges by trying how many rare values to leave out."""

    name = "static"
    version = "1"
    tools: tuple[str, ...] = ("quantize_onnx",)

    def quantize(self, model: Model, calibration: Calibration, exclude: tuple[str, ...], out: Path) -> None:
        """Write ``out/model.onnx``; nodes named in `exclude` stay in float.

        Raises `ToolFailed` (a `VariantError`) when the model has nothing to quantize or the tool fails.
        """
        convert(
            "quantize_onnx",
            {
                "model": str(model.path),
                "samples": str(calibration.path),
                "exclude": list(exclude),
            },
            out,
        )


def has_quantized(model: Model) -> bool:
    """Whether the model holds QuantizeLinear/DequantizeLinear pairs already."""
    return "DequantizeLinear" in model.operators

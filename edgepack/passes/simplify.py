"""Simplify with onnxsim, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from edgepack.converter import convert
from edgepack.types import Model


class Simplify:
    """Folds constants and merges nodes. The pipeline compares outputs and size, and reverts when in doubt."""

    name = "simplify"
    version = "1"
    tools: tuple[str, ...] = ("simplify_onnx",)

    def __call__(self, model: Model, out: Path) -> None:
        """Write ``out/model.onnx``. Raises `ToolFailed` when onnxsim refuses the model."""
        convert("simplify_onnx", {"model": str(model.path)}, out)

"""ONNX Runtime as the yardstick: the imported model on a tensor folder."""

from __future__ import annotations

from pathlib import Path

from edgepack import converter
from edgepack.types import Model


def infer(model: Model, samples: Path, out: Path) -> None:
    """Run the model by ONNX Runtime: tensor folder in, tensor folder out. Raises `ToolFailed`."""
    request = {
        "files": [str(model.path)],
        "inputs": [spec.name for spec in model.inputs],
        "outputs": [spec.name for spec in model.outputs],
        "samples": str(samples),
        "threads": 1,
        "timed": 0,
    }
    converter.convert("run_onnxruntime", request, out)

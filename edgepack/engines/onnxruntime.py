"""ONNX Runtime: ``.ort`` files for fp32, ordinary ONNX files for INT8 and for fp16 weights.

- fp32 and int8 are optimised ahead of time, without what holds on one kind of CPU only. fp32 is written in ONNX
  Runtime's own format: the device doesn't parse or optimise at start. In INT8 the tables of that format weigh as
  much as a small network's weights, so it is an ONNX file (PP-OCR det loads in 29 ms, not 18, and is a quarter less).
- fp16 stores weights as float16 and widens them when the model is loaded (constant folding), so arithmetic,
  and with it the result, is float32 on every CPU. An ``.ort`` file can't do that: it is not optimised at load,
  so it would widen all weights again in each run.
- int8 is QDQ, made by the quantizer; activations uint8, weights int8 per channel, float32 at the surface.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgepack import artifact as artifacts
from edgepack.converter import convert
from edgepack.quantizers.static import StaticQuantizer, float_layers, has_quantized, require_samples
from edgepack.types import (
    DEFAULT_INT8,
    Artifact,
    Calibration,
    Int8Options,
    Model,
    Precision,
    Problem,
    RuntimeSpec,
    Target,
)

TIMED_RUNS = 5
BUILD_CONFIG = "ort_operators"


class OnnxRuntime:
    """The engine ``onnxruntime``."""

    name = "onnxruntime"
    version = "1"
    int8: Literal["qdq", "own", "none"] = "qdq"
    keeps_scales = True
    runtime_needs_layers = False
    build_config_tools = (BUILD_CONFIG,)

    def tools(self, precision: Precision) -> tuple[str, ...]:
        """Converter scripts that export and run use at `precision`."""
        if precision is Precision.INT8:
            return ("fuse_qdq", "quantize_onnx", "run_onnxruntime")
        return ("onnx_to_fp16" if precision is Precision.FP16 else "onnx_to_ort", "run_onnxruntime")

    def base(self, precision: Precision) -> Precision | None:
        """Every precision starts from the ONNX model."""
        return None

    def problems(self, model: Model, precision: Precision) -> list[Problem]:
        """ONNX Runtime takes any standard ONNX model; only an INT8 without weighted operators is refused."""
        return []

    def export(
        self,
        model: Model,
        precision: Precision,
        calibration: Calibration | None,
        base: Path | None,
        out: Path,
        int8: Int8Options = DEFAULT_INT8,
    ) -> None:
        """Write ``model.ort`` (fp32) or ``model.onnx`` (fp16, int8).

        For int8 `model` may be a QDQ model already; a float one is quantized here with `calibration`.
        """
        source, facts = model.path, dict[str, Any]()
        if precision is Precision.FP16:
            convert("onnx_to_fp16", {"model": str(source)}, out)
            return self._write(model, ("model.onnx",), out)
        if precision is Precision.FP32:
            convert("onnx_to_ort", {"model": str(source)}, out)
            return self._write(model, ("model.ort",), out)
        folder = out.parent / f"{out.name}.qdq"
        if not has_quantized(model):
            calibration = require_samples(calibration, model)
            folder.mkdir(exist_ok=True)
            facts = StaticQuantizer().quantize(model, calibration, int8, folder)
            source = folder / "model.onnx"
            facts["float"] = float_layers(source)
        convert("fuse_qdq", {"model": str(source)}, out)
        shutil.rmtree(folder, ignore_errors=True)
        return self._write(model, ("model.onnx",), out, facts)

    def run(self, artifact: Artifact, model: Model, inputs: Path, out: Path) -> dict[str, Any]:
        """Run on the host: tensor folder in, tensor folder out."""
        return convert(
            "run_onnxruntime",
            {
                "files": [str(artifact.folder / artifact.files[0])],
                "inputs": [binding.name for binding in artifact.inputs],
                "outputs": [binding.name for binding in artifact.outputs],
                "samples": str(inputs),
                "threads": 1,
                "timed": TIMED_RUNS,
            },
            out,
        )

    def runtime(self, target: Target, layers: tuple[str, ...], precisions: tuple[Precision, ...]) -> RuntimeSpec:
        """The shared library of the target's wheel."""
        from edgepack import runtimes

        return runtimes.spec("onnxruntime", target)

    def build_config(self, artifacts: Mapping[str, Artifact], out: Path) -> None:
        """Write ``required_operators.config`` for who builds ONNX Runtime with no more than these variants need."""
        files = [str(artifact.folder / artifact.files[0]) for artifact in artifacts.values()]
        convert(BUILD_CONFIG, {"models": files, "names": list(artifacts)}, out)

    def _write(self, model: Model, files: tuple[str, ...], out: Path, facts: dict[str, Any] | None = None) -> None:
        artifacts.write(
            Artifact(
                folder=out,
                files=files,
                inputs=tuple(artifacts.identity(spec) for spec in model.inputs),
                outputs=tuple(artifacts.identity(spec) for spec in model.outputs),
                facts=facts or {},
            )
        )

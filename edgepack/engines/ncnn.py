"""The ncnn engine: `ncnn_export` makes float32, our own quantizer makes INT8, the ncnn wheel runs on the host.

ncnn's blobs have no batch: an axis of size 1 that is taken for it is dropped, the order of the bytes stays.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgepack import artifact as artifacts
from edgepack import converter, ncnn_export, operators
from edgepack.errors import Unsupported, VariantError
from edgepack.ncnn_export import PARAM, parts, read_param, rewrite, workspace
from edgepack.quantizers.static import require_samples
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

HALF_LIMIT = 65504 / 2  # half of float16's largest value: inputs other than the samples may reach further
TIMED_RUNS = 5

_WEIGHTED = {"Conv", "Gemm", "MatMul"}


class Ncnn:
    """`edgepack.interfaces.Engine` for Tencent's ncnn, CPU only."""

    name = "ncnn"
    version = "1.0.20261020"
    int8: Literal["qdq", "own", "none"] = "own"
    runtime_needs_layers = True
    layer_tool = "explain_ncnn"

    def tools(self, precision: Precision) -> tuple[str, ...]:
        """What makes fp32 belongs to fp32's key alone: the others start from its files."""
        return (
            ("onnx_to_ncnn", "run_ncnn", "run_onnxruntime")
            if precision is Precision.FP32
            else ("quantize_ncnn", "run_ncnn")
        )

    def base(self, precision: Precision) -> Precision | None:
        """fp16 and INT8 are made from the fp32 files (pnnx's own fp16 flushes small weights to zero)."""
        return None if precision is Precision.FP32 else Precision.FP32

    def problems(self, model: Model, precision: Precision) -> list[Problem]:
        """Operators that certainly fail, and nothing to quantize."""
        found = operators.problems(self.name, model.path, model.operators)
        if precision is Precision.INT8 and model.operators and not set(model.operators) & _WEIGHTED:
            found.append(_nothing_to_quantize())
        return found

    def export(
        self,
        model: Model,
        precision: Precision,
        calibration: Calibration | None,
        base: Path | None,
        out: Path,
        int8: Int8Options = DEFAULT_INT8,
    ) -> None:
        """Write ``model.ncnn.param``, ``model.ncnn.bin`` and ``artifact.json``; fp32 is loaded and run once before."""
        if precision is not Precision.FP32:
            assert base is not None
            self._shrink(artifacts.read(base), model, precision, calibration, out, int8)
            return
        artifacts.write(ncnn_export.export(model, out))

    def run(self, artifact: Artifact, model: Model, inputs: Path, out: Path) -> dict[str, Any]:
        """Run the ncnn wheel on one thread. Raises `VariantError` when ncnn can't load or run the files."""
        with workspace(out) as (samples, results):
            for index, binding in enumerate(artifact.inputs):
                rewrite(inputs, samples, index, binding)
            facts = ncnn_export.run(artifact, samples, results, timed=TIMED_RUNS)
            if facts["largest"] is not None and not facts["largest"] <= HALF_LIMIT:
                raise VariantError(
                    f"its values reach {facts['largest']:.3g} inside: float16 ends at 65504, so a CPU with float16 "
                    "arithmetic would give infinities or NaN",
                    "Use ncnn's fp32 or int8, or another engine's fp16, which computes in float32.",
                )
            for index, (binding, spec) in enumerate(zip(artifact.outputs, model.outputs, strict=True)):
                arrays = np.load(results / f"{index}.npy", mmap_mode="r")
                kept = _create(out / f"{index}.npy", spec.dtype, (len(arrays), *spec.shape))
                for sample, array in enumerate(arrays):
                    typed = np.ascontiguousarray(array).view(binding.dtype)
                    kept[sample] = artifacts.from_engine(typed, binding, spec).reshape(spec.shape)
                kept.flush()
        return {"latency_ms": facts["latency_ms"], "engine_version": facts["engine_version"]}

    def layers(self, floating: Artifact, made: Artifact, samples: Path, count: int, out: Path) -> dict[str, Any]:
        """Layer -> what ncnn's INT8 makes of it (see `edgepack.explain.Real`), on `count` of the source's samples."""
        with workspace(out) as (arrays, _):
            for index, binding in enumerate(floating.inputs):
                rewrite(samples, arrays, index, binding)
            request = {
                "float": [str(floating.folder / name) for name in floating.files],
                "int8": [str(made.folder / name) for name in made.files],
                "inputs": [binding.name for binding in floating.inputs],
                "samples": str(arrays),
                "count": count,
                **{key: made.facts[key] for key in ("names", "quantized", "codings", "evened")},
            }
            # It has the quantizer's pins, and so its environment.
            python = converter.environment("quantize_ncnn")
            found: dict[str, Any] = converter.convert(self.layer_tool, request, out, python=python)["layers"]
            return found

    def runtime(self, target: Target, layers: tuple[str, ...], precisions: tuple[Precision, ...]) -> RuntimeSpec:
        """ncnn's source, compiled with only `layers`."""
        from edgepack import runtimes

        return runtimes.spec("ncnn", target, layers, precisions)

    def _shrink(
        self,
        base: Artifact,
        model: Model,
        precision: Precision,
        calibration: Calibration | None,
        out: Path,
        int8: Int8Options,
    ) -> None:
        request: dict[str, Any] = {
            "files": [str(base.folder / name) for name in base.files],
            "precision": str(precision),
        }
        with workspace(out) as (samples, _):
            if precision is Precision.INT8:
                calibration = require_samples(calibration, model)
                for index, binding in enumerate(base.inputs):
                    rewrite(calibration.path, samples, index, binding)
                inputs = [binding.name for binding in base.inputs]
                request |= {"inputs": inputs, "samples": str(samples), "int8": asdict(int8), "onnx": str(model.path)}
            facts = converter.convert("quantize_ncnn", request, out)
        if precision is Precision.INT8 and not facts["quantized"]:
            problem = _nothing_to_quantize()
            raise Unsupported(problem.message, problem.hint)
        layers = parts(read_param(out / PARAM))
        artifacts.write(replace(base, folder=out, layers=layers, facts={"precision": str(precision), **facts}))


def _create(path: Path, dtype: str, shape: tuple[int, ...]) -> Any:
    return np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)


def _nothing_to_quantize() -> Problem:
    return Problem(
        node="",
        op="model",
        message="ncnn's INT8 covers convolutions and fully connected layers, and this model has none of them",
        hint="Use fp32 or fp16 with ncnn, or INT8 with another engine.",
    )

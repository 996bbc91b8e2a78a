"""LiteRT (TensorFlow Lite): onnx2tf makes the float32 file, ai-edge-quantizer makes fp16 and INT8 from it.

- A source that is a TFLite file already is kept as it is, as the variant of its own precision.
- fp32: onnx2tf's own backend, without TensorFlow. The converter script gives every tensor a plain name and finds
  out by a run how onnx2tf laid out the outputs, so names and layouts of the source never get lost.
- fp16: weights stored as float16, arithmetic and surface float32 (onnx2tf's own float16 file changes the surface).
- int8: weights and activations, quantized surface: the bindings carry scale and zero point.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgepack import artifact as artifacts
from edgepack import log
from edgepack.converter import convert, environment
from edgepack.errors import ToolFailed, VariantError
from edgepack.quantizers.static import chosen, require_samples
from edgepack.types import (
    DEFAULT_INT8,
    Artifact,
    Binding,
    Calibration,
    Int8Options,
    Model,
    Precision,
    Problem,
    RuntimeSpec,
    Target,
)

TIMED_RUNS = 5
RECIPES = ("full", "lean", "dynamic")  # of quantize_tflite, the more integers the earlier
ENOUGH = 16.0  # dB on the calibration samples, from which more integers are worth having
WORTH = 3.0  # dB that more integers may cost
CLEARLY = 1.0  # dB by which a file with as many integers must be better
FILE = "model.tflite"
SCALES = "scales.json"  # beside the float file of a quantized source: its scales by the names in that file
LAYERS = "layers.json"  # beside the float file: its names -> the source's layers


class TFLite:
    """The engine ``tflite``."""

    name = "tflite"
    version = "1"
    int8: Literal["qdq", "own", "none"] = "own"
    keeps_scales = True
    runtime_needs_layers = False
    layer_tool = "explain_tflite"

    def tools(self, precision: Precision) -> tuple[str, ...]:
        """Converter scripts that export and run use at `precision`."""
        if precision is Precision.INT8:
            return ("quantize_tflite", "even_out", "onnx_to_tflite", "run_tflite")
        return ("onnx_to_tflite" if precision is Precision.FP32 else "quantize_tflite", "run_tflite")

    def base(self, precision: Precision) -> Precision | None:
        """fp16 and int8 start from the fp32 file."""
        return None if precision is Precision.FP32 else Precision.FP32

    def problems(self, model: Model, precision: Precision) -> list[Problem]:
        """None is known before a try: what onnx2tf can't convert, it says quickly."""
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
        """Write ``model.tflite``. Raises `VariantError` when a converter fails or its file can't be run."""
        facts: dict[str, Any] = {}
        if (origin := model.origin) is not None and (origin.engine, origin.precision) == (self.name, precision):
            shutil.copyfile(origin.path, out / FILE)
            inputs = tuple(artifacts.identity(spec) for spec in model.inputs)
            outputs = tuple(artifacts.identity(spec) for spec in model.outputs)
            (out / LAYERS).write_text("{}")  # the ONNX form was made of this file: its names are others
        elif precision is Precision.FP32:
            # A quantized .tflite is kept as it is; its integer surface has no place in the float form of another.
            own = origin is not None and origin.engine == self.name
            made = convert("onnx_to_tflite", {"model": str(model.path), "keep_pairs": own}, out)
            inputs = tuple(_binding(tensor) for tensor in made["inputs"])
            outputs = tuple(_binding(tensor) for tensor in made["outputs"])
            (out / LAYERS).write_text(json.dumps(made.get("layers", {}), indent=1))
            if made.get("scales"):
                (out / SCALES).write_text(json.dumps(made["scales"], indent=1))
        else:
            if base is None:
                raise VariantError(f"tflite {precision} starts from the fp32 file, which was not made.")
            floating = artifacts.read(base)
            made = self._quantize(model, precision, calibration, floating, out, int8)
            inputs = tuple(_requantized(binding, made["inputs"]) for binding in floating.inputs)
            outputs = tuple(_requantized(binding, made["outputs"]) for binding in floating.outputs)
            if precision is Precision.INT8:
                facts = {**chosen(made), **_own(made), "float": made["float"], "beside_xnnpack": made["beside_xnnpack"]}
        artifacts.write(Artifact(folder=out, files=(FILE,), inputs=inputs, outputs=outputs, facts=facts))

    def _quantize(
        self,
        model: Model,
        precision: Precision,
        calibration: Calibration | None,
        floating: Artifact,
        out: Path,
        int8: Int8Options,
    ) -> dict[str, Any]:
        request: dict[str, Any] = {"model": str(floating.folder / FILE), "precision": str(precision)}
        if precision is Precision.FP16:
            return convert("quantize_tflite", request, out)
        calibration = require_samples(calibration, model)
        samples = out.parent / f"{out.name}.samples"
        samples.mkdir(exist_ok=True)
        try:
            to_engine(calibration.path, floating.inputs, samples)
            request |= {"samples": str(samples), "inputs": [binding.name for binding in floating.inputs]}
            layers = floating.folder / LAYERS
            known = json.loads(layers.read_text()) if layers.is_file() else {}
            scales = floating.folder / SCALES
            given = json.loads(scales.read_text()) if scales.is_file() else None
            request |= {"int8": asdict(int8), "layers": known, "scales": given}
            made = convert("quantize_tflite", request, out)
            if given is None and model.origin is None and made.get("recipe") and made.get("sqnr_db") is not None:
                evened = out.parent / f"{out.name}.evened"
                evened.mkdir(exist_ok=True)
                made = _evened(model, calibration, floating, int8, request, made, evened, out)
            return made
        finally:
            shutil.rmtree(samples, ignore_errors=True)
            shutil.rmtree(out.parent / f"{out.name}.evened", ignore_errors=True)

    def run(self, artifact: Artifact, model: Model, inputs: Path, out: Path) -> dict[str, Any]:
        """Run on the host: tensor folder in, tensor folder out, both in the source's layout."""
        samples, raw = out.parent / f"{out.name}.samples", out.parent / f"{out.name}.raw"
        try:
            samples.mkdir(exist_ok=True)
            raw.mkdir(exist_ok=True)
            to_engine(inputs, artifact.inputs, samples)
            facts = convert(
                "run_tflite",
                {
                    "files": [str(artifact.folder / artifact.files[0])],
                    "inputs": [binding.name for binding in artifact.inputs],
                    "outputs": [binding.name for binding in artifact.outputs],
                    "samples": str(samples),
                    "threads": 1,
                    "timed": TIMED_RUNS,
                },
                raw,
            )
            for index, (binding, spec) in enumerate(zip(artifact.outputs, model.outputs, strict=True)):
                values = np.load(raw / f"{index}.npy", mmap_mode="r", allow_pickle=False)
                if values[0].size != math.prod(spec.shape):
                    raise VariantError(
                        f"its output {spec.name!r} has the shape {values.shape[1:]} in what onnx2tf wrote, and "
                        f"{spec.shape} in the source",
                        "The shape depends on the values of an input. Make that input a constant of the model.",
                    )
                back = [artifacts.from_engine(value, binding, spec) for value in values]
                np.save(out / f"{index}.npy", np.stack(back))
            return facts
        finally:
            shutil.rmtree(samples, ignore_errors=True)
            shutil.rmtree(raw, ignore_errors=True)

    def layers(self, floating: Artifact, made: Artifact, samples: Path, count: int, out: Path) -> dict[str, Any]:
        """Layer -> what LiteRT's INT8 makes of it (see `edgepack.explain.Real`), on `count` of the source's samples."""
        arrays = out.parent / f"{out.name}.samples"
        arrays.mkdir(exist_ok=True)
        try:
            to_engine(samples, floating.inputs, arrays)
            names = floating.folder / LAYERS
            request = {
                "float": str(floating.folder / FILE),
                "int8": str(made.folder / FILE),
                "inputs": [binding.name for binding in floating.inputs],
                "samples": str(arrays),
                "count": count,
                "names": json.loads(names.read_text()) if names.is_file() else {},
            }
            # It has the pins of the script that runs files, and so its environment.
            found: dict[str, Any] = convert(self.layer_tool, request, out, python=environment("run_tflite"))["layers"]
            return found
        finally:
            shutil.rmtree(arrays, ignore_errors=True)

    def runtime(self, target: Target, layers: tuple[str, ...], precisions: tuple[Precision, ...]) -> RuntimeSpec:
        """The shared library of the target's wheel."""
        from edgepack import runtimes

        return runtimes.spec("tflite", target)


def to_engine(folder: Path, bindings: Sequence[Binding], out: Path) -> None:
    """A tensor folder in the source's layout -> one in the engine's."""
    for index, binding in enumerate(bindings):
        artifacts.rewrite(folder / f"{index}.npy", binding, out / f"{index}.npy")


def _evened(
    model: Model,
    calibration: Calibration,
    floating: Artifact,
    int8: Int8Options,
    request: dict[str, Any],
    made: dict[str, Any],
    folder: Path,
    out: Path,
) -> dict[str, Any]:
    """Try channels that are evened out, where they may allow more integers; what the better file says of itself.

    More layers in integers win where their outputs are good enough and not much worse; at the effort "high" the nearer
    file of the same recipe wins, too. What can't be converted a second time is no failure.
    """
    at_most = RECIPES.index(made["recipe"]) + (int8.effort == "high")
    recipes = RECIPES[: min(at_most, 2)]
    if not recipes:
        return made
    source, converted, again = (folder / name for name in ("onnx", "float", "int8"))
    for path in (source, converted, again):
        path.mkdir()
    kept = [*int8.keep_float, *int8.wide]
    try:
        given = {"model": str(model.path), "samples": str(calibration.path), "kept": kept}
        changed = convert("even_out", given, source)["changed"]
        if not changed:
            return made
        other = convert("onnx_to_tflite", {"model": str(source / "model.onnx")}, converted)
        surface = [_binding(tensor) for tensor in (*other["inputs"], *other["outputs"])]
        if surface != [*floating.inputs, *floating.outputs]:
            return made
        told = {"model": str(converted / FILE), "layers": other["layers"], "recipes": recipes}
        tried = convert("quantize_tflite", request | told, again)
    except ToolFailed:
        return made
    more = RECIPES.index(tried["recipe"]) < RECIPES.index(made["recipe"])
    more = more and tried["sqnr_db"] >= max(ENOUGH, made["sqnr_db"] - WORTH)
    if not more and tried["sqnr_db"] < made["sqnr_db"] + CLEARLY:
        return made
    shutil.copyfile(again / FILE, out / FILE)
    return {**tried, "equalised": changed}


def _own(made: dict[str, Any]) -> dict[str, Any]:
    """What a file keeps of a quantized source's scales: for an artifact's facts."""
    if made.get("asymmetric"):
        log.warn(
            f"the weights of {made['asymmetric'][0]} have a zero point, and a .tflite has none for weights: "
            f"{len(made['asymmetric'])} such layers stay in float. Train with symmetric weights (qint8, zero point 0)."
        )
    return {key: made[key] for key in ("own_scales", "other_scales", "asymmetric") if made.get(key)}


def _binding(tensor: dict[str, Any]) -> Binding:
    return Binding(
        name=tensor["name"],
        dtype=tensor["dtype"],
        shape=tuple(tensor["shape"]),
        perm=tuple(tensor["perm"]),
    )


def _requantized(binding: Binding, tensors: dict[str, dict[str, Any]]) -> Binding:
    """The float file's binding with the name, dtype and scale that the quantized file has."""
    made = tensors[binding.name]
    return replace(
        binding,
        name=made["name"],
        dtype=made["dtype"],
        scale=made["scale"],
        zero_point=made["zero_point"],
    )

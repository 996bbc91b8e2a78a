"""The ncnn engine: pnnx converts, our own quantizer makes INT8, the ncnn wheel runs on the host.

ncnn's blobs have no batch: the axis that pnnx takes for the batch (size 1) is dropped, the order of the bytes
stays. pnnx exits 0 with files that ncnn can't load, so `export` loads and runs what it made before it says
that it made anything. Whether the outputs are *right* is measured later, against the source.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgepack import artifact as artifacts
from edgepack import converter, operators
from edgepack.errors import ToolFailed, Unsupported, VariantError
from edgepack.ncnn_source import BATCH, WINOGRAD
from edgepack.quantizers.static import require_samples
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
    TensorSpec,
)

HALF_LIMIT = 65504 / 2  # half of float16's largest value: inputs other than the samples may reach further
PARAM, WEIGHTS = "model.ncnn.param", "model.ncnn.bin"
MAGIC = "7767517"
CANNOT_BE = "cannot be "  # run_ncnn's verdicts start so; the rest of its message is for the log
TIMED_RUNS = 5
# The parameter 9 of convolutions and inner products -> the layer type that computes it.
FUSED = {"1": "ReLU", "2": "ReLU", "3": "Clip", "4": "Sigmoid", "5": "Mish", "6": "HardSwish"}

_WEIGHTED = {"Conv", "Gemm", "MatMul"}


class Ncnn:
    """`edgepack.interfaces.Engine` for Tencent's ncnn, CPU only."""

    name = "ncnn"
    version = "1.0.20261020"
    int8: Literal["qdq", "own", "none"] = "own"
    runtime_needs_layers = True
    layer_tool = "explain_ncnn"

    def tools(self, precision: Precision) -> tuple[str, ...]:
        """pnnx makes fp32; the others start from its files, so that it belongs to fp32's key alone."""
        return ("onnx_to_ncnn", "run_ncnn") if precision is Precision.FP32 else ("quantize_ncnn", "run_ncnn")

    def base(self, precision: Precision) -> Precision | None:
        """fp16 and INT8 are made from the fp32 files (pnnx's own fp16 flushes small weights to zero)."""
        return None if precision is Precision.FP32 else Precision.FP32

    def problems(self, model: Model, precision: Precision) -> list[Problem]:
        """Operators that certainly fail, tensors with too many axes, and nothing to quantize."""
        found = [_too_many_axes(spec) for spec in model.inputs if _axes(spec.shape) > 4]
        found += operators.problems(self.name, model.path, model.operators)
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
        # Repairs make more models fit for ncnn; should they spoil one, it is tried as it is.
        first: VariantError | None = None
        for repair in (True, False):
            try:
                artifacts.write(self._convert(model, precision, repair, out))
                return
            except Unsupported:
                raise
            except VariantError as error:
                first = first or error
                for name in (PARAM, WEIGHTS):
                    (out / name).unlink(missing_ok=True)
        assert first is not None
        raise first

    def _convert(self, model: Model, precision: Precision, repair: bool, out: Path) -> Artifact:
        try:
            made = converter.convert("onnx_to_ncnn", {"model": str(model.path), "repair": repair}, out)
        except ToolFailed as error:
            hint = f"Use another engine for this model: --engine onnxruntime takes most operators. {error.hint}"
            raise VariantError(error.message, hint, log=error.log) from error
        param = _read_param(out / PARAM)
        draft = Artifact(
            folder=out,
            files=(PARAM, WEIGHTS),
            inputs=(),
            outputs=(),
            layers=_parts(param),
            facts={"precision": str(precision), "pnnx": made["complaints"]},
        )
        return _fit(draft, model, made["input_axes"], param)

    def run(self, artifact: Artifact, model: Model, inputs: Path, out: Path) -> dict[str, Any]:
        """Run the ncnn wheel on one thread. Raises `VariantError` when ncnn can't load or run the files."""
        with _workspace(out) as (samples, results):
            for index, binding in enumerate(artifact.inputs):
                _rewrite(inputs, samples, index, binding)
            facts = _run(artifact, samples, results, timed=TIMED_RUNS)
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
        with _workspace(out) as (arrays, _):
            for index, binding in enumerate(floating.inputs):
                _rewrite(samples, arrays, index, binding)
            request = {
                "float": [str(floating.folder / name) for name in floating.files],
                "int8": [str(made.folder / name) for name in made.files],
                "inputs": [binding.name for binding in floating.inputs],
                "samples": str(arrays),
                "count": count,
                **{key: made.facts[key] for key in ("names", "quantized", "codings")},
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
        with _workspace(out) as (samples, _):
            if precision is Precision.INT8:
                calibration = require_samples(calibration, model)
                for index, binding in enumerate(base.inputs):
                    _rewrite(calibration.path, samples, index, binding)
                inputs = [binding.name for binding in base.inputs]
                request |= {"inputs": inputs, "samples": str(samples), "int8": asdict(int8), "onnx": str(model.path)}
            facts = converter.convert("quantize_ncnn", request, out)
        if precision is Precision.INT8 and not facts["quantized"]:
            problem = _nothing_to_quantize()
            raise Unsupported(problem.message, problem.hint)
        layers = _parts(_read_param(out / PARAM))
        artifacts.write(replace(base, folder=out, layers=layers, facts={"precision": str(precision), **facts}))


def _run(artifact: Artifact, samples: Path, out: Path, *, timed: int) -> dict[str, Any]:
    request = {
        "files": [str(artifact.folder / name) for name in artifact.files],
        "inputs": [binding.name for binding in artifact.inputs],
        "outputs": [binding.name for binding in artifact.outputs],
        "samples": str(samples),
        "precision": artifact.facts["precision"],
        "threads": 1,
        "timed": timed,
    }
    try:
        return converter.convert("run_ncnn", request, out)
    except ToolFailed as error:
        place = error.message.find(CANNOT_BE)
        if place < 0:
            raise
        verdict = error.message[place:].rstrip(".")
        cause = "pnnx wrote a layer that ncnn doesn't have" if "not exists" in verdict else "pnnx misread the model"
        raise VariantError(
            verdict,
            f"It is likely that {cause}. Rewrite that part of the model, leave it to the caller, or use another "
            f"engine. {error.hint}",
            log=error.log,
        ) from error


def _fit(draft: Artifact, model: Model, axes: list[int | None], param: list[list[str]]) -> Artifact:
    """Find how ncnn wants the inputs (which unit axis is dropped) by running the files on made-up values."""
    blobs = {name for layer in param for name in _blobs(layer)[1]}
    for kind, specs in (("in", model.inputs), ("out", model.outputs)):
        for index, spec in enumerate(specs):
            if f"{kind}{index}" not in blobs:
                raise VariantError(
                    f"cannot be loaded by ncnn: pnnx dropped the {kind}put {spec.name!r}",
                    "Remove inputs that the model doesn't use, and outputs that don't depend on an input.",
                )
    first: VariantError | None = None
    for shapes in _layouts(model.inputs, axes):
        candidate = replace(
            draft,
            inputs=tuple(
                Binding(name=f"in{i}", dtype=_dtype(spec, f"in{i}", param), shape=shape, perm=_straight(spec))
                for i, (spec, shape) in enumerate(zip(model.inputs, shapes, strict=True))
            ),
            outputs=tuple(
                Binding(name=f"out{i}", dtype="float32", shape=(), perm=_straight(spec))
                for i, spec in enumerate(model.outputs)
            ),
        )
        try:
            return _try(candidate, model)
        except VariantError as error:
            first = first or error
            if "cannot be loaded" in error.message:
                break
    if first is None:
        raise Unsupported(
            f"ncnn takes one sample of at most four axes, but the inputs are {[s.shape for s in model.inputs]}",
            "Give the model a batch of 1 (`--input NAME=1x...`).",
        )
    raise first


def _try(candidate: Artifact, model: Model) -> Artifact:
    with _workspace(candidate.folder) as (samples, results):
        rng = np.random.default_rng(0)
        for index, binding in enumerate(candidate.inputs):
            made_up = rng.random((1, *binding.shape)) if binding.dtype == "float32" else np.zeros((1, *binding.shape))
            np.save(samples / f"{index}.npy", made_up.astype(binding.dtype))
        facts = _run(candidate, samples, results, timed=0)
    outputs = []
    for index, (spec, shape) in enumerate(zip(model.outputs, facts["shapes"], strict=True)):
        if math.prod(shape) != math.prod(spec.shape):
            raise VariantError(
                f"cannot be run by ncnn: output {spec.name!r} comes out as {tuple(shape)} instead of {spec.shape}",
                "pnnx misread the model's axes. Use another engine, or export the model with a batch of 1.",
            )
        whole = np.dtype(spec.dtype).kind in "iub" and index in facts["integer"]
        dtype = "int32" if whole else "float32"
        outputs.append(replace(candidate.outputs[index], shape=tuple(shape), dtype=dtype))
    return replace(candidate, outputs=tuple(outputs))


def _layouts(specs: tuple[TensorSpec, ...], axes: list[int | None]) -> list[tuple[tuple[int, ...], ...]]:
    """Shapes to try, likeliest first: pnnx's own word, no first axis, every axis, no second axis."""
    rules: list[list[int | None]] = [axes, [0] * len(specs), [None] * len(specs), [1] * len(specs)]
    found = [tuple(_without(spec.shape, axis) for spec, axis in zip(specs, rule, strict=True)) for rule in rules]
    return [shapes for shapes in dict.fromkeys(found) if all(1 <= len(shape) <= 4 for shape in shapes)]


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    if axis is not None and len(shape) > 1 and axis < len(shape) and shape[axis] == 1:
        return shape[:axis] + shape[axis + 1 :]
    return shape or (1,)


def _axes(shape: tuple[int, ...]) -> int:
    return len(_without(shape, 0))


def _straight(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(range(len(spec.shape)))


def _dtype(spec: TensorSpec, blob: str, param: list[list[str]]) -> str:
    """int32 where an Embed reads whole numbers, float32 otherwise: pnnx drops casts, ncnn computes in float."""
    if np.dtype(spec.dtype).kind not in "iu":
        return "float32"
    reached = {blob}
    for layer in param:
        bottoms, tops = _blobs(layer)
        if reached & set(bottoms):
            if layer[0] == "Embed":
                return "int32"
            if layer[0] in ("Split", "Reshape", "ExpandDims", "Squeeze", "Crop", "Flatten"):
                reached |= set(tops)
    return "float32"


def _read_param(path: Path) -> list[list[str]]:
    """The layers of a text .param, each cut at white space. Raises `VariantError`."""
    lines = path.read_text("utf-8").splitlines()
    if len(lines) < 3 or lines[0].strip() != MAGIC:
        raise VariantError("cannot be loaded by ncnn: pnnx wrote no .param file", "Run `edgepack doctor`.")
    return [line.split() for line in lines[2:] if line.strip()]


def _parts(param: list[list[str]]) -> tuple[str, ...]:
    """What of ncnn a model needs: its layer types, the activations fused into them, Winograd's kernels, batch axes."""
    found = set()
    for layer in param:
        found.add(layer[0])
        values = dict(word.split("=", 1) for word in layer[4:] if re.match(r"\d+=", word))
        found |= {FUSED[values["9"]]} if values.get("9") in FUSED else set()
        width, stride = values.get("1"), values.get("3", "1")
        square = values.get("11", width) == width and values.get("13", stride) == stride
        if layer[0].startswith("Convolution") and (width, stride) == ("3", "1") and square and not _depthwise(values):
            found.add(WINOGRAD)
        if layer[0] == "Reshape" and values.keys() & {"12", "13"}:
            found.add(BATCH)
    return tuple(sorted(found))


def _depthwise(values: dict[str, str]) -> bool:
    """Whether a convolution has as many groups as outputs, and one input channel for each."""
    outputs = int(values.get("0", 0))
    return int(values.get("7", 1)) == outputs > 1 and int(values.get("6", 0)) == 9 * outputs


def _blobs(layer: list[str]) -> tuple[list[str], list[str]]:
    """Names of what a layer reads and writes."""
    bottoms, tops = int(layer[2]), int(layer[3])
    return layer[4 : 4 + bottoms], layer[4 + bottoms : 4 + bottoms + tops]


@contextmanager
def _workspace(out: Path) -> Iterator[tuple[Path, Path]]:
    """Two scratch folders beside `out`, for arrays in ncnn's own shapes; removed afterwards."""
    folder = out.with_name(f"{out.name}.ncnn")
    shutil.rmtree(folder, ignore_errors=True)
    samples, results = folder / "in", folder / "out"
    samples.mkdir(parents=True)
    results.mkdir()
    try:
        yield samples, results
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rewrite(source: Path, target: Path, index: int, binding: Binding) -> None:
    """One input of a tensor folder in ncnn's shape and dtype. The harness refuses negative ids as well."""
    artifacts.rewrite(source / f"{index}.npy", binding, target / f"{index}.npy")
    if binding.dtype == "int32" and np.load(target / f"{index}.npy", mmap_mode="r").min(initial=0) < 0:
        raise VariantError(
            f"input {index} holds negative ids: ONNX counts them from the table's end, ncnn looks up its first row",
            "Give ids from 0 on (add the size of the table to negative ones), or use another engine.",
        )


def _create(path: Path, dtype: str, shape: tuple[int, ...]) -> Any:
    return np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)


def _too_many_axes(spec: TensorSpec) -> Problem:
    return Problem(
        node=spec.name,
        op="input",
        message=f"ncnn's tensors have at most four axes besides the batch, this one is {spec.shape}",
        hint="Use another engine.",
    )


def _nothing_to_quantize() -> Problem:
    return Problem(
        node="",
        op="model",
        message="ncnn's INT8 covers convolutions and fully connected layers, and this model has none of them",
        hint="Use fp32 or fp16 with ncnn, or INT8 with another engine.",
    )

"""The ncnn engine's float32 files: two ways to write them, and which one's are kept.

pnnx writes smaller and faster models, but crashes on some, misreads others, and exits 0 with files that ncnn can't
load. `ncnn_direct` writes every node by itself. So what was written is loaded and run on made-up values, and held
against ONNX Runtime on the same: the first way whose outputs agree is kept. Whether the outputs are *right* is measured
later, on real samples.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import artifact as artifacts
from edgepack import converter
from edgepack.errors import ToolFailed, Unsupported, VariantError
from edgepack.inference import infer
from edgepack.ncnn_source import BATCH, WINOGRAD
from edgepack.types import Artifact, Binding, Model, Precision, TensorSpec

PARAM, WEIGHTS = "model.ncnn.param", "model.ncnn.bin"
MAGIC = "7767517"
CANNOT_BE = "cannot be "  # run_ncnn's verdicts start so; the rest of its message is for the log
WAYS = ("pnnx", "direct", "plain")  # pnnx with repairs, node by node, pnnx on the model as it is
NO_FORM = "ncnn has no form of "
ALIKE = 0.9999  # cosine of the outputs on made-up values
# The parameter 9 of convolutions and inner products -> the layer type that computes it.
FUSED = {"1": "ReLU", "2": "ReLU", "3": "Clip", "4": "Sigmoid", "5": "Mish", "6": "HardSwish"}


def export(model: Model, out: Path) -> Artifact:
    """Write ``model.ncnn.param`` and ``model.ncnn.bin`` to `out`. Raises `VariantError` when no way leads there."""
    errors: dict[str, VariantError] = {}
    kept: Artifact | None = None
    for way in WAYS:
        folder = out.with_name(f"{out.name}.{way}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            made, alike = _convert(model, way, folder)
        except VariantError as error:
            errors[way] = error
            shutil.rmtree(folder)
            continue
        if alike or kept is None:
            for name in (PARAM, WEIGHTS):
                (folder / name).replace(out / name)
            kept = replace(made, folder=out)
        shutil.rmtree(folder)
        if alike:
            break
    if kept is None:
        raise _reason(errors)
    return kept


def _reason(errors: dict[str, VariantError]) -> VariantError:
    """What is told when every way failed: the operator that ncnn lacks, or how pnnx failed."""
    direct = errors["direct"]
    place = direct.message.find(NO_FORM)
    if place < 0:
        return errors["pnnx"]
    hint = "Use another engine, or move this part of the model to the caller."
    return Unsupported(direct.message[place:].rstrip("."), hint, log=errors["pnnx"].log)


def _convert(model: Model, way: str, out: Path) -> tuple[Artifact, bool]:
    """What one way makes of a model, and whether its outputs are like the source's."""
    try:
        made = converter.convert("onnx_to_ncnn", {"model": str(model.path), "way": way}, out)
    except ToolFailed as error:
        hint = f"Use another engine for this model: --engine onnxruntime takes most operators. {error.hint}"
        raise VariantError(error.message, hint, log=error.log) from error
    param = read_param(out / PARAM)
    facts = {"precision": str(Precision.FP32), "way": way, "pnnx": made["complaints"]}
    draft = Artifact(folder=out, files=(PARAM, WEIGHTS), inputs=(), outputs=(), layers=parts(param), facts=facts)
    shapes = made.get("input_shapes")
    return fit(draft, model, param, layouts(model.inputs, made["input_axes"]) if shapes is None else [_shapes(shapes)])


def _shapes(found: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for shape in found)


def run(artifact: Artifact, samples: Path, out: Path, *, timed: int) -> dict[str, Any]:
    """Run files on a tensor folder in ncnn's shapes. Raises `VariantError` when ncnn can't load or run them."""
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


def fit(
    draft: Artifact, model: Model, param: list[list[str]], tried: list[tuple[tuple[int, ...], ...]]
) -> tuple[Artifact, bool]:
    """Find which of the inputs' shapes ncnn takes by running the files on made-up values; are the outputs alike?"""
    blobs = {name for layer in param for name in _blobs(layer)[1]}
    for kind, specs in (("in", model.inputs), ("out", model.outputs)):
        for index, spec in enumerate(specs):
            if f"{kind}{index}" not in blobs:
                raise VariantError(
                    f"cannot be loaded by ncnn: pnnx dropped the {kind}put {spec.name!r}",
                    "Remove inputs that the model doesn't use, and outputs that don't depend on an input.",
                )
    first: VariantError | None = None
    for shapes in tried:
        candidate = replace(
            draft,
            inputs=tuple(
                Binding(name=f"in{i}", dtype=words(spec, f"in{i}", param), shape=shape, perm=_straight(spec))
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
        raise VariantError(
            f"pnnx takes one sample of at most four axes, but the inputs are {[s.shape for s in model.inputs]}",
            "Give the model a batch of 1 (`--input NAME=1x...`).",
        )
    raise first


def _try(candidate: Artifact, model: Model) -> tuple[Artifact, bool]:
    with workspace(candidate.folder) as (samples, results):
        source = samples.with_name("source")
        source.mkdir()
        rng = np.random.default_rng(0)
        for index, (binding, spec) in enumerate(zip(candidate.inputs, model.inputs, strict=True)):
            # Whole numbers are 0 and 1: rows of any table.
            real, sizes = np.dtype(spec.dtype).kind == "f", (1, *spec.shape)
            made_up = rng.random(sizes) if real else rng.integers(0, 2, sizes)
            np.save(source / f"{index}.npy", made_up.astype(spec.dtype))
            rewrite(source, samples, index, binding)
        facts = run(candidate, samples, results, timed=0)
        outputs = []
        for index, (spec, shape) in enumerate(zip(model.outputs, facts["shapes"], strict=True)):
            if math.prod(shape) != math.prod(spec.shape):
                raise VariantError(
                    f"cannot be run by ncnn: output {spec.name!r} comes out as {tuple(shape)} instead of {spec.shape}",
                    "pnnx misread the model's axes. Use another engine, or export the model with a batch of 1.",
                )
            whole = np.dtype(spec.dtype).kind in "iub" and index in facts["integer"]
            word = "int32" if whole else "float32"
            outputs.append(replace(candidate.outputs[index], shape=tuple(shape), dtype=word))
        made = replace(candidate, outputs=tuple(outputs))
        return made, _alike(made, model, source, results)


def _alike(made: Artifact, model: Model, source: Path, results: Path) -> bool:
    """Whether every output on the made-up values points where ONNX Runtime's does."""
    reference = results.with_name("reference")
    reference.mkdir()
    try:
        infer(model, source, reference)
    except ToolFailed:  # the verification will say what is wrong with the source
        return True
    for index, (binding, spec) in enumerate(zip(made.outputs, model.outputs, strict=True)):
        found = np.load(results / f"{index}.npy")[0].view(binding.dtype)
        got = artifacts.from_engine(np.ascontiguousarray(found), binding, spec).astype(np.float64).ravel()
        wanted = np.load(reference / f"{index}.npy")[0].astype(np.float64).ravel()
        if got.size != wanted.size:  # a size that values decide, and these made-up ones decide otherwise
            continue
        sizes = float(np.linalg.norm(got) * np.linalg.norm(wanted))
        near = np.allclose(got, wanted, rtol=1e-3, atol=1e-5 * max(1.0, float(np.abs(wanted).max(initial=0.0))))
        same_size = 0.99 < float(np.linalg.norm(got)) / max(float(np.linalg.norm(wanted)), 1e-30) < 1.01
        if not near and not (same_size and float(got @ wanted) > ALIKE * sizes):
            return False
    return True


def layouts(specs: tuple[TensorSpec, ...], axes: list[int | None]) -> list[tuple[tuple[int, ...], ...]]:
    """Shapes to try, likeliest first: pnnx's own word, no first axis, every axis, no second axis."""
    rules: list[list[int | None]] = [axes, [0] * len(specs), [None] * len(specs), [1] * len(specs)]
    found = [tuple(_without(spec.shape, axis) for spec, axis in zip(specs, rule, strict=True)) for rule in rules]
    return [shapes for shapes in dict.fromkeys(found) if all(1 <= len(shape) <= 4 for shape in shapes)]


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    if axis is not None and len(shape) > 1 and axis < len(shape) and shape[axis] == 1:
        return shape[:axis] + shape[axis + 1 :]
    return shape or (1,)


def _straight(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(range(len(spec.shape)))


def words(spec: TensorSpec, blob: str, param: list[list[str]]) -> str:
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


def read_param(path: Path) -> list[list[str]]:
    """The layers of a text .param, each cut at white space. Raises `VariantError`."""
    lines = path.read_text("utf-8").splitlines()
    if len(lines) < 3 or lines[0].strip() != MAGIC:
        raise VariantError("cannot be loaded by ncnn: pnnx wrote no .param file", "Run `edgepack doctor`.")
    return [line.split() for line in lines[2:] if line.strip()]


def parts(param: list[list[str]]) -> tuple[str, ...]:
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
def workspace(out: Path) -> Iterator[tuple[Path, Path]]:
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


def rewrite(source: Path, target: Path, index: int, binding: Binding) -> None:
    """One input of a tensor folder in ncnn's shape and dtype. The harness refuses negative ids as well."""
    artifacts.rewrite(source / f"{index}.npy", binding, target / f"{index}.npy")
    if binding.dtype == "int32" and np.load(target / f"{index}.npy", mmap_mode="r").min(initial=0) < 0:
        raise VariantError(
            f"input {index} holds negative ids: ONNX counts them from the table's end, ncnn looks up its first row",
            "Give ids from 0 on (add the size of the table to negative ones), or use another engine.",
        )

"""A model of `prepare_models.py` made ready to measure: imported, simplified, with float outputs to compare with."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgepack import calibration, cli, converter, steps
from edgepack.cache import Cache, sha256_text
from edgepack.resources import cache_root
from edgepack.types import Calibration, Model

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "LSTM", "MatMul")
PHOTOGRAPHS = "photographs_224"
CROPS = {
    "EfficientNet-Lite0": {
        "evaluation": "200 crops of 10 photographs",
        "wider": "680 crops of 17 photographs, drawings and pages",
    }
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Evaluation inputs as a tensor folder, what each was cut from, and the float model's outputs."""

    folder: Path
    groups: np.ndarray
    wanted: list[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One model with its calibration samples and its sets of evaluation inputs; `folder` is for what is kept of it."""

    name: str
    model: Model
    calibration: Calibration
    sets: dict[str, Inputs]
    cache: Cache
    folder: Path


def entries(folder: Path) -> list[dict[str, Any]]:
    """What `prepare_models.py` lists."""
    found: list[dict[str, Any]] = json.loads((folder / "models.json").read_text())
    return found


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def prepare(entry: dict[str, Any], folder: Path, kept: Path, *, crops: tuple[str, ...]) -> Prepared:
    """Import and simplify by edgepack's own steps and cache; inputs and float outputs are kept in the folder `kept`.

    A model of `CROPS` is measured on the sets that `crops` names, any other on its verification inputs.
    """
    os.chdir(entry["cwd"])
    context = cli.build.make_context("build", [entry["source"], *entry["args"], "--target", "rk3588"])
    plan = cli._plan(**{k: v for k, v in context.params.items() if k not in ("as_json", "dry_run")})
    cache = Cache(cache_root())
    model = steps.import_model(plan, cache)
    samples = steps.samples_of(plan, cache, model)
    model = steps.simplify(cache, model, samples, steps.run_onnx(cache, model, samples, "run the imported model"))
    assert samples.calibration is not None
    own = kept / f"{slug(entry['name'])}-{sha256_text(model.digest + samples.verify_digest)[:12]}"
    sets = {}
    for name in CROPS.get(entry["name"], ()):
        if name in crops:
            pictures = folder / PHOTOGRAPHS / name
            if not (own / name / "0.npy").is_file():
                calibration.gather(
                    pictures, model.inputs, dict(plan.preprocess), own / name, limit=len(list(pictures.iterdir()))
                )
            groups = np.array([path.stem.partition("_")[2] for path in sorted(pictures.iterdir())])
            sets[name] = Inputs(folder=own / name, groups=groups, wanted=floating(model, own / name, own))
    if not sets:
        wanted = floating(model, samples.verify, own)
        groups = np.arange(samples.verify_count)
        sets = {"verification": Inputs(folder=samples.verify, groups=groups, wanted=wanted)}
    return Prepared(
        name=entry["name"], model=model, calibration=samples.calibration, sets=sets, cache=cache, folder=own
    )


def floating(model: Model, inputs: Path, kept: Path) -> list[np.ndarray]:
    """The float model's outputs, computed once."""
    out = kept / f"{inputs.name}-float"
    return outputs(out, model) if (out / "result.json").is_file() else simulate(model.path, model, inputs, out)


def simulate(file: Path, model: Model, inputs: Path, out: Path) -> list[np.ndarray]:
    """Outputs by ONNX Runtime with no optimisation, so that pairs aren't fused."""
    out.mkdir(parents=True, exist_ok=True)
    request = {
        "files": [str(file)],
        "inputs": [spec.name for spec in model.inputs],
        "outputs": [spec.name for spec in model.outputs],
        "samples": str(inputs),
        "optimize": False,
    }
    converter.convert("run_onnxruntime", request, out)
    return outputs(out, model)


def outputs(folder: Path, model: Model) -> list[np.ndarray]:
    return [np.load(folder / f"{index}.npy") for index in range(len(model.outputs))]


def products(path: Path) -> dict[str, int]:
    """Multiply-accumulates of each operator with constant weights, by its first output."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    known = {v.name: v.type.tensor_type.shape for v in (*graph.input, *graph.value_info, *graph.output)}
    shapes = {name: [dim.dim_value for dim in shape.dim] for name, shape in known.items()}
    weights = {item.name: numpy_helper.to_array(item).shape for item in graph.initializer}
    found = {}
    for node in graph.node:
        constants = [weights[name] for name in node.input[1:3] if name in weights]
        result = shapes.get(next(filter(None, node.output)), [])
        if node.op_type not in WEIGHTED or not constants or not result:
            continue
        weight = constants[0]
        if node.op_type == "Conv":
            count = math.prod(result) * math.prod(weight[1:])
        elif node.op_type == "ConvTranspose":
            count = math.prod(shapes[node.input[0]]) * math.prod(weight[1:])
        elif node.op_type == "LSTM":
            count = shapes[node.input[0]][0] * sum(math.prod(each) for each in constants)
        else:
            by_rows = any(a.name == "transB" and a.i for a in node.attribute)
            count = math.prod(result) * weight[-1 if by_rows else -2]
        found[node.output[0]] = count
    return found

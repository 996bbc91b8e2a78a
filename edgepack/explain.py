"""Which layers make an INT8 model's error: the steps behind `explain-int8` and behind the repair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgepack import artifact, converter, plugins
from edgepack.cache import Cache, Entry, Step
from edgepack.errors import Unsupported
from edgepack.interfaces import Engine
from edgepack.quantizers.static import has_quantized
from edgepack.report import columns, short
from edgepack.types import Calibration, Int8Options, Model

SAMPLES = {"fast": 4, "normal": 8, "high": 16}
UNKNOWN = "unknown"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer's error; what the fields mean is said in `converters/explain_int8.py`.

    `macs` and `weights` are shares of the model's, from 0 to 1.
    """

    layer: str
    op: str
    single_db: float
    single_cosine: float
    noise: float
    own_db: float
    entire_db: float
    entire_cosine: float
    kernel_db: float | None
    kernel_cosine: float | None = None
    how: str = "int8"
    low: float | None
    high: float | None
    lowest: float | None
    highest: float | None
    saturated: float | None
    macs: float
    weights: float


@dataclass(frozen=True, kw_only=True)
class Real:
    """What an engine's own INT8 makes of one layer, held against its float model: `Layer`'s fields of these names.

    `how` says what the engine computes the layer in: ``int8``, ``dynamic`` (int8 weights, ranges measured as it runs)
    or ``float``.
    """

    how: str
    kernel_db: float
    kernel_cosine: float
    low: float | None
    high: float | None
    lowest: float | None
    highest: float | None
    saturated: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All layers in the order of the graph, and the outputs with all of them quantized."""

    layers: tuple[Layer, ...]
    sqnr_db: float
    cosine: float
    samples: int

    def ranked(self) -> list[Layer]:
        """The layers by what they do to the outputs when they alone are quantized, worst first."""
        return sorted(self.layers, key=lambda layer: -layer.noise)

    def by(self, real: Mapping[str, Real]) -> Explanation:
        """The same layers as another engine computes them; `UNKNOWN` where it has no layer of that name."""
        nothing = {key: None for key in ("kernel_db", "kernel_cosine", "low", "high", "lowest", "highest", "saturated")}
        fields = {name: asdict(item) for name, item in real.items()}
        unknown = {"how": UNKNOWN, **nothing}
        return replace(self, layers=tuple(replace(x, **fields.get(x.layer, unknown)) for x in self.layers))


def explain(
    cache: Cache, model: Model, calibration: Calibration, int8: Int8Options, samples: Path, digest: str
) -> Explanation:
    """Quantize `model` as the engine onnxruntime does, and measure every layer on the tensor folder `samples`.

    `digest` stands for `samples`. Raises `Unsupported` for a model that came with its own quantization, and
    `ToolFailed` where nothing can be quantized.
    """
    if has_quantized(model):
        raise Unsupported(
            "the model came quantized, so there is no float form of its weights to compare with",
            "Give the float model that it was made from.",
        )
    pairs = _quantized(cache, model, calibration, int8)
    step = Step(
        name="explain",
        version="1",
        title="measure every layer's part of the INT8 error",
        inputs={"pairs": pairs.digest, "samples": digest},
        params={"tool": converter.digest("explain_int8"), "count": SAMPLES[int8.effort]},
    )
    request = {
        "model": str(model.path),
        "float": str(pairs.path / "float.onnx"),
        "quantized": str(pairs.path / "model.onnx"),
        "samples": str(samples),
        "count": SAMPLES[int8.effort],
    }

    def make(out: Path) -> None:
        # It has the quantizer's pins, and so its environment.
        found = converter.convert("explain_int8", request, out, python=converter.environment("quantize_onnx"))
        (out / "explain.json").write_text(json.dumps(found, sort_keys=True))

    entry = cache.output(step, make)
    return read(json.loads((entry.path / "explain.json").read_text()))


def real(
    cache: Cache, engine: Engine, floating: Entry, made: Entry, samples: Path, digest: str, effort: str
) -> dict[str, Real]:
    """Layer -> what `engine` itself makes of it. Nothing where the engine can't show what it computes inside."""
    tool = getattr(engine, "layer_tool", None)
    if tool is None:
        return {}
    step = Step(
        name="layers",
        version="1",
        title=f"compare the layers of {engine.name}",
        inputs={"float": floating.digest, "int8": made.digest, "samples": digest},
        params={"tool": plugins.digest(engine, (tool,)), "count": SAMPLES[effort]},
    )

    def make(out: Path) -> None:
        before, after = artifact.read(floating.path), artifact.read(made.path)
        found = engine.layers(before, after, samples, SAMPLES[effort], out)  # type: ignore[attr-defined]
        (out / "layers.json").write_text(json.dumps(found, sort_keys=True))

    entry = cache.output(step, make)
    found = json.loads((entry.path / "layers.json").read_text())
    return {name: Real(**item) for name, item in found.items()}


def _quantized(cache: Cache, model: Model, calibration: Calibration, int8: Int8Options) -> Entry:
    step = Step(
        name="pairs",
        version="1",
        title="quantize for explaining",
        inputs={"model": model.digest, "calibration": calibration.digest},
        params={"tool": converter.digest("quantize_onnx"), "int8": asdict(int8)},
    )
    request = {
        "model": str(model.path),
        "samples": str(calibration.path),
        "int8": asdict(int8),
        "keep_prepared": True,
    }

    def make(out: Path) -> None:
        converter.convert("quantize_onnx", request, out)

    return cache.output(step, make)


def read(found: dict[str, Any]) -> Explanation:
    """What the script found, with shares for counts."""
    macs = sum(item["macs"] for item in found["layers"]) or 1
    weights = sum(item["weights"] for item in found["layers"]) or 1
    return Explanation(
        layers=tuple(
            Layer(**{**item, "macs": item["macs"] / macs, "weights": item["weights"] / weights})
            for item in found["layers"]
        ),
        sqnr_db=found["sqnr_db"],
        cosine=found["cosine"],
        samples=found["samples"],
    )


def document(found: Explanation) -> dict[str, Any]:
    """An explanation for programs, the layers in the order of the graph with their rank."""
    ranks = {layer.layer: rank for rank, layer in enumerate(found.ranked(), 1)}
    return {
        "sqnr_db": found.sqnr_db,
        "cosine": found.cosine,
        "samples": found.samples,
        "layers": [{"rank": ranks[layer.layer], **asdict(layer)} for layer in found.layers],
    }


def table(found: Explanation, most: int = 0, engine: str = "onnxruntime") -> str:
    """An explanation for people, worst layers first; at most `most` of them, 0 for all. `engine` has the kernels."""
    headers = (
        "layer", "operator", "in", "single dB", "cosine", "own dB", "entire dB", "kernel dB", "cosine", "scale holds",
        "seen", "beyond", "MACs", "weights",
    )  # fmt: skip
    ranked = found.ranked()
    shown = ranked[:most] if most else ranked
    rows: list[tuple[str, ...]] = [
        (
            short(layer.layer),
            layer.op,
            layer.how,
            f"{layer.single_db:.1f}",
            f"{layer.single_cosine:.4f}",
            f"{layer.own_db:.1f}",
            f"{layer.entire_db:.1f}",
            "-" if layer.kernel_db is None else f"{layer.kernel_db:.1f}",
            "-" if layer.kernel_cosine is None else f"{layer.kernel_cosine:.4f}",
            span(layer.low, layer.high),
            span(layer.lowest, layer.highest),
            "-" if layer.saturated is None else f"{layer.saturated:.2%}",
            f"{layer.macs:.2%}",
            f"{layer.weights:.2%}",
        )
        for layer in shown
    ]
    lines = [columns(headers, rows)]
    if len(shown) < len(ranked):
        lines.append(f"... and {len(ranked) - len(shown)} more layers with less error (--all shows them)")
    lines.append(
        f"All layers in INT8: SQNR {found.sqnr_db:.1f} dB, cosine {found.cosine:.4f} at the outputs, on "
        f"{found.samples} samples."
    )
    lines.append(
        "single: the model's outputs when only this layer is quantized; own: its own output then; entire: its own "
        f"output when all are, simulated; kernel: the same from {engine} itself."
    )
    return "\n".join(lines)


def span(low: float | None, high: float | None) -> str:
    """A range in three digits."""
    return "-" if low is None or high is None else f"{low:.3g} to {high:.3g}"

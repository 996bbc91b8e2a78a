"""torch's exporters to ONNX, tried one after the other and checked by what their files compute."""

import contextlib
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_to_onnx_refusal import Refused, one_line

TRACED_OPSET = 17
EXPORTED_OPSET = 18  # torch 2.13 writes 18 and only logs that it couldn't go lower
GOOD = 80.0  # dB between a module's outputs and its ONNX form's: float32's rounding; no other exporter can do better


def export_traced(module: Any, examples: tuple[Any, ...], inputs: list[str], outputs: list[str], path: Path) -> None:
    options = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        module, examples, str(path), input_names=inputs, output_names=outputs, opset_version=TRACED_OPSET, **options
    )


def export_program(
    module: Any,
    examples: tuple[Any, ...],
    inputs: list[str] | None,
    outputs: list[str] | None,
    path: Path,
    opset: int = EXPORTED_OPSET,
) -> None:
    torch.onnx.export(
        module,
        examples,
        str(path),
        input_names=inputs,
        output_names=outputs,
        opset_version=opset,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


@dataclass(frozen=True)
class Try:
    """An exporter: what to call it, the opset that it is asked for, and what writes the file."""

    how: str
    opset: int
    write: Callable[[], None]


def best_that_works(
    tries: list[Try], path: Path, examples: tuple[torch.Tensor, ...] | None, wanted: list[torch.Tensor]
) -> list[str]:
    """Try the exporters in this order until one's file gives the outputs `wanted` for `examples`.

    Each file is run by ONNX Runtime; the first that reaches `GOOD`, in the opset that was asked for, stays at `path`,
    else the best. Without ONNX Runtime (under the user's interpreter) or examples the first that is written stays.
    Returns notes with figures.
    """
    reasons: list[str] = []
    best = ("", -np.inf)
    kept = path.with_suffix(".best")
    for attempt in tries:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                attempt.write()
            figure = agreement(path, examples, wanted) if examples is not None else None
            opset = opset_of(path)
        except Exception as error:
            reasons.append(f"by {attempt.how}: {one_line(error)}")
            path.unlink(missing_ok=True)
            continue
        as_asked, good = opset in (None, attempt.opset), figure is None or figure >= GOOD
        if as_asked and good:
            kept.unlink(missing_ok=True)
            return [f"Exported by {attempt.how}, because exporting failed {reason}" for reason in reasons]
        if not as_asked:  # torch only logs that it couldn't convert to it
            reasons.append(f"by {attempt.how}: it wrote opset {opset}, and {attempt.opset} was asked for")
        if not good:
            reasons.append(f"by {attempt.how}: its outputs agree to {figure:.0f} dB only")
        if (figure := GOOD if figure is None else min(figure, GOOD)) > best[1]:
            best = (attempt.how, figure)
            path.replace(kept)
    if best[0]:
        kept.replace(path)
        return [f"Exported by {best[0]}, the best of what was tried ({'; '.join(reasons)})"]
    raise Refused(
        f"torch {torch.__version__} can't export this model to ONNX: {'; '.join(reasons)}.",
        "Replace the part of the model that it names, or export the model yourself and give the .onnx file.",
        "EP301",
    )


def opset_of(path: Path) -> int | None:
    """The opset that a file says it is of, or None where there is no onnx to read it with."""
    try:
        import onnx
    except ImportError:
        return None
    domains = {entry.domain: entry.version for entry in onnx.load(path, load_external_data=False).opset_import}
    return domains.get("", domains.get("ai.onnx"))


def agreement(path: Path, examples: tuple[torch.Tensor, ...], outputs: list[torch.Tensor]) -> float | None:
    """SQNR in dB of the ONNX file's worst output against the module's own, or None where that can't be said."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(examples):
        return None  # an input without effect was dropped
    feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, examples, strict=True)}
    wanted = [tensor.detach().cpu().numpy() for tensor in outputs]
    worst = 200.0
    for a, b in zip(wanted, session.run(None, feed), strict=True):
        if a.shape != b.shape:
            return -200.0
        a, b = np.nan_to_num(a.astype(np.float64)), np.nan_to_num(b.astype(np.float64))
        signal, noise = float((a**2).sum()), float(((a - b) ** 2).sum())
        if noise > 0:
            worst = min(worst, 10 * float(np.log10(signal / noise)) if signal > 0 else -200.0)
    return worst

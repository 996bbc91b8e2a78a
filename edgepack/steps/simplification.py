"""The graph passes, each kept only when the outputs stay equal."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack import log, plugins, verify
from edgepack.cache import Cache, Entry, Step, digest_of, tree_digests
from edgepack.errors import ToolFailed, VariantError
from edgepack.inference import infer
from edgepack.sampling import Samples, remove_folder
from edgepack.steps.source import read_model
from edgepack.types import Bound, Model

SIMPLIFY_GROWTH = 1.10
SIMPLIFY_BOUND = Bound(cosine=0.999999, sqnr_db=70.0)


def simplify(cache: Cache, model: Model, samples: Samples, imported: Entry) -> Model:
    """Run the graph passes; a pass is kept only when outputs stay equal and the file grows by at most 10 %."""
    for graph_pass in plugins.load_all("passes"):
        step = Step(
            name="pass",
            version="1",
            title=f"{graph_pass.name}",
            inputs={"model": model.digest, "samples": samples.verify_digest, "outputs": imported.digest},
            params={"plugin": plugins.digest(graph_pass, graph_pass.tools), "growth": SIMPLIFY_GROWTH},
        )
        entry = cache.output(step, functools.partial(apply_pass, graph_pass, model, samples, imported))
        facts = json.loads((entry.path / "facts.json").read_text())
        if facts["kept"]:
            content = {k: v for k, v in tree_digests(entry.path).items() if k != "facts.json"}
            model = replace(read_model(entry), digest=digest_of(content), origin=model.origin)
        else:
            log.note(f"{graph_pass.name} was reverted: {facts['reason']}")
    return model


def apply_pass(graph_pass: Any, model: Model, samples: Samples, imported: Entry, out: Path) -> None:
    """Write what the pass made of the model to `out`, or in ``facts.json`` why it is not kept."""
    reason = _why_not_kept(graph_pass, model, samples, imported, out)
    if reason:
        (out / "model.onnx").unlink(missing_ok=True)
    else:
        (out / "model.json").write_bytes((model.path.parent / "model.json").read_bytes())
    (out / "facts.json").write_text(json.dumps({"kept": not reason, "reason": reason}, sort_keys=True))


def _why_not_kept(graph_pass: Any, model: Model, samples: Samples, imported: Entry, out: Path) -> str:
    outputs = out / "outputs"
    outputs.mkdir()
    try:
        graph_pass(model, out)
        before, after = model.path.stat().st_size, (out / "model.onnx").stat().st_size
        if after > before * SIMPLIFY_GROWTH:
            return f"the file grew from {before} to {after} bytes"
        infer(replace(model, path=out / "model.onnx"), samples.verify, outputs)
        metrics = verify.compare(model.outputs, imported.path, outputs, model.zero_points)
        return verify.judge(metrics, SIMPLIFY_BOUND, samples.verify_count).reason
    except (ToolFailed, VariantError, ValueError, FileNotFoundError) as error:
        return str(error)
    finally:
        remove_folder(outputs)

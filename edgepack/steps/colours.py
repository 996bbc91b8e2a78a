"""The samples tried with red and blue exchanged: a classifier that is surer then was given the wrong order."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgepack import channel_order, converter, lint, log, plugins
from edgepack.cache import Cache, Step
from edgepack.inference import infer
from edgepack.plan import BuildPlan
from edgepack.sampling import Samples, remove_folder
from edgepack.types import Model


def check_channel_order(plan: BuildPlan, cache: Cache, model: Model, samples: Samples) -> None:
    """Say so when a classifier is clearly surer of the user's samples with red and blue exchanged."""
    place = None if samples.synthetic else channel_order.picture(model, plan.preprocess)
    if place is None:
        return
    data = samples.calibration
    folder, digest = (samples.verify, samples.verify_digest) if data is None else (data.path, data.digest)
    spec = model.inputs[place[0]]
    how = lint.declared_for(spec, model.inputs, plan.preprocess)
    step = Step(
        name="channel order",
        version="1",
        title="try the samples with red and blue exchanged",
        inputs={"model": model.digest, "samples": digest},
        params={
            "code": plugins.module_digest(channel_order.__name__),
            "tool": converter.digest("run_onnxruntime"),
            "preprocess": how and asdict(how),
        },
    )

    def make(out: Path) -> None:
        inputs, outputs = out / "inputs", out / "outputs"
        inputs.mkdir()
        outputs.mkdir()
        found = None
        count = channel_order.both_orders(folder, model, place, plan.preprocess, inputs)
        if count:
            infer(model, inputs, outputs)
            found = channel_order.judge(np.load(outputs / "0.npy", allow_pickle=False), count)
        remove_folder(inputs)
        remove_folder(outputs)
        (out / "facts.json").write_text(json.dumps({"count": count, "confidence": found}))

    facts = json.loads((cache.output(step, make).path / "facts.json").read_text())
    if facts["confidence"] is not None:
        label = str(plan.calibration or plan.samples)
        log.warn(channel_order.sentence(label, spec, how, facts["count"], *facts["confidence"]))

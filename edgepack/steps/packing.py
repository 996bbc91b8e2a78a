"""The parts of the bundle: golden samples, a variant's folder, and the self-test of both with the harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import bundle, emulator, lint, plugins
from edgepack.cache import Cache, Entry, Step, sha256_text
from edgepack.errors import VariantError
from edgepack.interfaces import Engine
from edgepack.sampling import Samples
from edgepack.steps.variants import Checked
from edgepack.types import Model, Preprocess, SelfTest, Target, Variant

GOLDEN_SAMPLES = 1


def pack_golden(cache: Cache, model: Model, samples: Samples, reference: Entry) -> Entry:
    """The samples that ship: inputs and the source's own outputs, one ``.npy`` each in the source's layout."""
    step = Step(
        name="golden",
        version="2",
        title="pack golden samples",
        inputs={"samples": samples.verify_digest, "reference": reference.digest},
        params={"count": GOLDEN_SAMPLES},
    )
    return cache.output(step, lambda out: _pack_golden(model, samples, reference, out))


def _pack_golden(model: Model, samples: Samples, reference: Entry, out: Path) -> None:
    chosen = loudest(reference.path, len(model.outputs), samples.verify_count)[:GOLDEN_SAMPLES]
    for kind, folder, specs in (("in", samples.verify, model.inputs), ("out", reference.path, model.outputs)):
        for index, spec in enumerate(specs):
            arrays = np.load(folder / f"{index}.npy", mmap_mode="r", allow_pickle=False)
            for number, sample in enumerate(chosen):
                (out / str(number)).mkdir(exist_ok=True)
                one = np.ascontiguousarray(arrays[sample]).astype(spec.dtype).reshape(spec.shape)
                np.save(out / str(number) / f"{kind}_{index}.npy", one, allow_pickle=False)


def loudest(reference: Path, outputs: int, count: int) -> list[int]:
    """Samples by how much they tell, most first: an output that is next to nothing can't show a fault."""
    total = np.zeros(count)
    for index in range(outputs):
        arrays = np.load(reference / f"{index}.npy", mmap_mode="r", allow_pickle=False)
        sizes = np.linalg.norm(np.nan_to_num(arrays.reshape(count, -1).astype(np.float64)), axis=1)
        total += sizes / (sizes.max(initial=0.0) or 1.0)
    return [int(i) for i in np.argsort(-total, kind="stable")]


def pack_variant(
    cache: Cache,
    engine: Engine,
    target: Target,
    model: Model,
    checked: Checked,
    declared: Mapping[str, Preprocess],
) -> Entry:
    """The folder of a variant as it ships: engine files and ``variant.txt``."""
    preprocess = tuple(lint.declared_for(spec, model.inputs, declared) for spec in model.inputs)
    precision = checked.variant.precision
    bound = target.bounds[precision]
    step = Step(
        name="variant",
        version="1",
        title=f"pack {checked.variant}",
        inputs={"artifact": checked.digest, "code": plugins.module_digest(bundle.__name__)},
        params={
            "bound": asdict(bound),
            "engine": [engine.name, engine.version, precision],
            "specs": [asdict(spec) for spec in (*model.inputs, *model.outputs)],
            "preprocess": [how and asdict(how) for how in preprocess],
        },
    )

    def make(out: Path) -> None:
        bundle.write_variant(
            out / "files",
            checked.artifact,
            engine=engine.name,
            engine_version=engine.version,
            precision=precision,
            bound=bound,
            inputs=model.inputs,
            outputs=model.outputs,
            preprocess=preprocess,
        )

    return cache.output(step, make)


def self_test(cache: Cache, variant: Variant, target: Target, built: Entry, packed: Entry, golden: Entry) -> SelfTest:
    """Run the harness on the golden samples, natively or under emulation; raises `VariantError` when it fails."""
    static = json.loads((built.path / "elf.json").read_text())["static"]
    runner = emulator.find(target, static=static)
    if runner is None:
        return SelfTest(how="not run", passed=None, detail=emulator.why_not(target))
    step = Step(
        name="self-test",
        version="1",
        title=f"self-test {variant} ({runner.description})",
        inputs={"harness": built.digest, "variant": packed.digest, "golden": golden.digest},
        params={"runner": runner.digest, "code": plugins.module_digest(emulator.__name__)},
    )

    def make(out: Path) -> None:
        result = emulator.self_test(runner, built.path, packed.path / "files", golden.path, variant.engine)
        if result.passed is None:
            raise _NotRun(result)
        if not result.passed:
            raise VariantError(
                f"its self-test ({result.how}) failed: {result.detail}",
                _whose_fault(target, variant.engine),
            )
        (out / "self-test.json").write_text(json.dumps(asdict(result), sort_keys=True))

    try:
        entry = cache.output(step, make)
    except _NotRun as reason:
        return reason.result
    content = json.loads((entry.path / "self-test.json").read_text())
    return SelfTest(**{**content, "metrics": tuple(content["metrics"])})


def _whose_fault(target: Target, engine: str) -> str:
    if own := target.libraries.get(engine):
        return (
            f"The engine is your own build, {own}. It may lack an operator or a type: build it with the "
            "config/ of a bundle that was made with edgepack's library."
        )
    return "The host check passed: the fault is in the harness or the engine on this CPU. Please report it."


class _NotRun(Exception):
    """A self-test that says nothing; not remembered, so that a quieter machine can try again."""

    def __init__(self, result: SelfTest) -> None:
        super().__init__(result.detail)
        self.result = result


def build_key(parts: Mapping[str, Any]) -> str:
    """What a whole bundle is made of, as one digest: an unchanged bundle is not written again."""
    return sha256_text(bundle.canonical(parts))

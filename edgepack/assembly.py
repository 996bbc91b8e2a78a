"""The last step: the parts of a build put together as a bundle, and its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgepack import bundle, modelheader, plugins, steps
from edgepack.cache import Entry, sha256_file
from edgepack.errors import EdgepackError
from edgepack.plan import BuildPlan
from edgepack.resources import data
from edgepack.settling import Settled
from edgepack.types import Model, SelfTest


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A variant that passed everything, with the folders that make up its part of the bundle."""

    settled: Settled
    harness: Entry
    packed: Entry
    self_test: SelfTest

    @property
    def checked(self) -> steps.Checked:
        """What was exported, and its run on the host."""
        return self.settled.checked


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a bundle holds of the model at the shapes of one input set; ``name`` is "" for those without a set."""

    name: str
    plan: BuildPlan
    model: Model
    samples: steps.Samples
    golden: Entry


def write_bundle(
    plan: BuildPlan, parts: Sequence[Part], built: Sequence[Ready], configs: Mapping[str, Entry | None]
) -> str:
    """Put the parts together at the plan's destination and return the bundle's digest; the part "" is the first.

    A bundle of the same parts that is whole is left as it is.
    """
    facts = manifest_facts(plan, parts, built)
    facts["build_configs"] = {engine: entry.digest for engine, entry in sorted(configs.items()) if entry is not None}
    key = steps.build_key({**facts, "code": plugins.module_digest(__name__), "header": _header_digests()})
    facts["build_key"] = key
    existing = _existing_digest(plan.destination, key)
    if existing:
        return existing
    with bundle.replacing(plan.destination) as folder:
        (folder / "include").mkdir()
        shutil.copyfile(_api_header(), folder / "include" / "edgepack.h")
        for part in parts:
            shutil.copytree(part.golden.path, folder / bundle.golden_of(part.name))
            header = f"edgepack_model{part.name and f'-{part.name}'}.h"
            (folder / "include" / header).write_text(modelheader.render(part.model, part.name))
        for ready in built:
            shutil.copytree(ready.packed.path / "files", folder / "variants" / str(ready.checked.variant))
        for built_harness in {r.harness.path: r.harness for r in built}.values():
            for name in ("bin", "lib", "licences"):
                if (built_harness.path / name).is_dir():
                    shutil.copytree(built_harness.path / name, folder / name, dirs_exist_ok=True)
        for engine, entry in configs.items():
            if entry is not None:
                shutil.copytree(entry.path, folder / "config" / engine)
        manifest = bundle.write_manifest(folder, facts)
    digest: str = manifest["digest"]
    return digest


def manifest_facts(plan: BuildPlan, parts: Sequence[Part], built: Sequence[Ready]) -> dict[str, Any]:
    """Everything the manifest says besides the list of files; no times, no paths, nothing of this machine."""
    target = asdict(replace(plan.target, cmake_toolchain_file=None, libraries={}))
    base, *sets = parts
    return {
        "name": plan.name,
        "target": {**target, "bounds": {str(k): asdict(v) for k, v in plan.target.bounds.items()}},
        **_part_facts(base),
        "input_sets": [{"name": part.name, **_part_facts(part)} for part in sets],
        "variants": [_variant_facts(ready) for ready in built],
    }


def _part_facts(part: Part) -> dict[str, Any]:
    model, samples = part.model, part.samples
    return {
        "model": {"digest": model.digest, "opset": model.opset},
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": [asdict(spec) for spec in model.outputs],
        "preprocess": {name: asdict(p) for name, p in part.plan.preprocess.items()},
        "samples": {
            "verify": samples.verify_count,
            "verify_digest": samples.verify_digest,
            "synthetic": samples.synthetic,
            "calibration": samples.calibration.count if samples.calibration else 0,
            "calibration_digest": samples.calibration.digest if samples.calibration else None,
        },
        "golden": part.golden.digest,
    }


def _variant_facts(ready: Ready) -> dict[str, Any]:
    variant = ready.checked.variant
    engine = plugins.load("engines", variant.engine)
    return {
        "name": str(variant),
        "engine": variant.engine,
        "engine_version": engine.version,
        "precision": variant.precision,
        "input_set": variant.input_set,
        "verdict": asdict(ready.settled.verdict),
        "gate": asdict(ready.settled.gate) if ready.settled.gate else None,
        "int8": asdict(ready.settled.facts) if ready.settled.facts else None,
        "self_test": asdict(ready.self_test),
        "harness": f"bin/edgepack-{variant.engine}",
        "artifact_digest": ready.checked.digest,
        "packed_digest": ready.packed.digest,
        "harness_digest": ready.harness.digest,
        "facts": ready.checked.artifact.facts,
        "tools": plugins.digest(engine, engine.tools(variant.precision)),
    }


def _existing_digest(destination: Path, key: str) -> str:
    try:
        found = bundle.open_bundle(destination)
    except EdgepackError:
        return ""
    same = found.manifest.get("build_key") == key
    return str(found.manifest["digest"]) if same else ""


def _api_header() -> Path:
    return data("cpp_runtime") / "include" / "edgepack" / "edgepack.h"


def _header_digests() -> list[str]:
    return [sha256_file(path) for path in (_api_header(), *modelheader.digest_files())]

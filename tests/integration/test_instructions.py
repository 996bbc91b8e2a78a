"""The gate against slower code: instructions per inference of all three engines under qemu, within 1 %."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from benchmarks import instructions
from edgepack import artifact, bundle, config, emulator, plugins, runtimes
from edgepack.types import Bound, Precision
from tests.conftest import missing
from tests.integration.test_onnxruntime import model_of
from tests.models import tiny_classifier


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle's harnesses with a larger input, so that an inference outweighs what is around it."""
    root = tmp_path_factory.mktemp("instructions")
    model = model_of(tiny_classifier(root / "model.onnx", side=64))
    for name in ("bin", "lib"):
        shutil.copytree(tiny_bundle / name, root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(cache))
        for engine in instructions.ENGINES:
            (root / engine).mkdir()
            plugins.load("engines", engine).export(model, Precision.FP32, None, None, root / engine)
            bundle.write_variant(
                root / "variants" / f"{engine}-fp32",
                artifact.read(root / engine),
                engine=engine,
                engine_version=runtimes.pins()[engine]["version"],
                precision="fp32",
                bound=Bound(cosine=0.999),
                inputs=model.inputs,
                outputs=model.outputs,
            )
    image = np.random.default_rng(1).standard_normal(model.inputs[0].shape).astype(np.float32)
    session = ReferenceEvaluator(str(model.path))
    (root / "golden" / "0").mkdir(parents=True)
    np.save(root / "golden" / "0" / "in_0.npy", image)
    np.save(root / "golden" / "0" / "out_0.npy", session.run(None, {"image": image})[0])
    return root


def test_no_engine_takes_more_instructions_than_recorded(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EDGEPACK_RECORD=1 writes the baseline instead: say in the commit what changed the counts."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(cache))
    target = config.load_target("rk3588")
    sysroot = str(emulator._sysroot(target, emulator._files(target)))
    try:
        if os.environ.get("EDGEPACK_RECORD") == "1":
            instructions.BASELINE.write_text(json.dumps(instructions.document(folder, sysroot), indent=1) + "\n")
        base = json.loads(instructions.BASELINE.read_text())
        if reason := instructions.different(base):
            pytest.skip(f"counts are not comparable: {reason}")
        now = instructions.document(folder, sysroot)
    except instructions.Unable as error:
        missing(str(error))
    assert instructions.compare(base, now) == [], json.dumps(now, indent=1)


def test_the_gate_sees_one_percent_and_another_model() -> None:
    base = {"engines": {"a": {"instructions": 1000, "model": "m", "version": "1"}}}

    def with_(**changed: object) -> list[str]:
        return instructions.compare(base, {"engines": {"a": {**base["engines"]["a"], **changed}}})

    assert with_(instructions=1009) == [] == with_(instructions=991)
    assert with_(instructions=1011) == ["a: 1000 -> 1011 instructions (+1.10%)"]
    assert with_(instructions=985) == ["a: 1000 -> 985 instructions (-1.50%)"]
    assert "other model files" in with_(model="n")[0]

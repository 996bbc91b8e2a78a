"""How the steps about the source share one process and keep their own places in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepack import steps
from edgepack.cache import Cache
from edgepack.plan import BuildPlan
from edgepack.types import TensorSpec

X = {"name": "x", "dtype": "float32", "shape": [1, 2]}
KNOWN = (TensorSpec(name="x", dtype="float32", shape=(1, 2)),)


class Framework:
    """An importer whose calls are counted; the model's input is called as `named`, whatever was known before."""

    name, version, tools = "framework", "1", ()

    def __init__(self, named: str = "x", *, works: bool = True) -> None:
        self.calls: list[str] = []
        self.named, self.works = named, works

    def accepts(self, source: str) -> bool:
        return True

    def digest(self, source: str, options: Mapping[str, Any]) -> str:
        return "d"

    def known_inputs(self, *_: Any) -> tuple[TensorSpec, ...]:
        return KNOWN

    def to_onnx(self, source: str, shapes: Any, options: Any, out: Path) -> None:
        self.calls.append("export")
        self._write(out)

    def to_onnx_and_reference(self, source: str, shapes: Any, options: Any, samples: Path, out: Path, outputs: Path):
        self.calls.append("both")
        self._write(out)
        np.save(outputs / "0.npy", np.load(samples / "0.npy") + 1)
        return self.works

    def reference(self, source: str, model: Any, options: Any, samples: Path, out: Path) -> None:
        self.calls.append("reference")
        np.save(out / "0.npy", np.load(samples / "0.npy") + 1)

    def _write(self, out: Path) -> None:
        (out / "model.onnx").write_bytes(b"onnx")
        tensor = {**X, "name": self.named}
        facts = {"opset": 17, "inputs": [tensor], "outputs": [{**X, "name": "y"}], "operators": []}
        (out / "model.json").write_text(json.dumps(facts))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def plan(importer: Framework, data: Path | None = None) -> BuildPlan:
    settings: Any = SimpleNamespace(
        importer=importer, source="s", shapes={"x": (1, 2)}, options={"dtypes": {}}, name="m", calibration=None,
        samples=data, preprocess={}, where="",
    )  # fmt: skip
    return settings


def build(importer: Framework, cache: Cache, data: Path | None = None) -> np.ndarray:
    model = steps.import_model(plan(importer, data), cache)
    samples = steps.gather_samples(plan(importer, data), cache, model.inputs)
    outputs = steps.run_reference(plan(importer, data), cache, model, samples).path
    assert sorted(p.name for p in model.path.parent.iterdir()) == ["model.json", "model.onnx"]
    assert [p.name for p in outputs.iterdir()] == ["0.npy"]
    return np.load(outputs / "0.npy") - np.load(samples.verify / "0.npy")


def test_one_process_exports_and_runs_and_an_unchanged_source_starts_none(cache: Cache) -> None:
    importer = Framework()
    assert (build(importer, cache) == 1).all() and (build(importer, cache) == 1).all()
    assert importer.calls == ["both"]


def test_other_samples_run_the_source_and_do_not_export_it_again(cache: Cache, tmp_path: Path) -> None:
    importer = Framework()
    build(importer, cache)
    np.savez(tmp_path / "other.npz", x=np.random.default_rng(1).random((3, 1, 2), np.float32))
    assert build(importer, cache, tmp_path / "other.npz").shape == (3, 1, 2)
    assert importer.calls == ["both", "reference"]


def test_outputs_for_other_inputs_than_the_models_are_not_used(cache: Cache) -> None:
    importer = Framework(named="other")
    build(importer, cache)
    assert importer.calls == ["both", "reference"]


def test_a_run_that_failed_beside_the_export_is_done_again_by_itself(cache: Cache) -> None:
    importer = Framework(works=False)
    build(importer, cache)
    assert importer.calls == ["both", "reference"]


def test_data_that_do_not_fit_leave_the_import_alone(cache: Cache, tmp_path: Path) -> None:
    importer = Framework()
    np.savez(tmp_path / "bad.npz", x=np.random.default_rng(1).random((3, 1, 5), np.float32))
    assert steps.import_model(plan(importer, tmp_path / "bad.npz"), cache).inputs == KNOWN
    assert importer.calls == ["export"]

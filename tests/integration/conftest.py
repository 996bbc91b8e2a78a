"""The command line as a user calls it, with a cache of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need
from tests.integration.native import Native
from tests.models import samples, tiny_classifier

EDGEPACK = Path(sys.executable).parent / "edgepack"


@dataclass(frozen=True)
class Called:
    """A finished call of the command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def outcomes(self) -> dict[str, dict[str, Any]]:
        return {item["variant"]: item for item in self.json["outcomes"]}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this run's own. EDGEPACK_TEST_CACHE=DIR keeps one between runs while tests are being written."""
    kept = os.environ.get("EDGEPACK_TEST_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def edgepack(cache: Path):
    def call(*argv: object, cwd: Path | None = None, seconds: float = 1500, **env: str) -> Called:
        environment = {**os.environ, "EDGEPACK_CACHE": str(cache), **env}
        done = subprocess.run(
            [EDGEPACK, *map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds
        )
        return Called(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def tiny_bundle(edgepack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_classifier` for rk3588: what test_build.py builds, from the cache when that ran before."""
    need("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
    need("qemu-aarch64", "apt install qemu-user")
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_classifier(folder / "tiny.onnx")
    calibration = samples(folder / "calib.npz", count=48)
    verification = samples(folder / "samples.npz", count=16, seed=9)
    called = edgepack("build", model, "--target", "rk3588", "--calib", calibration, "--samples", verification,
                      "-o", folder)  # fmt: skip
    assert called.code == 0, called.err
    return folder / "tiny-rk3588.edgepack"


@pytest.fixture(scope="session")
def native(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Native:
    """Harnesses for this machine, with sanitizers; each is compiled once."""
    need("cmake", "apt install cmake")
    need("g++", "apt install g++")
    folder = cache / "native" if "EDGEPACK_TEST_CACHE" in os.environ else tmp_path_factory.mktemp("native")
    return Native(folder, cache)

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
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def edgepack(cache: Path):
    def call(*argv: object, cwd: Path | None = None, seconds: float = 1500, **env: str) -> Called:
        environment = {**os.environ, "EDGEPACK_CACHE": str(cache), **env}
        done = subprocess.run(
            [EDGEPACK, *map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds
        )
        return Called(done.returncode, done.stdout, done.stderr)

    return call

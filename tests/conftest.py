"""What every test may rely on."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Started in the background by a shell, ctrl-C would be ignored here and in every child; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def need(program: str, how: str) -> str:
    """Skip by name when a program is missing; with EDGEPACK_REQUIRE_ALL=1 that is a failure."""
    found = shutil.which(program)
    if found is None:
        missing(f"{program} is not on PATH ({how})")
    assert found is not None
    return found


def missing(reason: str) -> None:
    """Skip with a reason, or fail where everything is required."""
    if os.environ.get("EDGEPACK_REQUIRE_ALL") == "1":
        pytest.fail(f"EDGEPACK_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _unit_tests_stay_inside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test starts no process and opens no connection."""
    if "tests/unit" not in request.path.as_posix():
        return

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a unit test must not reach the world")

    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)

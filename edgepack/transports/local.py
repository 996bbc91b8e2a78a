"""The transport to this machine: programs run here, files are copied."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgepack import process
from edgepack.types import Completed


class Local:
    """Runs, pushes and pulls on the machine that edgepack runs on."""

    name = "local"
    version = "1"

    def run(self, argv: list[str], timeout: float) -> Completed:
        """Run a program; `timeout` in seconds."""
        return process.run(argv, limits=process.Limits(seconds=timeout))

    def push(self, local: Path, remote: str) -> None:
        """Copy a file to its place."""
        shutil.copyfile(local, remote)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from its place."""
        shutil.copyfile(remote, local)

    def close(self) -> None:
        """Nothing to close."""

"""The transport to this machine: programs run here, files are copied."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgepack import process
from edgepack.cache import out_of_space
from edgepack.errors import DeviceFailed
from edgepack.types import Completed, Device

_BLOCK = 1 << 20


class Local:
    """Runs, pushes and pulls on the machine that edgepack runs on."""

    name = "local"
    version = "2"
    options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, device: Device) -> None:
        self.device = device

    def run(self, argv: list[str], timeout: float, *, stdin: bytes | None = None) -> Completed:
        """Run a program; `timeout` in seconds."""
        return process.run(argv, limits=process.Limits(seconds=timeout), stdin=stdin)

    def push(self, local: Path, remote: str, *, offset: int = 0) -> None:
        """Copy a file's bytes from `offset` on to its place."""
        try:
            with local.open("rb") as source, Path(remote).open("r+b" if offset else "wb") as target:
                if target.seek(0, 2) < offset:
                    raise DeviceFailed(f"{remote} holds fewer than {offset} bytes.", "Start again.", id="EP624")
                target.truncate(offset)
                source.seek(offset)
                target.seek(offset)
                shutil.copyfileobj(source, target, _BLOCK)
        except OSError as error:
            raise DeviceFailed(f"{local.name} could not be written to {remote}: {error.strerror}.", "") from error

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from its place."""
        try:
            with out_of_space(local.parent):
                shutil.copyfile(remote, local)
        except OSError as error:
            raise DeviceFailed(f"{remote} could not be read: {error.strerror}.", "", id="EP623") from error

    def close(self) -> None:
        """Nothing to close."""

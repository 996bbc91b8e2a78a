"""File systems of a test's own: they are gone with the process, also when it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE_NEWNS = 0x20000


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """Let this thread and the processes that it starts have a mount namespace of their own, or skip."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        if os.geteuid() != 0 or libc.unshare(CLONE_NEWNS) != 0:
            pytest.skip("needs root to mount file systems")
        folder = Path.cwd()
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            yield
        finally:
            if libc.setns(before, CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "the test can't go back to where it came from")
            os.chdir(folder)  # setns leaves one at the root
    finally:
        os.close(before)


@contextlib.contextmanager
def mounted(kind: str, source: str | Path, where: Path, *options: str) -> Iterator[Path]:
    """Mount `source` at `where`, or skip."""
    where.mkdir(exist_ok=True)
    argv = ["mount", "-t", kind, "-o", ",".join(options) or "rw", str(source), str(where)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this machine can't mount {kind}: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)

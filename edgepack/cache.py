"""Step outputs, addressed by the hash of what went in.

An entry is a folder ``KEY/`` with ``files/`` (what the step wrote) and ``entry.json`` (SHA-256 of every file).
It is made in a scratch folder beside its final place, flushed and renamed, so it appears whole or not at all.
One lock per key lets two builds share a cache. Every file is checked against its digest when an entry is
used: a damaged one is thrown away and made again. Only successes are stored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from edgepack import log
from edgepack.errors import EdgepackError, OutOfSpace

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """What decides a step's output: nothing else may reach the function that makes it.

    `title` is for people and is not part of the key.
    """

    name: str
    version: str
    inputs: Mapping[str, str]
    params: Mapping[str, Any]
    title: str = ""

    @property
    def key(self) -> str:
        """SHA-256 over name, version, input digests and parameters."""
        content = [FORMAT, self.name, self.version, dict(self.inputs), dict(self.params)]
        return sha256_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished step: its folder, the digest of all its content, and whether it was made just now."""

    path: Path
    digest: str
    reused: bool


class Cache:
    """A folder of finished steps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with out_of_space(root):
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            tag = root / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n# made by edgepack\n")

    def lookup(self, step: Step, *, discard: bool = True) -> Entry | None:
        """The finished step if it is there and whole, else None (a damaged one is thrown away)."""
        folder = self._folder(step.key)
        try:
            entry = json.loads((folder / "entry.json").read_bytes())
            files: dict[str, str] = entry["files"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError):
            self._discard(step, folder, "entry.json is unreadable", discard)
            return None
        found = tree_digests(folder / "files")
        if found != files:
            changed = sorted(set(found.items()) ^ set(files.items()))[0][0]
            self._discard(step, folder, f"{changed} is not what was stored", discard)
            return None
        return Entry(path=folder / "files", digest=digest_of(files), reused=True)

    def output(self, step: Step, make: Callable[[Path], None]) -> Entry:
        """Return the step's output, calling `make` with an empty folder when it isn't there yet."""
        found = self.lookup(step)
        if found is not None:
            log.reused(step.title or step.name)
            return found
        folder = self._folder(step.key)
        with out_of_space(self.root):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder) + ".lock"):
                found = self.lookup(step)
                if found is not None:
                    log.reused(step.title or step.name)
                    return found
                with log.step(step.title or step.name):
                    return self._make(step, folder, make)

    @contextmanager
    def scratch(self, title: str) -> Iterator[Path]:
        """An empty folder on the cache's disk for work that is never remembered, removed at the end."""
        folder = self.root / "scratch" / uuid.uuid4().hex
        with out_of_space(self.root), log.step(title):
            folder.mkdir(parents=True)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _make(self, step: Step, folder: Path, make: Callable[[Path], None]) -> Entry:
        scratch = folder.parent / f".{step.key[:16]}-{uuid.uuid4().hex[:8]}"
        (scratch / "files").mkdir(parents=True)
        try:
            make(scratch / "files")
            files = tree_digests(scratch / "files")
            entry = {"step": step.name, "version": step.version, "files": files}
            (scratch / "entry.json").write_text(json.dumps(entry, indent=1, sort_keys=True))
            flush_tree(scratch)
            os.rename(scratch, folder)
            flush_folder(folder.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return Entry(path=folder / "files", digest=digest_of(files), reused=False)

    def _folder(self, key: str) -> Path:
        return self.root / "steps" / key[:2] / key

    def _discard(self, step: Step, folder: Path, why: str, really: bool) -> None:
        if not really:
            return
        log.warn(f"cache entry of {step.title or step.name} is damaged ({why}); it will be made again")
        shutil.rmtree(folder, ignore_errors=True)


def sha256_text(text: str) -> str:
    """SHA-256 of a string's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every regular file below `folder`, by POSIX path; a link counts as its target's text."""
    found: dict[str, str] = {}
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            path = Path(base, name)
            relative = path.relative_to(folder).as_posix()
            found[relative] = sha256_text("link:" + str(path.readlink())) if path.is_symlink() else sha256_file(path)
    return dict(sorted(found.items()))


def digest_of(files: Mapping[str, str]) -> str:
    """One digest over a mapping of paths to digests."""
    return sha256_text(json.dumps(dict(sorted(files.items())), separators=(",", ":")))


def flush_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, so that a rename publishes finished bytes."""
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            if not path.is_symlink():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        flush_folder(Path(base))


def flush_folder(folder: Path) -> None:
    """fsync a directory: without it a rename can be lost in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def out_of_space(where: Path) -> Iterator[None]:
    """Turn ENOSPC and EROFS into a sentence with numbers."""
    try:
        yield
    except EdgepackError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        existing = where
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "can't be written"
        raise OutOfSpace(
            f"{where} {what} ({os.strerror(error.errno or 0)}; {free >> 20} MiB free).",
            "Free some space or choose another folder with EDGEPACK_CACHE; finished steps are kept.",
        ) from error

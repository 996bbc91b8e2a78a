"""A CMake build folder below the cache that is used again: another model's layers compile only what is new.

What is in it must not change the result, so its key holds everything that decides an object file, it is locked while in
use, and an object is kept only if it still is what a build that went well left there. Half-written and damaged files
and those of a killed build are thus made again, and the linked program is as from an empty folder.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgepack.cache import digest_of, out_of_space, sha256_file, tree_digests
from edgepack.resources import cache_root

NOTE = "trusted.json"
LIST_OF_LAYERS = "/ncnn.dir/layer.cpp.o"  # what differs between models is in its headers


@dataclass(frozen=True, kw_only=True)
class BuildFolder:
    """``build/`` for CMake and ``runtime/``, a copy of cpp_runtime whose path is always the same.

    `lock` is an open file for the programs that write here: if this process is killed, they still hold the folder.
    """

    root: Path
    lock: int

    @property
    def build(self) -> Path:
        """CMake's binary folder."""
        return self.root / "build"

    @property
    def runtime(self) -> Path:
        """The copy of cpp_runtime."""
        return self.root / "runtime"

    def empty(self) -> None:
        """Forget everything that was compiled."""
        shutil.rmtree(self.build, ignore_errors=True)

    def trust(self) -> None:
        """Remember what is there now, after a build that went well."""
        content = {"runtime": digest_of(tree_digests(self.runtime)), "files": _made(self.build)}
        (self.root / NOTE).write_text(json.dumps(content, indent=1, sort_keys=True))


@contextmanager
def locked(key: str, runtime: Path) -> Iterator[BuildFolder]:
    """The folder of `key` for one build at a time, with a fresh copy of `runtime` and no file that isn't trusted."""
    root = cache_root() / "builds" / key
    with out_of_space(cache_root()):
        root.mkdir(parents=True, exist_ok=True)
        with root.with_suffix(".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            folder = BuildFolder(root=root, lock=stream.fileno())
            shutil.rmtree(folder.runtime, ignore_errors=True)
            shutil.copytree(runtime, folder.runtime, ignore=shutil.ignore_patterns("tests"))
            _distrust(folder)
            yield folder


def _distrust(folder: BuildFolder) -> None:
    try:
        note = json.loads((folder.root / NOTE).read_bytes())
        files, runtime = dict(note["files"]), str(note["runtime"])
    except (OSError, ValueError, KeyError, TypeError):
        files, runtime = {}, ""
    same = runtime == digest_of(tree_digests(folder.runtime))
    for name, digest in _made(folder.build).items():
        # Modification times tell ninja about changes, which is not enough when the clock was set back.
        ours = not name.startswith("ncnn/")
        if files.get(name) != digest or (ours and not same) or name.endswith(LIST_OF_LAYERS):
            (folder.build / name).unlink()


def _made(build: Path) -> dict[str, str]:
    """Digests of CMake's settings, the object files and the archives below a build folder."""
    found = [path for path in build.rglob("*") if path.suffix in (".o", ".a") or path.name == "CMakeCache.txt"]
    return {path.relative_to(build).as_posix(): sha256_file(path) for path in sorted(found) if path.is_file()}

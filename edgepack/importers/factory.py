"""What a ``package.module:factory`` source is made of: the code that its digest must cover.

The code itself only ever runs in the child. Here its files are found and hashed, following imports by reading
them, so that a change of the user's own code makes the import step run again.
"""

from __future__ import annotations

import ast
import importlib.machinery
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgepack.cache import digest_of, sha256_file

MOST_FILES = 5000


def is_factory(source: str) -> bool:
    """Whether `source` has the form ``package.module:factory`` and is no file's name."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None and not Path(source).exists()


def digest(source: str, own: Path, installed: Sequence[str]) -> str:
    """SHA-256 over the factory's top-level package and everything that it imports from the folder `own`.

    `installed` are folders of installed packages: the factory may live there, but what it imports from there is
    taken as fixed. Code that is found nowhere is left out; the child says what is missing.
    """
    files: dict[str, str] = {}
    waiting = [source.partition(":")[0].partition(".")[0]]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        # Only the factory itself may come from the installed packages.
        places = [str(own), *_with_path_files(installed)] if not seen else [str(own)]
        seen.add(name)
        for label, path in _files(name, places):
            files[label] = sha256_file(path)
            waiting += _imports(path)
            if len(files) >= MOST_FILES:
                return digest_of(files)
    return digest_of(files)


def _files(name: str, places: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The files of a top-level module or package, each with a label that says nothing of where it lies."""
    spec = importlib.machinery.PathFinder.find_spec(name, list(places))
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            yield f"{name}/{path.relative_to(folder).as_posix()}", path
    if not spec.submodule_search_locations and spec.origin is not None and Path(spec.origin).is_file():
        yield name, Path(spec.origin)


def _imports(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it; none for a file that can't be read."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def _with_path_files(folders: Sequence[str]) -> list[str]:
    """The folders, and those that their ``.pth`` files add (editable installs)."""
    found = list(folders)
    for folder in folders:
        for listing in sorted(Path(folder).glob("*.pth")):
            try:
                lines = listing.read_text().splitlines()
            except (OSError, UnicodeDecodeError):
                continue
            found += [line for line in lines if line.strip() and not line.startswith(("#", "import ", "import\t"))]
    return found

"""Entry-point lookup: built-ins and strangers come in by the same door."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from edgepack import converter
from edgepack.cache import sha256_file, sha256_text
from edgepack.errors import UsageError


@functools.cache
def _found(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=f"edgepack.{group}"), key=lambda p: p.name)}


def names(group: str) -> list[str]:
    """Names of the installed plugins of one group, such as ``engines``."""
    return list(_found(group))


@functools.cache
def find(group: str, name: str) -> Any:
    """The class of the plugin `name`. Raises `UsageError` that lists what is installed."""
    found = _found(group)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"There is no {group.removesuffix('s')} {name!r}.{guess}",
            f"Installed: {', '.join(found) or 'none'}.",
            id="EP203",
        )
    return found[name].load()


@functools.cache
def load(group: str, name: str) -> Any:
    """Make the plugin `name`, which takes no arguments. Raises like `find`."""
    return find(group, name)()


def load_all(group: str) -> list[Any]:
    """Every plugin of one group, in the order of their names."""
    return [load(group, name) for name in names(group)]


@functools.cache
def module_digest(module: str) -> str:
    """SHA-256 of a loaded module's source: for steps that run our own code."""
    path = inspect.getsourcefile(sys.modules[module])
    return sha256_file(Path(path)) if path else ""


def digest(plugin: Any, tools: tuple[str, ...]) -> str:
    """What decides a plugin's results: its version, its code, the helpers it imports and its converter scripts."""
    code = [sha256_file(path) for path in _code(type(plugin).__module__)]
    return sha256_text(
        "\n".join([plugin.name, plugin.version, *code, *(converter.digest(script) for script in sorted(tools))])
    )


# These carry work out or say what happened, and decide no result; `runtimes` is in the harness's own key.
_CARRIERS = {
    f"edgepack.{name}" for name in ("cache", "converter", "errors", "log", "process", "resources", "runtimes", "types")
}


@functools.cache
def _code(module: str) -> tuple[Path, ...]:
    """The source files of `module` and of every module of edgepack that it imports, besides the carriers; sorted."""
    found: dict[str, Path] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found or name in _CARRIERS or (path := _source(name)) is None:
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "edgepack":
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found[name] for name in sorted(found))


def _source(module: str) -> Path | None:
    """A module's Python file; None for what is no module (a name that one defines) or has no source."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None

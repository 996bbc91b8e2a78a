"""Entry-point lookup: built-ins and strangers come in by the same door."""

from __future__ import annotations

import ast
import difflib
import functools
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
def load(group: str, name: str) -> Any:
    """Make the plugin `name`. Raises `UsageError` that lists what is installed."""
    found = _found(group)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"There is no {group.removesuffix('s')} {name!r}.{guess}",
            f"Installed: {', '.join(found) or 'none'}.",
            id="EP203",
        )
    return found[name].load()()


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
    code = [module_digest(module) for module in _code(type(plugin).__module__)]
    return sha256_text(
        "\n".join([plugin.name, plugin.version, *code, *(converter.digest(script) for script in sorted(tools))])
    )


# These carry work out or say what happened, and decide no result.
_CARRIERS = {f"edgepack.{name}" for name in ("cache", "converter", "errors", "log", "process", "resources", "types")}


@functools.cache
def _code(module: str) -> tuple[str, ...]:
    """`module` and every module of edgepack that it imports, directly or not, besides the carriers; sorted."""
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found or name in _CARRIERS or name not in sys.modules:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[name]))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "edgepack":
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(sorted(found - {"edgepack"}))

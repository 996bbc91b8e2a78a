"""Entry-point lookup: built-ins and strangers come in by the same door."""

from __future__ import annotations

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
    """What decides a plugin's results: its version, its module's source and the converter scripts it uses."""
    parts = [plugin.name, plugin.version, module_digest(type(plugin).__module__)]
    return sha256_text("\n".join([*parts, *(converter.digest(script) for script in sorted(tools))]))

"""TOML that is read strictly: a wrong key or type is an error with file, line and the nearest name.

`tomllib` doesn't tell where a key stands, so `Document` looks it up in the text when an error has to be told.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import ConfigError, UsageError

KINDS: Mapping[str, Callable[[Any], bool]] = {
    "a string": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "a number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "a list": lambda value: isinstance(value, list),
    "a list of strings": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "a table": lambda value: isinstance(value, dict),
}
_PART = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEY = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")


def whole(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def near(name: str, known: Collection[str]) -> str:
    """A sentence that offers the nearest of `known`, or nothing."""
    exact = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), exact, n=1)
    return f" Did you mean {exact[found[0]]!r}?" if found else ""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A TOML file that could be read."""

    path: Path
    text: str
    content: dict[str, Any]

    def fail(self, keys: tuple[str, ...], message: str, hint: str = "") -> ConfigError:
        """The error about the value at `keys`: file and line first."""
        return ConfigError(f"{self.path}:{self.line(keys)}: {message}", hint)

    def check(self, known: Mapping[str, str], keys: tuple[str, ...] = ()) -> dict[str, Any]:
        """The table at `keys`, all of whose keys are in `known` (key -> one of `KINDS`). Raises `ConfigError`."""
        table: Any = self.content
        for key in keys:
            table = table[key]
        if not isinstance(table, dict):
            raise self.fail(keys, f"{'.'.join(keys)} = {table!r} should be a table.", f"Write [{'.'.join(keys)}].")
        for key, value in table.items():
            where = (*keys, key)
            if key not in known:
                inside = f" in [{'.'.join(keys)}]" if keys else ""
                raise self.fail(where, f"unknown key {key!r}{inside}.{near(key, known)}", f"Keys: {', '.join(known)}.")
            if not KINDS[known[key]](value):
                raise self.fail(where, f"{key} = {value!r} should be {known[key]}.")
        return table

    def line(self, keys: tuple[str, ...]) -> int:
        """The line where `keys` is set, or its nearest parent; 1 where neither is found."""
        places = self._places()
        for length in range(len(keys), 0, -1):
            if keys[:length] in places:
                return places[keys[:length]]
        return 1

    def _places(self) -> dict[tuple[str, ...], int]:
        places: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.text.splitlines(), 1):
            if line.lstrip().startswith("["):
                table = _path(line) or table
                where = table
            else:
                found = _KEY.match(line)
                where = (*table, *_path(f"{found.group(1)} = 0")) if found else ()
            for length in range(1, len(where) + 1):
                places.setdefault(where[:length], number)
        return places


def read(path: Path) -> Document:
    """Read a file; a byte order mark and CRLF are fine.

    Raises `UsageError` (can't be read) and `ConfigError` (not UTF-8, not TOML), which name the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.", "Check the path.", id="EP204") from error
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start} is not UTF-8.", "Save the file in the encoding UTF-8."
        ) from error
    try:
        return Document(path=path, text=text, content=tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)|\(at end of document\)", str(error))
        line = int(found.group(1)) if found and found.group(1) else len(text.splitlines()) or 1
        raise ConfigError(f"{path}:{line}: this is not TOML: {error}.", "Correct that line.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply.", "Correct it; no setting needs that.") from error


def _path(line: str) -> tuple[str, ...]:
    """The keys that one line of TOML (a header, or KEY = 0) opens; () when it is no such line."""
    try:
        content: Any = tomllib.loads(line)
    except (tomllib.TOMLDecodeError, RecursionError):
        return ()
    keys: list[str] = []
    while isinstance(content, (dict, list)) and content:
        if isinstance(content, list):
            content = content[0]
            continue
        key = next(iter(content))
        keys.append(key)
        content = content[key]
    return tuple(keys)

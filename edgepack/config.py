"""TOML -> Target. Strict: an unknown key is an error with its line and the nearest name.

A target profile may `extends` another, by name or by a path beside it; tables are merged key by key, the nearer file
wins. What every key means is in docs/targets.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepack import this_machine
from edgepack.errors import ConfigError, UsageError
from edgepack.resources import data
from edgepack.strict_toml import Document, near, number, read, whole
from edgepack.this_machine import MACHINES
from edgepack.types import Bound, Precision, Target

__all__ = ["MACHINES", "list_targets", "load_target"]

BOUNDS = {
    Precision.FP32: Bound(cosine=0.9999, sqnr_db=40.0),
    Precision.FP16: Bound(cosine=0.999, sqnr_db=25.0),
    Precision.INT8: Bound(cosine=0.95, sqnr_db=8.0),
}
TARGET_KEYS = {
    "description": "a string",
    "extends": "a string",
    "detect": "true or false",
    "arch": "a string",
    "os": "a string",
    "libc": "a string",
    "libc_version": "a string",
    "glibcxx": "a string",
    "cpu": "a string",
    "cpu_features": "a list of strings",
    "clusters": "a list",
    "engines": "a list of strings",
    "absent": "a table",
    "precisions": "a list of strings",
    "memory_mb": "a whole number",
    "bounds": "a table",
    "emulator_cpu": "a string",
    "cmake_toolchain_file": "a string",
    "size": "a string",
    "static": "true or false",
    "libraries": "a table",
}
REQUIRED = ("arch", "os", "libc", "libc_version", "engines", "precisions", "memory_mb")
TARGET_CHOICES = {
    "arch": ("aarch64", "armhf", "riscv64", "x86_64"),
    "os": ("linux", "android"),
    "libc": ("glibc", "musl", "bionic"),
    "size": ("fast", "small"),
}
BOUND_KEYS = ("cosine", "sqnr_db", "top1")
OFF = "off"
OWN_LIBRARY = "onnxruntime"  # the engine whose shared library may be the user's own build


def load_target(name_or_path: str | Path, folder: Path | None = None) -> Target:
    """A profile of ``targets/`` by name, or the user's own by path to a ``.toml``.

    `folder` stands in for ``targets/``. Raises `UsageError` (unknown name, with the nearest) and `ConfigError` (file,
    line and nearest key).
    """
    folder = folder or data("targets")
    path = _find(str(name_or_path), folder, Path())
    if path is None:
        raise UsageError(
            f"There is no target {str(name_or_path)!r}.{near(str(name_or_path), _names(folder))}",
            f"Targets: {', '.join(_names(folder))}. Or give the path of a .toml of your own.",
            id="EP202",
        )
    return _target(path, *_merged(path, folder, ()))


def list_targets() -> list[Target]:
    """Every profile that ships with edgepack, by name."""
    return [load_target(name) for name in _names(data("targets"))]


# --- targets --------------------------------------------------------------------------------------------------------


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.toml"))


def _find(name: str, folder: Path, beside: Path) -> Path | None:
    """The file that `name` means: a profile of `folder`, or a path seen from `beside` when it looks like one."""
    if name.endswith(".toml"):
        return beside / Path(name).expanduser()
    return folder / f"{name}.toml" if name in _names(folder) else None


def _merged(path: Path, folder: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Document]:
    """A profile's own keys over those of what it extends."""
    if path.resolve() in seen:
        chain = " -> ".join(each.stem for each in (*seen, path))
        raise ConfigError(f"{path}: `extends` goes round in a circle: {chain}.", "Remove one `extends`.")
    document = read(path)
    _check_target(document)
    own = dict(document.content)
    if "cmake_toolchain_file" in own:
        own["cmake_toolchain_file"] = str(_file(document, ("cmake_toolchain_file",)))
    if "libraries" in own:
        own["libraries"] = {engine: str(_file(document, ("libraries", engine))) for engine in own["libraries"]}
    parent, detect = own.pop("extends", None), own.pop("detect", False)
    if detect:
        if parent is not None:
            raise document.fail(("extends",), "`detect` chooses what is extended.", "Remove `extends` or `detect`.")
        base, _ = _merged(folder / f"linux-{this_machine.arch()}.toml", folder, (*seen, path.resolve()))
        return _inherit(this_machine.overlay(base), own, path.stem), document
    if parent is None:
        return own, document
    found = _find(parent, folder, path.parent)
    if found is None or not found.is_file():
        raise document.fail(
            ("extends",),
            f"extends = {parent!r}: there is no such profile.{near(parent, _names(folder))}",
            f"Profiles: {', '.join(_names(folder))}. Or the path of a .toml, seen from this file.",
        )
    base, _ = _merged(found, folder, (*seen, path.resolve()))
    return _inherit(base, own, path.stem), document


def _inherit(base: Mapping[str, Any], own: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`own` over `base`. An engine is either offered or absent, as the nearer file says."""
    result = _over(base, own)
    before = base.get("engines", [])
    offered = own.get("engines", [each for each in before if each not in own.get("absent", {})])
    left_out = {each: f"the profile {name} leaves it out" for each in before if each not in offered}
    absent = {**left_out, **result.get("absent", {})}
    result["engines"] = offered
    result["absent"] = {each: why for each, why in absent.items() if each not in offered}
    return result


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    result = {**base}
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _over(base[key], value) if both else value
    return result


def _check_target(document: Document) -> None:
    table = document.check(TARGET_KEYS)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", document.path.stem):
        raise ConfigError(
            f"{document.path}: a profile is called like its file, and {document.path.stem!r} is no good name.",
            "Rename the file: letters, digits, dot, dash and underscore.",
        )
    for key, allowed in TARGET_CHOICES.items():
        if key in table and table[key] not in allowed:
            raise document.fail(
                (key,),
                f"{key} = {table[key]!r} is not known.{near(table[key], allowed)}",
                f"One of {', '.join(allowed)}.",
            )
    for key in ("libc_version", "glibcxx"):
        if key in table and not re.fullmatch(r"\d+(\.\d+)*", table[key]):
            raise document.fail((key,), f"{key} = {table[key]!r} is not a version such as 2.36.")
    if table.get("memory_mb", 1) < 1:
        raise document.fail(("memory_mb",), "memory_mb should be at least 1.")
    for precision in table.get("precisions", ()):
        if precision not in list(Precision):
            raise document.fail(("precisions",), f"unknown precision {precision!r}.", f"One of {', '.join(Precision)}.")
    for cluster in table.get("clusters", ()):
        if not (isinstance(cluster, list) and len(cluster) == 2 and isinstance(cluster[0], str) and whole(cluster[1])):
            raise document.fail(("clusters",), f"{cluster!r} is not [core, count].", 'Such as [["cortex-a55", 4]].')
    _check_engines(document, table)
    for precision in table.get("bounds", ()):
        _check_bound(document, precision)


def _check_engines(document: Document, table: Mapping[str, Any]) -> None:
    from edgepack import plugins

    installed = plugins.names("engines")
    for key in ("engines", "absent"):
        for engine in table.get(key, ()):
            if engine not in installed:
                where = (key, engine) if key == "absent" else (key,)
                message = f"unknown engine {engine!r}.{near(engine, installed)}"
                raise document.fail(where, message, f"Installed engines: {', '.join(installed)}.")
    for engine in table.get("libraries", ()):
        if engine != OWN_LIBRARY:
            message = f"libraries.{engine}: a library of your own is taken for {OWN_LIBRARY} only."
            raise document.fail(("libraries", engine), message, f'Write {OWN_LIBRARY} = "FILE".')
    for engine, why in table.get("absent", {}).items():
        if not isinstance(why, str) or not why.strip():
            raise document.fail(("absent", engine), f"absent.{engine} should say in a sentence why it is not offered.")
        if engine in table.get("engines", ()):
            raise document.fail(("absent", engine), f"{engine} is both in `engines` and in [absent].", "Remove one.")
    for key in ("engines", "precisions"):
        if key in table and not table[key]:
            raise document.fail((key,), f"`{key}` is empty, so there is nothing to build.")


def _check_bound(document: Document, precision: str) -> None:
    where = ("bounds", precision)
    if precision not in list(Precision):
        hint = f"One of {', '.join(f'[bounds.{p}]' for p in Precision)}."
        raise document.fail(where, f"unknown precision {precision!r}.{near(precision, list(Precision))}", hint)
    table = document.content["bounds"][precision]
    if not isinstance(table, dict):
        raise document.fail(where, f"bounds.{precision} = {table!r} should be a table.", f"Write [bounds.{precision}].")
    for key, value in table.items():
        if key not in BOUND_KEYS:
            message = f"unknown key {key!r} in [bounds.{precision}].{near(key, BOUND_KEYS)}"
            raise document.fail((*where, key), message, f"Keys: {', '.join(BOUND_KEYS)}.")
        if value == OFF and key != "cosine":
            continue
        share = key != "sqnr_db"  # cosine and top-1 agreement are at most 1, SQNR is in dB
        if not number(value) or (share and not 0 <= value <= 1):
            wanted = "a number from 0 to 1" if share else "a number of dB"
            wanted += "" if key == "cosine" else ', or "off"'
            raise document.fail((*where, key), f"{key} = {value!r} should be {wanted}.")


def _file(document: Document, where: tuple[str, ...]) -> Path:
    """The file that a key names, seen from the profile."""
    value: Any = document.content
    for key in where:
        value = value[key]
    name = ".".join(where)
    if not isinstance(value, str):
        raise document.fail(where, f"{name} = {value!r} should be the path of a file.")
    path = document.path.parent / Path(value).expanduser()
    if not path.is_file():
        raise document.fail(where, f"{name}: {path} doesn't exist.", "A relative path is seen from this file.")
    return path.resolve()


def _target(path: Path, content: Mapping[str, Any], document: Document) -> Target:
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        hint = 'Set them, or extend a profile: extends = "linux-aarch64".'
        raise ConfigError(f"{path}: {', '.join(missing)} not set.", hint)
    if not content["engines"]:
        raise document.fail(("absent",), "every engine is absent, so there is nothing to build.")
    return Target(
        name=path.stem,
        description=content.get("description", ""),
        arch=content["arch"],
        os=content["os"],
        libc=content["libc"],
        libc_version=content["libc_version"],
        glibcxx=content.get("glibcxx", "3.4"),
        cpu=content.get("cpu", "generic"),
        cpu_features=tuple(content.get("cpu_features", ())),
        clusters=tuple((core, count) for core, count in content.get("clusters", ())),
        engines=tuple(dict.fromkeys(content["engines"])),
        absent=dict(content.get("absent", {})),
        precisions=tuple(dict.fromkeys(Precision(name) for name in content["precisions"])),
        memory_mb=content["memory_mb"],
        bounds={p: _bound(BOUNDS[p], content.get("bounds", {}).get(str(p), {})) for p in Precision},
        emulator_cpu=content.get("emulator_cpu", "max"),
        cmake_toolchain_file=content.get("cmake_toolchain_file"),
        size=content.get("size", "fast"),
        static=content.get("static", True),
        libraries=dict(content.get("libraries", {})),
    )


def _bound(default: Bound, table: Mapping[str, Any]) -> Bound:
    given = {key: None if value == OFF else float(value) for key, value in table.items()}
    return Bound(**{**asdict(default), **given})

"""TOML -> Target, Preprocess. Strict: an unknown key is an error with its line and the nearest name.

A target profile may `extends` another, by name or by a path beside it; tables are merged key by key, the nearer file
wins. What every key means is in docs/targets.md and docs/preprocess.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepack import log, this_machine
from edgepack.errors import ConfigError, UsageError
from edgepack.resources import data
from edgepack.strict_toml import Document, near, read
from edgepack.this_machine import MACHINES
from edgepack.types import Bound, Precision, Preprocess, Target

__all__ = ["MACHINES", "list_targets", "load_preprocess", "load_target"]

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
PREPROCESS_KEYS = (
    "layout", "color", "resize", "fit", "method", "crop", "pad", "pad_value", "pad_place", "mean", "std",
)  # fmt: skip
PREPROCESS_CHOICES = {
    "layout": ("NCHW", "NHWC", "CHW", "HWC", "NHW", "HW"),
    "color": ("RGB", "BGR", "GRAY"),
    "fit": ("stretch", "inside", "height"),
    "method": ("bilinear", "nearest"),
    "pad_place": ("center", "top_left"),
}
PROJECT = "edgepack.toml"
LARGEST_SIDE = 1 << 16
LARGEST_NUMBER = 1e30  # of mean and std, and 1 / of std: what float32 holds with room to spare


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


def load_preprocess(path: Path) -> dict[str, Preprocess]:
    """Read the ``[input.NAME]`` tables of a file; ``[input."*"]`` stands for the only input.

    Raises `ConfigError` (file, line and nearest key) and `UsageError` when the file can't be read.
    """
    document = read(path)
    document.check({"input": "a table"})
    found = {name: _preprocess(document, name) for name in document.content.get("input", {})}
    if not found:
        raise ConfigError(f"{path} declares no input.", 'Write a table [input."NAME"], see docs/preprocess.md.')
    return found


def beside(source: str, folder: Path | None = None) -> dict[str, Preprocess] | None:
    """The inputs that an ``edgepack.toml`` beside the model declares; None where there is no such file.

    For ``package.module:factory`` it is the one in `folder`, by default the current one. Raises like `load_preprocess`.
    """
    model = Path(source)
    path = (model.parent if model.is_file() else folder or Path()) / PROJECT
    if not path.is_file():
        return None
    log.note(f"inputs are declared in {path}")
    return load_preprocess(path)


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
        if not (isinstance(cluster, list) and len(cluster) == 2 and isinstance(cluster[0], str) and _whole(cluster[1])):
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
        if not _number(value) or (share and not 0 <= value <= 1):
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


# --- preprocess -----------------------------------------------------------------------------------------------------


def _preprocess(document: Document, name: str) -> Preprocess:
    where = ("input", name)
    table = document.content["input"][name]
    if not isinstance(table, dict):
        message = f"input.{name} = {table!r} should be a table."
        raise document.fail(where, message, f'Write [input."{name}"] and its keys below.')
    for key, value in table.items():
        if key not in PREPROCESS_KEYS:
            hint = f'Keys: {", ".join(PREPROCESS_KEYS)}. A name with a dot is quoted: [input."a.b"].'
            raise document.fail(
                (*where, key), f"unknown key {key!r} in [input.{name}].{near(key, PREPROCESS_KEYS)}", hint
            )
        allowed = PREPROCESS_CHOICES.get(key)
        if allowed and value not in allowed:
            guess = near(value, allowed) if isinstance(value, str) else ""
            raise document.fail(
                (*where, key), f"{key} = {value!r} is not known.{guess}", f"One of {', '.join(allowed)}."
            )
    fields = {key: table[key] for key in PREPROCESS_CHOICES if key in table}
    for key in ("resize", "crop", "pad"):
        if key in table:
            fields[key] = _sizes(document, where, key, table[key])
    for key in ("mean", "std", "pad_value"):
        if key in table:
            fields[key] = _numbers(document, where, key, table[key], 1 if table.get("color") == "GRAY" else 3)
    _check_pad(document, where, fields)
    _check_scale(document, where, fields)
    return Preprocess(**fields)


def _sizes(document: Document, where: tuple[str, ...], key: str, value: Any) -> tuple[int, int] | int:
    if key == "resize" and _whole(value) and value <= LARGEST_SIDE:
        return int(value)
    if isinstance(value, list) and len(value) == 2 and all(_whole(size) and size <= LARGEST_SIDE for size in value):
        return value[0], value[1]
    alone = ", or the shorter side's length" if key == "resize" else ""
    raise document.fail((*where, key), f"{key} = {value!r} should be [height, width] in pixels{alone}.")


def _numbers(document: Document, where: tuple[str, ...], key: str, value: Any, channels: int) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, channels) or not all(_number(each) for each in values):
        message = f"{key} = {value!r} should be one number" + (
            f", or {channels}, one per channel." * (channels > 1) or "."
        )
        raise document.fail((*where, key), message)
    if key == "std" and 0 in values:
        raise document.fail((*where, key), "std divides, so it can't be 0.", "1 leaves values as they are.")
    if any(abs(each) > LARGEST_NUMBER or (key == "std" and abs(each) < 1 / LARGEST_NUMBER) for each in values):
        raise document.fail((*where, key), f"{key} = {value!r} is too far from 1 for float32.")
    return tuple(float(each) for each in values)


def _check_pad(document: Document, where: tuple[str, ...], fields: Mapping[str, Any]) -> None:
    """Keys that only make sense together."""
    if fields.get("fit", "stretch") != "stretch" and not isinstance(fields.get("resize"), tuple):
        raise document.fail((*where, "fit"), f"fit = {fields['fit']!r} needs resize = [height, width] to fit into.")
    pad, crop = fields.get("pad"), fields.get("crop")
    for key in ("pad_value", "pad_place"):
        if key in fields and pad is None:
            raise document.fail((*where, key), f"{key} does nothing without pad.", "Add pad = [height, width].")
    if pad and crop and (crop[0] > pad[0] or crop[1] > pad[1]):
        raise document.fail((*where, "pad"), f"pad = {list(pad)} is smaller than crop = {list(crop)}.")
    if not all(0 <= each <= 255 for each in fields.get("pad_value", ())):
        raise document.fail(
            (*where, "pad_value"),
            f"pad_value = {list(fields['pad_value'])} is outside 0..255.",
            "It is a colour before mean and std; mean itself becomes 0.",
        )


def _check_scale(document: Document, where: tuple[str, ...], fields: Mapping[str, Any]) -> None:
    """Means and deviations for pixels in 0..1 are the usual slip: they would blow 0..255 up to thousands."""
    std, mean = fields.get("std"), fields.get("mean", (0.0,))
    if std and max(abs(each) for each in std) < 1 and max(abs(each) for each in mean) <= 1:
        scaled = [
            f"{key} = {[round(255 * each, 4) for each in values]}" for key, values in (("mean", mean), ("std", std))
        ]
        raise document.fail(
            (*where, "std"),
            "these mean and std are for pixels in 0..1; edgepack's are for pixels in 0..255.",
            f"Multiply by 255: {', '.join(scaled)}.",
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

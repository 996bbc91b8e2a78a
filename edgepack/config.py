"""TOML -> Target, Preprocess. Strict: an unknown key is an error with its line and the nearest name.

A target profile may `extends` another by name; tables are merged key by key, the nearer file wins.
"""

from __future__ import annotations

import difflib
import os
import platform
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import ConfigError, UsageError
from edgepack.resources import data
from edgepack.types import Bound, Precision, Preprocess, Target

BOUNDS = {
    Precision.FP32: Bound(cosine=0.9999, sqnr_db=40.0),
    Precision.FP16: Bound(cosine=0.999, sqnr_db=25.0),
    Precision.INT8: Bound(cosine=0.95, sqnr_db=8.0),
}
STRING_KEYS = (
    "description", "extends", "arch", "os", "libc", "libc_version", "glibcxx", "cpu", "emulator_cpu",
    "cmake_toolchain_file",
)  # fmt: skip
LIST_KEYS = ("cpu_features", "engines", "precisions", "clusters")
TARGET_KEYS = {
    **dict.fromkeys(STRING_KEYS, str),
    **dict.fromkeys(LIST_KEYS, list),
    "memory_mb": int,
    "absent": dict,
    "bounds": dict,
}
REQUIRED = ("arch", "os", "libc", "libc_version", "engines", "precisions", "memory_mb")
ARCHES = ("aarch64", "x86_64", "armhf", "riscv64")
MACHINES = {"x86_64": "x86_64", "aarch64": "aarch64", "armv7l": "armhf", "armv8l": "armhf", "riscv64": "riscv64"}
BOUND_KEYS = {"cosine": (int, float), "sqnr_db": (int, float), "top1": (int, float)}
PREPROCESS_KEYS = {
    "layout": str,
    "color": str,
    "resize": (int, list),
    "method": str,
    "crop": list,
    "mean": (int, float, list),
    "std": (int, float, list),
}
CHOICES = {
    "layout": ("NCHW", "NHWC", "CHW", "HWC", "NHW", "HW"),
    "color": ("RGB", "BGR", "GRAY"),
    "method": ("bilinear", "nearest"),
}


def load_target(name: str, folder: Path | None = None) -> Target:
    """A profile of ``targets/`` by name, or the user's own by path to a ``.toml``.

    Raises `UsageError` (unknown name, with the nearest) and `ConfigError` (file, line and nearest key).
    """
    folder = folder or data("targets")
    path = Path(name)
    if path.suffix != ".toml":
        path = folder / f"{name}.toml"
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not path.is_file():
            known = sorted(p.stem for p in folder.glob("*.toml"))
            near = difflib.get_close_matches(name, known, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"There is no target {name!r}.{guess}", f"Targets: {', '.join(known)}.", id="EP202")
    merged = _merged(path, folder, ())
    if path.stem == "host":
        merged = _this_machine(merged, folder)
    return _target(path, merged)


def list_targets() -> list[Target]:
    """Every profile that ships with edgepack."""
    return [load_target(path.stem) for path in sorted(data("targets").glob("*.toml"))]


def load_preprocess(path: Path) -> dict[str, Preprocess]:
    """Read ``[input.NAME]`` tables; ``[input."*"]`` stands for the only input."""
    text, content = _read(path)
    _check_keys(path, text, content, {"input": dict}, "")
    found: dict[str, Preprocess] = {}
    for name, table in content.get("input", {}).items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: [input] holds {name!r}, which is not a table.", 'Write [input."NAME"].')
        _check_keys(path, text, table, PREPROCESS_KEYS, f"input.{name}.")
        found[name] = _preprocess(path, text, table)
    if not found:
        raise ConfigError(f"{path} declares no input.", 'Write a table [input."NAME"], see docs/preprocess.md.')
    return found


def _preprocess(path: Path, text: str, table: Mapping[str, Any]) -> Preprocess:
    for key, allowed in CHOICES.items():
        if key in table and table[key] not in allowed:
            raise _error(path, text, key, f"{key} = {table[key]!r} is not one of {', '.join(allowed)}")
    for key, count in (("crop", 2), ("resize", 2)):
        value = table.get(key)
        sizes = value if isinstance(value, list) else [value] if value is not None else []
        wrong = isinstance(value, list) and len(value) != count
        if wrong or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise _error(path, text, key, f"{key} = {value!r} must be [height, width], positive whole numbers")
    fields: dict[str, Any] = {key: table[key] for key in ("layout", "color", "method") if key in table}
    for key in ("mean", "std"):
        if key in table:
            values = table[key] if isinstance(table[key], list) else [table[key]]
            if not values or not all(isinstance(v, (int, float)) for v in values) or (key == "std" and 0 in values):
                raise _error(path, text, key, f"{key} must be one number or one per channel, and std not 0")
            fields[key] = tuple(float(v) for v in values)
    if "resize" in table:
        resize = table["resize"]
        fields["resize"] = (resize[0], resize[1]) if isinstance(resize, list) else resize
    if "crop" in table:
        fields["crop"] = (table["crop"][0], table["crop"][1])
    return Preprocess(**fields)


def _merged(path: Path, folder: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(p.stem for p in (*seen, resolved))
        raise ConfigError(f"{path}: `extends` goes round in a circle: {chain}.", "Remove one `extends`.")
    text, content = _read(path)
    _check_keys(path, text, content, TARGET_KEYS, "")
    for precision, bound in content.get("bounds", {}).items():
        if precision not in list(Precision) or not isinstance(bound, dict):
            raise _error(path, text, precision, f"[bounds.{precision}] is not a table of fp32, fp16 or int8")
        _check_keys(path, text, bound, BOUND_KEYS, f"bounds.{precision}.")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    beside = path.parent / f"{parent}.toml"
    parent_path = beside if beside.is_file() and beside.resolve() != resolved else folder / f"{parent}.toml"
    if not parent_path.is_file():
        known = [p.stem for p in folder.glob("*.toml")]
        near = difflib.get_close_matches(parent, known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise _error(path, text, "extends", f"extends = {parent!r}: there is no such profile.{guess}")
    merged = _merged(parent_path, folder, (*seen, resolved))
    engines = content.get("engines", merged.get("engines", []))
    for key, value in content.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    merged["absent"] = {k: v for k, v in merged.get("absent", {}).items() if k not in engines}
    return merged


def _target(path: Path, content: Mapping[str, Any]) -> Target:
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        hint = 'Set them, or extend a profile: extends = "linux-aarch64".'
        raise ConfigError(f"{path}: missing {', '.join(missing)}.", hint)
    if content["arch"] not in ARCHES:
        raise ConfigError(f"{path}: arch = {content['arch']!r} is not one of {', '.join(ARCHES)}.", "")
    try:
        precisions = tuple(Precision(p) for p in content["precisions"])
        clusters = tuple((str(core), int(count)) for core, count in content.get("clusters", []))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}.", "precisions are fp32, fp16, int8; clusters are [core, count].") from None
    bounds = {p: Bound(**{**_fields(BOUNDS[p]), **content.get("bounds", {}).get(str(p), {})}) for p in Precision}
    return Target(
        name=path.stem,
        description=content.get("description", ""),
        arch=content["arch"],
        os=content["os"],
        libc=content["libc"],
        libc_version=content["libc_version"],
        glibcxx=content.get("glibcxx", "3.4.0"),
        cpu=content.get("cpu", "generic"),
        cpu_features=tuple(content.get("cpu_features", ())),
        clusters=clusters,
        engines=tuple(content["engines"]),
        absent=dict(content.get("absent", {})),
        precisions=precisions,
        memory_mb=content["memory_mb"],
        bounds=bounds,
        emulator_cpu=content.get("emulator_cpu", "max"),
        cmake_toolchain_file=content.get("cmake_toolchain_file"),
    )


def _fields(bound: Bound) -> dict[str, Any]:
    return {"cosine": bound.cosine, "sqnr_db": bound.sqnr_db, "top1": bound.top1}


def _this_machine(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `host` stands for: this machine's architecture, libc and CPU features."""
    arch = MACHINES.get(platform.machine())
    if arch is None:
        raise UsageError(
            f"The host's architecture {platform.machine()!r} has no profile.", "Name a target.", id="EP202"
        )
    merged = {**_merged(folder / f"linux-{arch}.toml", folder, ()), **content, "arch": arch}
    version = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    if version and version.startswith("glibc "):
        merged["libc_version"] = version.removeprefix("glibc ")
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _cpuinfo(), re.M)
    if found:
        merged["cpu_features"] = sorted(found.group(1).split())
    return merged


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        return text, tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.", "Check the path.", id="EP204") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}).", "Save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.", "Correct that line.") from None


def _check_keys(path: Path, text: str, table: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> None:
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise _error(path, text, key, f"unknown key {prefix}{key}.{guess}")
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is not bool):
            wanted = known[key] if isinstance(known[key], tuple) else (known[key],)
            names = " or ".join({"str": "a string", "int": "a whole number", "list": "a list"}.get(
                kind.__name__, {"dict": "a table", "float": "a number"}.get(kind.__name__, kind.__name__)
            ) for kind in wanted)  # fmt: skip
            raise _error(path, text, key, f"{prefix}{key} = {value!r} should be {names}")


def _error(path: Path, text: str, key: str, message: str) -> ConfigError:
    pattern = re.compile(rf"^\s*\[?(?:[\w.\"]*\.)?\"?{re.escape(key)}\"?\s*[\]=]", re.M)
    found = pattern.search(text)
    line = text.count("\n", 0, found.end()) + 1 if found else 1
    return ConfigError(f"{path}:{line}: {message.rstrip('.')}{'?' if message.endswith('?') else '.'}".replace("??", "?"),
                       "See docs/targets.md for the keys.")  # fmt: skip

"""devices.toml -> Device: edgepack's own file, the user's and the project's; the nearest says what a name means."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack import plugins
from edgepack.errors import UsageError
from edgepack.resources import config_root, data
from edgepack.strict_toml import Document, near, read
from edgepack.types import Device

KEYS: Mapping[str, str] = {
    "target": "a string",
    "transport": "a string",
    "address": "a string",
    "root": "a string",
    "tags": "a list of strings",
    "options": "a table",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAG = NAME
_ROOT = re.compile(r"[A-Za-z0-9._/+@=-]+")


def user_file() -> Path:
    """The user's own devices.toml, which `devices add` writes."""
    return config_root() / "devices.toml"


def files() -> list[Path]:
    """Every devices.toml that is there: edgepack's own, the user's, the current folder's."""
    found = [data("devices.toml"), user_file(), Path("devices.toml").absolute()]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def devices() -> dict[str, Device]:
    """All devices by name. Raises `UsageError` (file, line and nearest key)."""
    return {device.name: device for path in files() for device in load(path)}


def find(name: str) -> Device:
    """The device `name`. Raises `UsageError` with the nearest name."""
    known = devices()
    if name not in known:
        raise UsageError(
            f"There is no device {name!r}.{near(name, known)}",
            f"Devices: {', '.join(known)}. Another one: edgepack devices add ssh://user@host --name {_safe(name)}",
            id="EP250",
        )
    return known[name]


def select(names: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> list[Device]:
    """The devices that are named or have one of `tags`, each once. Raises `UsageError` when one means nothing."""
    chosen = {name: find(name) for name in names}
    known = devices()
    for tag in tags:
        tagged = {name: device for name, device in known.items() if tag in device.tags}
        if not tagged:
            there = sorted({each for device in known.values() for each in device.tags})
            raise UsageError(
                f"No device has the tag {tag!r}.{near(tag, there)}", f"Tags: {', '.join(there) or 'none'}.", id="EP250"
            )
        chosen |= tagged
    return list(chosen.values())


def load(path: Path) -> list[Device]:
    """The devices of one file. Raises `ConfigError` (line and nearest key) and `UsageError` (can't be read)."""
    document = read(path)
    document.check({"devices": "a table"})
    return [_device(document, name) for name in document.content.get("devices", {})]


def add(device: Device, path: Path | None = None) -> Path:
    """Append an entry to a devices.toml (the user's own); returns the file.

    Raises `UsageError` when the file has that name already, or would not be understood.
    """
    path = path or user_file()
    there = {each.name for each in load(path)} if path.exists() else set()
    if device.name in there:
        raise UsageError(f"{path} has a device {device.name!r} already.", "Choose another --name.", id="EP250")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        scratch.write_text(f"{before.rstrip()}\n\n{_text(device)}".lstrip())
        load(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _text(device: Device) -> str:
    fields = {
        "target": device.target,
        "transport": device.transport,
        "address": device.address,
        "root": device.root,
        "tags": list(device.tags),
        "options": dict(device.options),
    }
    lines = [f'[devices."{device.name}"]' if "." in device.name else f"[devices.{device.name}]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items() if value and key != "options"]
    lines += [f"options.{key} = {json.dumps(value)}" for key, value in device.options.items()]
    return "\n".join(lines) + "\n"


def _device(document: Document, name: str) -> Device:
    where = ("devices", name)
    table = document.check(KEYS, where)
    if not NAME.fullmatch(name):
        raise document.fail(where, f"{name!r} is no good name.", "Letters, digits, dot, dash and underscore.")
    for key in ("target", "transport"):
        if key not in table:
            raise document.fail(where, f"the device {name} has no {key}.", f'Such as {key} = "{_EXAMPLE[key]}".')
    for tag in table.get("tags", ()):
        if not _TAG.fullmatch(tag):
            raise document.fail((*where, "tags"), f"{tag!r} is no good tag.", "Letters, digits, dot, dash, underscore.")
    root = table.get("root", "")
    if root and (not _ROOT.fullmatch(root) or ".." in root.split("/") or root.startswith("-") or root == "/"):
        hint = "A folder of edgepack's own: letters, digits and . _ / + @ = -, without `..`."
        raise document.fail((*where, "root"), f"root = {root!r} can't be used.", hint)
    _transport(document, where, table)
    target = table["target"]
    if target.endswith(".toml"):
        target = str(document.path.parent / Path(target).expanduser())
    device = Device(
        name=name,
        target=target,
        transport=table["transport"],
        address=table.get("address", ""),
        root=root,
        tags=tuple(dict.fromkeys(table.get("tags", ()))),
        options=dict(table.get("options", {})),
    )
    try:
        plugins.find("transports", device.transport)(device)
    except UsageError as error:
        raise document.fail((*where, "address"), error.message, error.hint) from error
    return device


_EXAMPLE = {"target": "rk3588", "transport": "ssh"}


def _transport(document: Document, where: tuple[str, ...], table: Mapping[str, Any]) -> None:
    """Check the transport's name and its own options."""
    kind = table["transport"]
    installed = plugins.names("transports")
    if kind not in installed:
        hint = f"Installed: {', '.join(installed)}."
        raise document.fail((*where, "transport"), f"unknown transport {kind!r}.{near(kind, installed)}", hint)
    known = getattr(plugins.find("transports", kind), "options", None)
    if known is not None and "options" in table:
        document.check(known, (*where, "options"))


def _safe(name: str) -> str:
    return name if NAME.fullmatch(name) else "NAME"

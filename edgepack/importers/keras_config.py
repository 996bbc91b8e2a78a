"""What a Keras file's configuration would make Keras do, read without Keras: code is refused before anything is loaded.

A ``.keras`` file is a zip with ``config.json``; an ``.h5`` file has the same JSON in an attribute. A configuration can
hold Python bytecode (Lambda layers), pickles (wrapped torch modules) and names of any module to import.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepack.errors import ModelError

LARGEST = 64 << 20  # bytes of config.json; real ones are below 1 MB
DEEPEST = 200
EXPORT = (
    "Where you trust the model and have its code, load it there, call model.export('FOLDER'), and build from that "
    "folder: a SavedModel holds the graph itself, no code."
)
MODULES = ("keras", "tensorflow", "builtins", "tf_keras")


def from_zip(path: Path, name: str) -> Any:
    """The configuration of a ``.keras`` file. Raises `ModelError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("config.json")
            if info.file_size > LARGEST:
                raise damaged(name, f"its config.json would be {info.file_size:,} bytes")
            with archive.open(info) as member:
                text = member.read(LARGEST + 1)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise damaged(name, str(error)) from error
    return parse(text, name)


def parse(text: bytes, name: str) -> Any:
    """JSON text as a configuration. Raises `ModelError`."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(name, f"its configuration is no JSON: {error}") from error
    if not isinstance(config, dict) or "class_name" not in config:
        raise damaged(name, "its configuration names no model")
    return config


def damaged(name: str, why: str) -> ModelError:
    """The refusal of a file that can't be read."""
    return ModelError(
        f"{name} is cut off or damaged ({why.rstrip('.')}).", "Copy, download or save it again.", id="EP303"
    )


def check(config: Any, name: str) -> None:
    """Raise `ModelError` for a configuration that holds or names code, or a layer with hidden state."""
    for entry in _objects(config, name):
        kind, module = entry.get("class_name"), entry.get("module")
        inner = entry.get("config")
        layer = inner.get("name", kind) if isinstance(inner, dict) else kind
        if kind == "Lambda" or kind == "__lambda__":
            raise ModelError(
                f"{name} is refused: its layer {layer!r} is a Lambda, whose Python bytecode would run on loading.",
                f"Write it with Keras' own layers, such as Rescaling or Activation. {EXPORT}",
                id="EP309",
            )
        if kind == "TorchModuleWrapper":
            raise ModelError(
                f"{name} is refused: its layer {layer!r} is a pickled torch module, and unpickling runs code.",
                "Build from the torch module itself: edgepack build package.module:factory --weights FILE.",
                id="EP309",
            )
        if isinstance(module, str) and module.partition(".")[0] not in MODULES:
            raise ModelError(
                f"{name} needs the class {kind!r} of the module {module!r} (layer {layer!r}): edgepack imports no code "
                "that a file names.",
                EXPORT,
                id="EP309",
            )
        if isinstance(inner, dict) and inner.get("stateful") is True:
            raise ModelError(
                f"{name}: the layer {layer!r} is stateful: it hides what it remembers between calls, and a bundle "
                "can't prove what it can't set.",
                "Make the state an input and an output (return_state=True, initial_state=...), and save it again.",
                id="EP310",
            )


def _objects(config: Any, name: str) -> Iterator[dict[str, Any]]:
    """Every dict with a class name, however deep."""
    waiting = [(config, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise damaged(name, f"its configuration is nested more than {DEEPEST} deep")
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            waiting += [(inner, depth + 1) for inner in reversed(value.values())]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in reversed(value)]

"""TensorFlow sources: Keras files (``.keras``, ``.h5``) and SavedModel folders.

TensorFlow lives in the child (``converters/tensorflow_to_onnx.py``). A Keras file's configuration is looked through
here first: nothing that holds or names code is ever loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.cache import digest_of, sha256_file
from edgepack.errors import ModelError, UsageError
from edgepack.importers import keras_config, staging
from edgepack.importers.sniff import Kind, kind_of, meant_for
from edgepack.types import Model

KINDS = {Kind.KERAS: "keras", Kind.HDF5: "h5", Kind.SAVED_MODEL: "saved_model"}
SUFFIXES = (".keras", ".h5", ".hdf5")
PARTS = ("variables", "assets")  # the folders of a SavedModel that belong to the model
NO_CODE = "Models with code of their own come as a SavedModel: model.export('FOLDER')."


class TensorFlowImporter:
    """Importer for TensorFlow and Keras."""

    name = "tensorflow"
    version = "1"
    tools = ("tensorflow_to_onnx", "read_h5", "import_onnx")

    def __init__(self) -> None:
        self._known: dict[Any, str] = {}

    def accepts(self, source: str) -> bool:
        """SavedModel folders, ``.keras`` and HDF5 files by content; by ending what no importer knows."""
        return meant_for(source, KINDS, SUFFIXES)

    def digest(self, source: str, options: Mapping[str, Any]) -> str:
        """SHA-256 over the file, or every file of the folder, and the signature. Raises `ModelError`, `UsageError`."""
        staging.refuse_options(options, source, "a TensorFlow model", weights=NO_CODE, python=NO_CODE)
        kind, root, files = self._look(source)
        if options.get("signature") is not None and kind != "saved_model":
            raise UsageError(
                f"--signature is for SavedModel folders, and {source} is a file.", "Leave it out.", id="EP212"
            )
        seen = (source, *(staging.stamp(root / file) for file in files))
        if seen not in self._known:
            self._known[seen] = _digest(root, files, kind)
        return digest_of({"files": self._known[seen], "signature": str(options.get("signature"))})

    def to_onnx(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], out: Path
    ) -> None:
        """Write ``model.onnx`` and ``model.json`` to `out`. Raises `ModelError` and `UsageError`."""
        with staging.staged(out) as folder:
            request = self._request(source, shapes, options, folder)
            exported = folder / "exported"
            exported.mkdir()
            staging.run("tensorflow_to_onnx", {**request, "mode": "export"}, exported, folder)
            staging.finish(exported / "model.onnx", request["name"], {}, options.get("dtypes") or {}, out, folder)

    def reference(self, source: str, model: Model, options: Mapping[str, Any], samples: Path, out: Path) -> None:
        """Run the model with TensorFlow on `samples`."""
        shapes = {spec.name: spec.shape for spec in model.inputs}
        with staging.staged(out) as folder:
            request = self._request(source, shapes, options, folder)
            request |= {
                "mode": "reference",
                "samples": str(samples),
                "inputs": [spec.name for spec in model.inputs],
                "outputs": [spec.name for spec in model.outputs],
            }
            staging.run("tensorflow_to_onnx", request, out, folder)

    def _request(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], folder: Path
    ) -> dict[str, Any]:
        """What both modes of the script need; its files are copies in `folder`, checked against `digest`."""
        kind, root, files = self._look(source)
        copied = folder / "copy"
        for file in files:
            # Keras tells its formats apart by the ending.
            name = file if kind == "saved_model" else f"model.{kind}"
            with (root / file).open("rb") as stream:
                staging.copy(stream, copied / name)
        made = files if kind == "saved_model" else [f"model.{kind}"]
        if _digest(copied, made, kind) != _digest(root, files, kind):
            raise ModelError(f"{source} changed while it was read.", "Run the command again.", id="EP312")
        name = Path(source).resolve().name
        if kind == "h5":
            self._check_h5(copied / made[0], name, folder)
        elif kind == "keras":
            keras_config.check(keras_config.from_zip(copied / made[0], name), name)
        return {
            "kind": kind,
            "source": str(copied if kind == "saved_model" else copied / made[0]),
            "name": name,
            "shapes": {key: list(sizes) for key, sizes in shapes.items()},
            "signature": options.get("signature"),
        }

    def _check_h5(self, path: Path, name: str, folder: Path) -> None:
        found = folder / "config"
        found.mkdir()
        staging.run("read_h5", {"source": str(path)}, found, folder)
        if not (found / "config.json").is_file():
            raise ModelError(
                f"{name} is an HDF5 file without a model: it holds weights alone (save_weights), or no Keras model.",
                "Save the whole model: model.save('model.keras').",
                id="EP302",
            )
        keras_config.check(keras_config.parse((found / "config.json").read_bytes(), name), name)

    def _look(self, source: str) -> tuple[str, Path, list[str]]:
        """The kind of source for the script, its root folder, and its files relative to that, sorted."""
        path = Path(source)
        if path.is_dir():
            return "saved_model", path, _files(path)
        path = staging.readable(source)
        kind = kind_of(path)
        if kind is Kind.SAVED_MODEL:  # saved_model.pb itself
            return "saved_model", path.parent, _files(path.parent)
        if kind not in KINDS:
            raise staging.mislabelled(path, kind, "a Keras model")
        if kind is Kind.KERAS:
            keras_config.check(keras_config.from_zip(path, path.name), path.name)
        return KINDS[kind], path.parent, [path.name]


def _files(folder: Path) -> list[str]:
    """What belongs to the SavedModel in `folder`: regular files only."""
    found = ["saved_model.pb"]
    for part in PARTS:
        for place, folders, names in os.walk(folder / part):
            folders.sort()
            found += [(Path(place) / name).relative_to(folder).as_posix() for name in names]
    for file in found:
        path = folder / file
        if any(p.is_symlink() for p in (path, *path.parents[: file.count("/")])) or not path.is_file():
            raise ModelError(
                f"{folder.name}/{file} is not a regular file of that folder.",
                "Make a plain copy of the folder (cp -rL) and build from that.",
                id="EP304",
            )
    return sorted(found)


def _digest(root: Path, files: list[str], kind: str) -> str:
    # A file's own name is not content: a renamed copy is the same model.
    return digest_of({file if kind == "saved_model" else kind: sha256_file(root / file) for file in files})

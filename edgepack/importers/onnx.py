"""ONNX sources: one file, or one file with its weights beside it.

The model is never parsed in edgepack's own process: its bytes are looked at (`sniff`, `external`), copied once,
and the copy is what ``converters/import_onnx.py`` and onnxruntime see.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.cache import digest_of, sha256_file
from edgepack.converters.wire import WireError
from edgepack.errors import ModelError
from edgepack.importers import external, staging
from edgepack.importers.sniff import Kind, kind_of, meant_for
from edgepack.types import Model

SMALLEST = 16  # bytes; a graph with one node and one output takes more
NEWEST_IR = 13  # onnxruntime 1.31.1 refuses newer ones, and onnx 1.23 writes 14
NEWEST_OPSET = 26  # as import_onnx has it; it has checked that the operators are the same there
ONE_FILE = 2 << 30  # bytes: protobuf's limit
WANTED = "an ONNX model"


class OnnxImporter:
    """Importer for ``.onnx``."""

    name = "onnx"
    version = "1"
    tools = ("import_onnx", "run_onnxruntime")

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], str] = {}

    def accepts(self, source: str) -> bool:
        """Protobuf files by content, and files that end in ``.onnx`` and no importer knows (a refusal says what)."""
        return meant_for(source, (Kind.PROTOBUF,), (".onnx",))

    def digest(self, source: str, options: Mapping[str, Any]) -> str:
        """SHA-256 over the model and every file that it keeps weights in. Raises `ModelError` for a bad file."""
        staging.refuse_options(options, source, "an ONNX file", weights="", python="", signature="")
        path, files = self._files(source)
        seen = tuple(staging.stamp(path.parent / file) for file in files)
        if seen not in self._known:
            self._known[seen] = _digest(path.parent, files)
        return self._known[seen]

    def to_onnx(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], out: Path
    ) -> None:
        """Write ``model.onnx`` (one file, fixed shapes, opset 13 or newer) and ``model.json`` to `out`."""
        with staging.staged(out) as folder:
            model = self._copy(source, options, folder)
            staging.finish(model, Path(source).name, shapes, options.get("dtypes") or {}, out, folder)

    def reference(self, source: str, model: Model, options: Mapping[str, Any], samples: Path, out: Path) -> None:
        """Run the file as it is, without graph optimisations, with onnxruntime."""
        with staging.staged(out) as folder:
            copy = self._copy(source, options, folder)
            external.lower_versions(copy, NEWEST_IR, NEWEST_OPSET)
            request = {
                "files": [str(copy)],
                "inputs": [spec.name for spec in model.inputs],
                "outputs": [spec.name for spec in model.outputs],
                "samples": str(samples),
                "threads": 1,
                "timed": 0,
                "optimize": False,
            }
            staging.run("run_onnxruntime", request, out, folder)

    def _files(self, source: str) -> tuple[Path, list[str]]:
        """The model's path, and the names of all its files relative to its folder, its own first."""
        path = staging.readable(source)
        kind = kind_of(path)
        if kind is not Kind.PROTOBUF or path.stat().st_size < SMALLEST:
            raise staging.mislabelled(path, kind, WANTED)
        try:
            found = external.scan(path)
        except WireError as error:
            raise ModelError(
                f"{path.name} is cut off or damaged: its {path.stat().st_size:,} bytes are not a whole ONNX model "
                f"(protobuf wire error: {error}).",
                "Copy or download it again, and compare its size with the original's.",
                id="EP303",
            ) from error
        size = path.stat().st_size + sum(entry.length or 0 for entry in found)
        if size >= ONE_FILE:
            raise ModelError(
                f"{path.name} is {size / 2**30:.1f} GiB with its weights, and one ONNX file can hold 2.",
                "edgepack is for models that fit an edge device; quantize or shrink it first.",
                id="EP313",
            )
        beside = external.check(found, path.parent)
        if path.name in beside:
            raise ModelError(f"{path.name} names itself as the file of its weights.", external.ONE_FILE, id="EP304")
        return path, [path.name, *beside]

    def _copy(self, source: str, options: Mapping[str, Any], folder: Path) -> Path:
        """Copy the model and its files to `folder`, and make sure that the copy is what `digest` saw."""
        expected = self.digest(source, options)
        path, files = self._files(source)
        with path.open("rb") as stream:
            staging.copy(stream, folder / path.name)
        for file in files[1:]:
            entry = external.External(tensor="", location=file)
            with external.open_inside(path.parent, entry) as stream:
                staging.copy(stream, folder / file)
        if _digest(folder, files) != expected:
            raise ModelError(f"{source} changed while it was read.", "Run the command again.", id="EP312")
        return folder / path.name


def _digest(folder: Path, files: list[str]) -> str:
    # The model's own name is not content: a renamed copy is the same model.
    return digest_of({name if i else "": sha256_file(folder / name) for i, name in enumerate(files)})

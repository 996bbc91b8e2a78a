"""TFLite sources. The file itself is kept as it is for the engine tflite; other engines get its ONNX form.

tf2onnx makes the ONNX form (``converters/tensorflow_to_onnx.py``); a quantized file becomes ONNX with its own scales.
LiteRT gives the reference. What a file hides in variables becomes an input and an output first, and sparse weights are
unpacked for tf2onnx (``converters/tflite_plain.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.cache import sha256_file
from edgepack.errors import ModelError, UsageError
from edgepack.importers import staging, tflite_file
from edgepack.importers.sniff import Kind, kind_of, meant_for
from edgepack.types import Model, Precision

KEPT = "source.tflite"


class TFLiteImporter:
    """Importer for ``.tflite``."""

    name = "tflite"
    version = "1"
    tools = ("tensorflow_to_onnx", "tflite_plain", "run_tflite", "import_onnx")

    def __init__(self) -> None:
        self._known: dict[Any, str] = {}

    def accepts(self, source: str) -> bool:
        """TFLite files by content; by ending what no importer knows."""
        return meant_for(source, (Kind.TFLITE,), (".tflite", ".lite"))

    def digest(self, source: str, options: Mapping[str, Any]) -> str:
        """SHA-256 of the file. Raises `ModelError` for a file that is refused."""
        staging.refuse_options(options, source, "a TFLite file", weights="", python="", signature="")
        path, _ = _look(source)
        seen = staging.stamp(path)
        if seen not in self._known:
            self._known[seen] = sha256_file(path)
        return self._known[seen]

    def quantized(self, source: str) -> bool:
        """Whether the file's numbers are integers with scales of their own."""
        return _look(source)[1].precision is Precision.INT8

    def to_onnx(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], out: Path
    ) -> None:
        """Write ``model.onnx``, ``model.json`` and ``source.tflite`` to `out`. Raises `ModelError`, `UsageError`."""
        with staging.staged(out) as folder:
            kept, found = self._copy(source, options, folder, tell=True)
            plain = _plain(kept, Path(source).name, folder) if found.packed else kept
            _check_shapes(found, shapes)
            exported = folder / "exported"
            exported.mkdir()
            request = {
                "mode": "export",
                "kind": "tflite",
                "source": str(plain),
                "name": Path(source).name,
                "inputs": {tensor.name: list(tensor.shape) for tensor in found.inputs},
                "outputs": [tensor.name for tensor in found.outputs],
            }
            staging.run("tensorflow_to_onnx", request, exported, folder)
            dtypes = options.get("dtypes") or {}
            staging.finish(exported / "model.onnx", Path(source).name, {}, dtypes, out, folder)
            kept.rename(out / KEPT)
        facts = json.loads((out / "model.json").read_text())
        facts |= {
            "origin": {"engine": "tflite", "file": KEPT, "precision": found.precision},
            "zero_points": [tensor.zero_point for tensor in found.outputs],
        }
        (out / "model.json").write_text(json.dumps(facts, indent=1, sort_keys=True))

    def reference(self, source: str, model: Model, options: Mapping[str, Any], samples: Path, out: Path) -> None:
        """Run the file itself with LiteRT on `samples`."""
        with staging.staged(out) as folder:
            copy, _ = self._copy(source, options, folder)
            request = {
                "files": [str(copy)],
                "inputs": [spec.name for spec in model.inputs],
                "outputs": [spec.name for spec in model.outputs],
                "samples": str(samples),
                "threads": 1,
                "timed": 0,
            }
            staging.run("run_tflite", request, out, folder)

    def _copy(
        self, source: str, options: Mapping[str, Any], folder: Path, *, tell: bool = False
    ) -> tuple[Path, tflite_file.Contents]:
        """A copy of the file in `folder`, made sure to be what `digest` saw, its state at its surface; its contents."""
        expected = self.digest(source, options)
        copy = folder / "model.tflite"
        with Path(source).open("rb") as stream:
            staging.copy(stream, copy)
        if sha256_file(copy) != expected:
            raise ModelError(f"{source} changed while it was read.", "Run the command again.", id="EP312")
        found = _look(str(copy), Path(source).name)[1]
        if found.stateful:
            copy = _plain(copy, Path(source).name, folder, tell=tell)
            found = _look(str(copy), Path(source).name)[1]
        return copy, found


def _plain(path: Path, name: str, folder: Path, *, tell: bool = False) -> Path:
    """The file `path` without hidden state and sparse weights. Raises `ModelError` where that can't be proven equal."""
    made = folder / "plain"
    made.mkdir()
    staging.run("tflite_plain", {"source": str(path), "name": name, "tell": tell}, made, folder)
    return made / "model.tflite"


def _look(source: str, name: str = "") -> tuple[Path, tflite_file.Contents]:
    """The file and its contents. Raises `ModelError` for what no step could do anything with."""
    path = staging.readable(source)
    name = name or path.name
    kind = kind_of(path)
    if kind is not Kind.TFLITE:
        raise staging.mislabelled(path, kind, "a TFLite model", name)
    try:
        found = tflite_file.read(path)
    except tflite_file.Damaged as error:
        raise ModelError(
            f"{name} looks like TFLite and is cut off or damaged: {error}.",
            "Copy or download it again, and compare its size.",
            id="EP303",
        ) from error
    if found.custom:
        raise ModelError(
            f"{name} uses custom operators: {', '.join(map(repr, found.custom[:5]))}. No engine here knows them.",
            "Convert the model again without them (Flex operators: without tf.lite.OpsSet.SELECT_TF_OPS), "
            "or cut the graph before them.",
            id="EP308",
        )
    if found.remembering:
        raise ModelError(
            f"{name} has recurrent layers that remember the last run (in {found.remembering[0]!r}): TFLite's own never "
            "forget, so that an answer depends on what was asked before.",
            "Build from the Keras model, the SavedModel or the ONNX file instead: edgepack writes those layers out.",
            id="EP310",
        )
    for what, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            if tensor.kind not in tflite_file.DTYPES:
                held = tflite_file.NAMES.get(tensor.kind, f"the unknown type {tensor.kind}")
                raise ModelError(
                    f"{name}: the {what} {tensor.name!r} is a tensor of {held}: edgepack handles tensors of numbers.",
                    "Convert the model again with float32 there.",
                    id="EP310",
                )
        names = [tensor.name for tensor in tensors]
        if not names or len(set(names)) < len(names) or "" in names:
            raise ModelError(
                f"{name} has no {what}s, or {what}s without a name of their own: {', '.join(map(repr, names))}.",
                "Convert the model again; the converter names them.",
                id="EP303",
            )
    return path, found


def _check_shapes(found: tflite_file.Contents, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A TFLite file carries its sizes: ``--input`` may say them again, and no others."""
    there = {tensor.name: tensor.shape for tensor in found.inputs}
    listed = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in there.items())
    for name, shape in shapes.items():
        if there.get(name) != shape:
            given = f"{name}={'x'.join(map(str, shape))}"
            raise UsageError(
                f"--input {given} doesn't fit the file: a TFLite file fixes its sizes.",
                f"Its inputs: {listed}. For other sizes convert the model again.",
                id="EP211",
            )
    for tensor in found.inputs:
        if any(size < 1 for size in tensor.shape):
            raise ModelError(
                f"The input {tensor.name!r} has no fixed size: {list(tensor.shape)}.",
                "Convert the model again with fixed sizes.",
                id="EP305",
            )

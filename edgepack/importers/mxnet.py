"""MXNet sources: ``NAME-symbol.json`` with ``NAME-0000.params`` beside it, or the file given with ``--weights``.

The framework is archived; its last release still runs in the child (``converters/mxnet_to_onnx.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.cache import digest_of, sha256_file
from edgepack.errors import ModelError
from edgepack.importers import staging
from edgepack.importers.sniff import Kind, kind_of, meant_for
from edgepack.types import Model

LARGEST = 64 << 20  # bytes of a symbol; the numbers lie beside it
PYTHON = ("Custom", "_CustomFunction", "_Native", "_NDArray")  # operators that call back into Python


class MXNetImporter:
    """Importer for MXNet."""

    name = "mxnet"
    version = "1"
    tools = ("mxnet_to_onnx", "import_onnx")

    def __init__(self) -> None:
        self._known: dict[Any, str] = {}

    def accepts(self, source: str) -> bool:
        """Symbol files by content, and parameter files, for a refusal that says what to give."""
        return meant_for(source, (Kind.MXNET_SYMBOL, Kind.MXNET_PARAMS), ())

    def digest(self, source: str, options: Mapping[str, Any]) -> str:
        """SHA-256 over the symbol and its parameters. Raises `ModelError`, `UsageError`."""
        staging.refuse_options(options, source, "an MXNet symbol", python="", signature="")
        files = _files(source, options)
        seen = tuple(staging.stamp(path) for path in files)
        if seen not in self._known:
            self._known[seen] = digest_of({str(i): sha256_file(path) for i, path in enumerate(files)})
        return self._known[seen]

    def to_onnx(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], out: Path
    ) -> None:
        """Write ``model.onnx`` and ``model.json`` to `out`. Raises `ModelError` and `UsageError`."""
        dtypes = dict(options.get("dtypes") or {})
        with staging.staged(out) as folder:
            exported = folder / "exported"
            exported.mkdir()
            request = self._request(source, shapes, dtypes, options, folder)
            staging.run("mxnet_to_onnx", {**request, "mode": "export"}, exported, folder)
            staging.finish(exported / "model.onnx", request["name"], {}, dtypes, out, folder)

    def reference(self, source: str, model: Model, options: Mapping[str, Any], samples: Path, out: Path) -> None:
        """Run the symbol with MXNet on `samples`."""
        shapes = {spec.name: spec.shape for spec in model.inputs}
        dtypes = {spec.name: spec.dtype for spec in model.inputs}
        with staging.staged(out) as folder:
            request = self._request(source, shapes, dtypes, options, folder)
            request |= {"mode": "reference", "samples": str(samples), "order": list(shapes)}
            staging.run("mxnet_to_onnx", request, out, folder)

    def _request(
        self,
        source: str,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, str],
        options: Mapping[str, Any],
        folder: Path,
    ) -> dict[str, Any]:
        """What both modes of the script need; its files are copies in `folder`, checked against `digest`."""
        expected = self.digest(source, options)
        copies = [folder / "model-symbol.json", folder / "model-0000.params"]
        for path, copied in zip(_files(source, options), copies, strict=True):
            with path.open("rb") as stream:
                staging.copy(stream, copied)
        if digest_of({str(i): sha256_file(path) for i, path in enumerate(copies)}) != expected:
            raise ModelError(f"{source} changed while it was read.", "Run the command again.", id="EP312")
        name = Path(source).name
        _check(copies[0], name)
        return {
            "symbol": str(copies[0]),
            "params": str(copies[1]),
            "name": name,
            "inputs": {key: list(sizes) for key, sizes in shapes.items()},
            "dtypes": dict(dtypes),
        }


def _files(source: str, options: Mapping[str, Any]) -> tuple[Path, Path]:
    """The symbol and its parameters. Raises `ModelError`."""
    path = staging.readable(source)
    kind = kind_of(path)
    if kind is not Kind.MXNET_SYMBOL:
        raise staging.mislabelled(path, kind, "an MXNet symbol")
    _check(path, path.name)
    given = options.get("weights")
    if given is not None:
        params = staging.readable(str(given))
    else:
        prefix = re.escape(path.name.removesuffix(".json").removesuffix("-symbol"))
        beside = sorted(p for p in path.parent.iterdir() if re.fullmatch(rf"{prefix}(-\d+)?\.params", p.name))
        if not beside:
            raise ModelError(
                f"{path.name} holds a graph without numbers, and no .params file of its name lies beside it.",
                "Put it there, or name it with --weights FILE.",
                id="EP304",
            )
        params = beside[-1]  # the last epoch
    found = kind_of(params)
    if found is not Kind.MXNET_PARAMS:
        raise staging.mislabelled(params, found, "a file of MXNet parameters")
    return path, params


def _check(path: Path, name: str) -> None:
    """Refuse symbols that are no graph, and operators that call back into Python."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many for a graph")
        nodes = json.loads(path.read_bytes())["nodes"]
        operators = {str(node["op"]): str(node["name"]) for node in nodes}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{name} is cut off or damaged: {error}.", "Copy or save it again.", id="EP303") from error
    for operator in PYTHON:
        if operator in operators:
            raise ModelError(
                f"{name} uses the operator {operator} (node {operators[operator]!r}): its code is Python that the file "
                "doesn't hold.",
                "Replace it by MXNet's own operators, or export the model to ONNX yourself.",
                id="EP308",
            )

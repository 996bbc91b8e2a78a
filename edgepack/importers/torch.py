"""PyTorch sources: ``.pt2`` (torch.export), TorchScript, and ``package.module:factory`` with ``--weights``.

torch lives in the child (``converters/torch_to_onnx.py``), in its own environment or under the user's interpreter.
Pickles are never unpickled here, and in the child only with ``weights_only=True``.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack import process
from edgepack.cache import digest_of, sha256_file, sha256_text
from edgepack.errors import ModelError, ToolMissing, UsageError
from edgepack.importers import factory, pickles, shards, staging
from edgepack.importers.sniff import Kind, kind_of, meant_for
from edgepack.types import Model, TensorSpec

SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt", ".pkl", ".pickle", ".safetensors")
KINDS = {Kind.TORCHSCRIPT: "torchscript", Kind.PT2: "pt2"}
PICKLES = (Kind.TORCH_ZIP, Kind.PICKLE)
WEIGHTS = (*PICKLES, Kind.SAFETENSORS)
CODE_HINT = (
    "Give the code that makes the model, and this file for its weights: "
    "edgepack build package.module:factory --weights {file}. Or export the model with torch.export.save."
)
SAVE_HINT = (
    "If the model is your own: save its weights alone (torch.save(model.state_dict(), 'weights.pt')) and build with "
    "edgepack build package.module:factory --weights weights.pt. Or export it with torch.export.save."
)
# Prints the versions that decide an export, as the interpreter's own metadata has them.
ASK = "import importlib.metadata as m, sys; print(sys.version); print(m.version('torch'))"


class TorchImporter:
    """Importer for PyTorch."""

    name = "torch"
    version = "1"
    tools = ("torch_to_onnx", "import_onnx")

    def __init__(self) -> None:
        self._known: dict[Any, str] = {}
        self._harmless: set[tuple[int, ...]] = set()  # stamps of files whose pickles were read through

    def accepts(self, source: str) -> bool:
        """``package.module:factory``; files that end like PyTorch's; archives and pickles by content."""
        if factory.is_factory(source):
            return True
        return meant_for(source, (*KINDS, *PICKLES), SUFFIXES)

    def digest(self, source: str, options: Mapping[str, Any]) -> str:
        """SHA-256 over the file, or over a factory's code and weights, and over the user's interpreter's torch.

        Raises `ModelError` for a file that is refused, `UsageError` for options that don't fit the source.
        """
        kind, files = self._look(source, options)
        python = _interpreter(options)
        seen = (source, str(python), *(staging.stamp(path) for path in files))
        if seen not in self._known or kind == "factory":
            parts = {str(i): sha256_file(path) for i, path in enumerate(files)}
            if kind == "factory":
                parts["name"] = sha256_text(source)
                parts["code"] = factory.digest(source, Path.cwd(), options.get("pythonpath") or ())
            if python is not None:
                parts["python"] = self._known.setdefault(python, "") or sha256_text(_versions(python))
                self._known[python] = parts["python"]
            self._known[seen] = digest_of(parts)
        return self._known[seen]

    def to_onnx(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], out: Path
    ) -> None:
        """Write ``model.onnx`` and ``model.json`` to `out`. Raises `ModelError` and `UsageError`."""
        self._to_onnx(source, shapes, options, out, {})

    def known_inputs(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
    ) -> tuple[TensorSpec, ...]:
        """The inputs that the user named, where they are all that the model has; an exported program knows its own."""
        if not factory.is_factory(source) and kind_of(Path(source)) is not Kind.TORCHSCRIPT:
            return ()
        dtypes = options.get("dtypes") or {}
        return tuple(TensorSpec(name=n, dtype=dtypes.get(n, "float32"), shape=s) for n, s in shapes.items())

    def to_onnx_and_reference(
        self,
        source: str,
        shapes: Mapping[str, tuple[int, ...]],
        options: Mapping[str, Any],
        samples: Path,
        out: Path,
        outputs: Path,
    ) -> bool:
        """`to_onnx`, and `reference` on `samples` in one process, which imports torch once; False if that failed."""
        beside = {"samples": str(samples), "outputs": str(outputs)}
        return bool(self._to_onnx(source, shapes, options, out, beside).get("ran"))

    def _to_onnx(
        self,
        source: str,
        shapes: Mapping[str, tuple[int, ...]],
        options: Mapping[str, Any],
        out: Path,
        beside: Mapping[str, str],
    ) -> dict[str, Any]:
        dtypes = options.get("dtypes") or {}
        with staging.staged(out) as folder:
            request = self._request(source, shapes, options, folder)
            if request["kind"] != "pt2" and not shapes:
                raise ModelError(
                    f"{request['name']} doesn't say what it takes: a PyTorch module has no input shapes of its own.",
                    "Add --input NAME=SHAPE for each input of its forward(), in order, for example "
                    "--input x=1x3x224x224 (for whole numbers: --input ids=1x128:int64).",
                    id="EP305",
                )
            exported = folder / "exported"
            exported.mkdir()
            how = {"python": _interpreter(options)}
            result = staging.run("torch_to_onnx", {**request, **beside, "mode": "export"}, exported, folder, **how)
            staging.finish(exported / "model.onnx", request["name"], shapes, dtypes, out, folder)
        return result

    def reference(self, source: str, model: Model, options: Mapping[str, Any], samples: Path, out: Path) -> None:
        """Run the PyTorch model itself on `samples`."""
        shapes = {spec.name: spec.shape for spec in model.inputs}
        dtypes = {spec.name: spec.dtype for spec in model.inputs}
        with staging.staged(out) as folder:
            request = self._request(source, shapes, {**options, "dtypes": dtypes}, folder)
            request |= {"mode": "reference", "samples": str(samples)}
            staging.run("torch_to_onnx", request, out, folder, python=_interpreter(options))

    def _request(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], folder: Path
    ) -> dict[str, Any]:
        """What both modes of the script need; the files in it are copies in `folder`, checked against `digest`."""
        kind, files = self._look(source, options)
        copies = []
        for i, path in enumerate(files):
            copies.append(folder / "files" / f"{i:05}{path.suffix}")
            with path.open("rb") as stream:
                staging.copy(stream, copies[-1])
            if sha256_file(copies[-1]) != sha256_file(path):
                raise ModelError(f"{path} changed while it was read.", "Run the command again.", id="EP312")
        if copies:  # what was looked at must be what the child gets
            self._check(copies[0], kind, files[0])
        dtypes = options.get("dtypes") or {}
        weights = options.get("weights")
        return {
            "kind": kind,
            "source": source if kind == "factory" else str(copies[0]),
            "name": source if kind == "factory" else Path(source).name,
            "weights": str(copies[0] if len(copies) == 1 else copies[0].parent)
            if kind == "factory" and copies
            else None,
            "weights_name": Path(weights).name if weights is not None else "",
            "inputs": [
                {"name": name, "shape": list(shape), "dtype": dtypes.get(name, "float32")}
                for name, shape in shapes.items()
            ],
            "cwd": str(Path.cwd()),
            "pythonpath": list(options.get("pythonpath") or ()),
        }

    def _look(self, source: str, options: Mapping[str, Any]) -> tuple[str, list[Path]]:
        """The kind of source for the script, and the files that hold its bytes."""
        weights = options.get("weights")
        if factory.is_factory(source):
            files = []
            if weights is not None:
                files = shards.files(Path(weights))
                for file in files:
                    self._check(file, "factory", file)
            return "factory", files
        path = staging.readable(source)
        if weights is not None:
            raise UsageError(
                f"--weights is for package.module:factory, and {source} is a file.", "Leave --weights out.", id="EP212"
            )
        kind = kind_of(path)
        self._check(path, KINDS.get(kind, ""), path)
        return KINDS[kind], [path]

    def _check(self, path: Path, kind: str, named: Path) -> None:
        """Refuse what can't be used, or would have to be unpickled. `named` is what the user calls the file."""
        found = kind_of(path)
        if kind == "factory":
            if found not in WEIGHTS:
                raise staging.mislabelled(path, found, "a state dict", named.name)
        elif found in PICKLES:
            raise _pickle(path, found, named)
        elif found not in KINDS:
            raise staging.mislabelled(path, found, "a PyTorch model", named.name)
        stamp = staging.stamp(path)
        if found in (*PICKLES, Kind.PT2) and stamp not in self._harmless:
            bad = _globals(path, named)
            if bad:
                raise ModelError(
                    f"{named.name} is refused: its pickle names {_listed(bad)}, which loading it would import or call.",
                    "Weights need nothing of that kind. Where you trust the file, save it again as a plain state dict "
                    "(torch.save(model.state_dict(), FILE)) or as safetensors.",
                    id="EP309",
                )
            self._harmless.add(stamp)


def _pickle(path: Path, found: Kind, named: Path) -> ModelError:
    bad = _globals(path, named)
    if bad:
        return ModelError(
            f"{named.name} is {found.value}, and was not loaded: that would run code. It names {_listed(bad)}.",
            SAVE_HINT,
            id="EP309",
        )
    hint = CODE_HINT.format(file=shlex.quote(str(named)))
    return ModelError(f"{named.name} holds weights without a model (a state dict).", hint, id="EP309")


def _globals(path: Path, named: Path) -> list[str]:
    try:
        return pickles.offending(path)
    except pickles.Damaged as error:
        raise ModelError(
            f"{named.name} is cut off or damaged ({error}).", "Copy or download it again.", id="EP303"
        ) from error


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name)[1:-1] for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _interpreter(options: Mapping[str, Any]) -> Path | None:
    """The user's interpreter. Not resolved: a virtual environment's python is a link that must stay one."""
    python = options.get("python")
    if python is None:
        return None
    path = Path(python).expanduser().absolute()
    if not path.is_file():
        raise UsageError(f"--python {python} is not a program.", f"Give a path such as {sys.executable}.", id="EP204")
    return path


def _versions(python: Path) -> str:
    done = process.run([python, "-I", "-c", ASK], limits=process.Limits(seconds=60))
    if done.returncode != 0:
        raise ToolMissing(
            f"The interpreter {python} has no torch.",
            f"Install it there: {shlex.join([str(python), '-m', 'pip', 'install', 'torch', 'onnx', 'onnxscript'])}.",
            id="EP402",
        )
    return done.stdout

"""What importers share: the copy of a source that a converter sees, and the way its refusals come back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from edgepack import converter, log
from edgepack.errors import EdgepackError, ModelError, ToolFailed, ToolMissing, UsageError
from edgepack.importers.sniff import ADVICE, Kind


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` for the source's copy; removed at the end."""
    folder = out.parent / f"{out.name}.source"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(script: str, request: Mapping[str, Any], out: Path, source: Path | None = None, **how: Any) -> dict[str, Any]:
    """`converter.convert`, with the script's notes said and its ``error`` entry raised as the exception it is.

    `source` is the staged copy: when the converter crashes, it is kept with the failed request, so that the
    command in the message really repeats the step.
    """
    try:
        result = converter.convert(script, request, out, **how)
    except ToolFailed as error:
        _keep(error, source)
        raise ModelError(error.message, error.hint, id=error.id, log=error.log) from error
    refused = result.get("error")
    if refused is not None:
        family: type[EdgepackError] = {"usage": UsageError, "tool": ToolMissing}.get(refused["kind"], ModelError)
        raise family(refused["message"], refused["hint"], id=refused["id"])
    for note in result.get("notes", ()):
        log.note(note)
    return result


def _keep(error: ToolFailed, source: Path | None) -> None:
    if source is None or error.log is None or not source.is_dir():
        return
    kept = error.log.parent / "source"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(source, kept)
    request = error.log.parent / "request.json"
    # Paths in the request are JSON strings, so the text of a path is replaced as JSON has it.
    old, new = (json.dumps(str(path))[1:-1] for path in (source, kept))
    request.write_text(request.read_text().replace(old, new))


def readable(source: str) -> Path:
    """`source` as a path to a regular file that can be read. Raises `ModelError` and `UsageError`."""
    path = Path(source)
    if path.is_dir():
        raise UsageError(
            f"{source} is a directory, not a model file.", "Give the file inside it, such as model.onnx.", id="EP206"
        )
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "doesn't exist"
            raise UsageError(f"{source} {what}.", "Give the path of a model file.", id="EP204")
        with path.open("rb"):
            return path
    except OSError as error:
        raise ModelError(
            f"{source} can't be read: {error.strerror}.", "Check its permissions (`ls -l`).", id="EP302"
        ) from error


def refuse_options(options: Mapping[str, Any], source: str, what: str, **hints: str) -> None:
    """Raise `UsageError` for each of ``--weights``, ``--python``, ``--signature`` that was given without any use."""
    for option, hint in hints.items():
        if options.get(option) is not None:
            meant = "SavedModel folders" if option == "signature" else "PyTorch sources"
            raise UsageError(
                f"--{option} is for {meant}, and {source} is {what}.", hint or f"Leave --{option} out.", id="EP212"
            )


def finish(
    model: Path,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    out: Path,
    folder: Path,
) -> None:
    """The last part of every import: `model` as one file with fixed shapes and a known opset, and what it holds."""
    request = {
        "model": str(model),
        "name": name,
        "shapes": {key: list(sizes) for key, sizes in shapes.items()},
        "dtypes": dict(dtypes),
    }
    run("import_onnx", request, out, folder)


def mislabelled(path: Path, kind: Kind, wanted: str, name: str = "") -> ModelError:
    """The refusal of a file that is not what its name says. `name` is what the user calls it."""
    name = name or path.name
    size = path.stat().st_size
    count = f"{size:,} byte{'' if size == 1 else 's'}"
    if kind is Kind.EMPTY:
        text = f"{name} is empty (0 bytes), not {wanted}."
    elif kind in (Kind.UNKNOWN, Kind.PROTOBUF):
        text = f"{name} ({count}) is not {wanted}, and no other model format that edgepack knows."
    else:
        text = f"{name} ({count}) is not {wanted}: this looks like {kind.value}."
    return ModelError(text, ADVICE.get(kind, "Check how the file was made or downloaded."), id="EP302")


def copy(stream: BinaryIO, target: Path) -> None:
    """Write an open file's bytes to `target`, which must not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as copied:
        shutil.copyfileobj(stream, copied, 1 << 20)


def stamp(path: Path) -> tuple[int, ...]:
    """Cheap sign that a file is still the one it was: device, inode, size, time of last change."""
    found = os.stat(path)  # noqa: PTH116
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

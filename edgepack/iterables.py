"""Samples that the user's own Python gives: ``package.module:name``, run in a process of its own.

The child (``converters/collect_samples.py``) runs under ``--python``, else under the interpreter that runs edgepack,
so that what is installed beside edgepack can be imported. It has the limits of every converter, and no network where
the system allows cutting it off. Only plain arrays come back, as files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack import converter, log
from edgepack.errors import CalibrationError, ToolFailed, UsageError
from edgepack.importers import factory
from edgepack.types import TensorSpec

SECONDS = 900.0  # for giving all samples


def is_function(source: str | Path) -> bool:
    """Whether `source` has the form ``package.module:name`` and is no file's name."""
    return factory.is_factory(str(source))


def collect(
    source: str,
    inputs: tuple[TensorSpec, ...],
    options: Mapping[str, Any],
    out: Path,
    *,
    limit: int,
    seconds: float = SECONDS,
) -> None:
    """Write the first `limit` samples that `source` gives to `out`, unchecked but for being arrays of one shape.

    `options` are the plan's: ``python`` and ``pythonpath``. Raises `CalibrationError` for code that fails, gives no
    arrays, or takes longer than `seconds`.
    """
    python = options.get("python")
    interpreter = Path(python).expanduser().absolute() if python is not None else Path(sys.executable)
    if not interpreter.is_file():
        raise UsageError(f"--python {python} is not a program.", f"Give a path such as {sys.executable}.", id="EP204")
    request = {
        "source": source,
        "inputs": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in inputs],
        "limit": limit,
        "cwd": str(Path.cwd()),
        "pythonpath": list(options.get("pythonpath") or ()),
    }
    try:
        result = converter.convert("collect_samples", request, out, python=interpreter, seconds=seconds)
    except ToolFailed as error:
        raise CalibrationError(
            f"{source} gave no samples. {error.message}", error.hint, id="EP324", log=error.log
        ) from error
    if (refused := result.get("error")) is not None:
        raise CalibrationError(refused["message"], refused["hint"], id="EP324")
    for note in result["notes"]:
        log.note(note)

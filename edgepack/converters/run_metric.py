# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.4.6",
# ]
# ///
"""Call the user's metric. Works under the user's own interpreter too.

Request: ``function`` (``package.module:function``), ``reference`` and ``outputs`` (tensor folders: ``0.npy`` ... of
shape [samples, *shape], the float model's outputs and the variant's), ``labels`` (an ``.npy``, or null), ``cwd`` and
``pythonpath`` (where its code is found). It is called as ``function(reference, outputs, labels)`` with two
`pathlib.Path` and an array or None, and returns one number, higher is better. The result holds ``score``, or ``error``
and ``hint``.
"""

import contextlib
import importlib
import json
import math
import numbers
import os
import sys
import traceback
from pathlib import Path


class Refused(Exception):
    """What the user is told, and what to do about it."""


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        result = {"score": score(request)}
    except Refused as error:
        message, hint = error.args
        result = {"error": visible(message), "hint": visible(hint)}
    (out / "result.json").write_text(json.dumps(result))


def score(request: dict) -> float:
    where, _, attribute = request["function"].partition(":")
    sys.path.insert(0, request["cwd"])
    sys.path.extend(request["pythonpath"])
    os.chdir(request["cwd"])
    with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is talk
        try:
            import numpy as np

            function = getattr(importlib.import_module(where), attribute, None)
        except Exception as error:
            raise Refused(
                f"Importing the metric's module {where} failed: {one_line(error)}.",
                "Run edgepack in the folder that holds it, or name the interpreter where it works with --python PATH.",
            ) from error
        if not callable(function):
            raise Refused(f"The module {where} has no function {attribute!r}.", "Check the name after the colon.")
        labels = np.load(request["labels"], allow_pickle=False) if request["labels"] else None
        try:
            value = function(Path(request["reference"]), Path(request["outputs"]), labels)
        except BaseException as error:  # a SystemExit of user code is no end of ours
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise Refused(
                f"The metric {request['function']} raised {one_line(error)} ({Path(line.filename).name}, "
                f"line {line.lineno}).",
                "It is called as function(reference, outputs, labels): two folders of 0.npy, 1.npy ... and an array "
                "of labels or None.",
            ) from error
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Refused(
            f"The metric {request['function']} returned {type(value).__name__}, not a number.",
            "Return one float; higher is better.",
        )
    if not math.isfinite(float(value)):
        raise Refused(
            f"The metric {request['function']} returned {float(value)}, which can't be compared.",
            "Return a finite number; find out where its division by zero comes from.",
        )
    return float(value)


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def visible(text: str) -> str:
    """Text with every character that a terminal would act on replaced by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    main()

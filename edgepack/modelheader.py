"""The generated header of one model: compile-time counts, sizes and types, names as data.

Text from a model never becomes code: symbols are ``t_<index>`` and a name is a list of its bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgepack.resources import data
from edgepack.types import Model, TensorSpec

SIZES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "int32": 4, "uint32": 4}
SIZES |= {"float32": 4, "int64": 8, "uint64": 8, "float64": 8}


def render(model: Model, input_set: str = "") -> str:
    """The text of ``edgepack_model.h``, or of ``edgepack_model-SET.h``, whose symbols hold the set's name."""
    word = input_set.replace("-", "_")
    assert re.fullmatch(r"[a-z0-9_]*", word), input_set
    import jinja2

    folder = data("templates") / "harness"
    loader = jinja2.FileSystemLoader(folder)
    # Autoescape is for HTML; here every value is a number, a known dtype or a list of byte values.
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701
    return environment.get_template("edgepack_model.h.j2").render(
        inputs=_tensors(model.inputs),
        outputs=_tensors(model.outputs),
        model_digest=model.digest,
        input_set=input_set,
        symbols=f"t_{word}_" if word else "t_",
        prefix=f"EDGEPACK_MODEL_{word.upper()}" if word else "EDGEPACK_MODEL",
    )


def digest_files() -> list[Path]:
    """The files that decide the header's text, for cache keys."""
    return [data("templates") / "harness" / "edgepack_model.h.j2"]


def _tensors(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    return [
        {
            "name_bytes": list(spec.name.encode("utf-8", "surrogatepass")),
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "bytes": math.prod(spec.shape) * SIZES[spec.dtype],
        }
        for spec in specs
    ]

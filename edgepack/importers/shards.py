"""Which files a ``--weights`` means: one file, or a folder (or an index) of safetensors as model hubs have them."""

from __future__ import annotations

import json
from pathlib import Path

from edgepack.errors import ModelError
from edgepack.importers import staging

LARGEST = 64 << 20  # bytes of an index
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def files(weights: Path) -> list[Path]:
    """The files that hold the weights, in a fixed order. Raises `ModelError` and `UsageError`."""
    if weights.name.endswith(".safetensors.index.json"):
        return _listed(weights)
    if not weights.is_dir():
        return [staging.readable(str(weights))]
    if (weights / WHOLE).is_file():
        return [staging.readable(str(weights / WHOLE))]
    if (weights / INDEX).is_file():
        return _listed(weights / INDEX)
    found = sorted(weights.glob("*.safetensors"))
    if len(found) == 1:
        return [staging.readable(str(found[0]))]
    what = "several .safetensors files and no index" if found else "no .safetensors file"
    raise ModelError(
        f"The folder {weights} has {what}: edgepack doesn't guess which weights are meant.",
        "Name the file itself: --weights FILE.",
        id="EP304",
    )


def _listed(index: Path) -> list[Path]:
    """The shards that an index names: plain names of files beside it, and nothing else."""
    try:
        if index.stat().st_size > LARGEST:
            raise ValueError(f"{index.stat().st_size:,} bytes are too many for a list")
        named = json.loads(staging.readable(str(index)).read_bytes())["weight_map"].values()
        names = sorted({str(name) for name in named})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{index.name} is cut off or damaged: {error}.", "Copy or download it again.", id="EP303"
        ) from error
    for name in names:
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise ModelError(
                f"{index.name} names the file {name!r}, which is no plain .safetensors file beside it.",
                "Make a plain copy of the folder.",
                id="EP304",
            )
    if not names:
        raise ModelError(f"{index.name} names no file.", "Copy or download it again.", id="EP303")
    return [staging.readable(str(index.parent / name)) for name in names]

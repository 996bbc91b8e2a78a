"""An exported variant on disk: ``artifact.json`` beside the engine's files, and the arrays at its surface."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import arrays
from edgepack.types import Artifact, Binding, TensorSpec

Array = npt.NDArray[Any]


def write(artifact: Artifact) -> None:
    """Write ``artifact.json`` to the artifact's folder."""
    content = asdict(artifact)
    del content["folder"]
    (artifact.folder / "artifact.json").write_text(json.dumps(content, indent=1, sort_keys=True))


def read(folder: Path) -> Artifact:
    """Read ``folder/artifact.json``."""
    content = json.loads((folder / "artifact.json").read_text())
    return Artifact(
        folder=folder,
        files=tuple(content["files"]),
        inputs=tuple(_binding(b) for b in content["inputs"]),
        outputs=tuple(_binding(b) for b in content["outputs"]),
        layers=tuple(content["layers"]),
        facts=content["facts"],
    )


def _binding(content: dict[str, Any]) -> Binding:
    return Binding(**{**content, "shape": tuple(content["shape"]), "perm": tuple(content["perm"])})


def to_engine(array: Array, binding: Binding) -> Array:
    """One source tensor as the engine wants it (see `Binding`): transpose, quantize or cast, reshape."""
    moved = np.transpose(array, binding.perm)
    dtype = np.dtype(binding.dtype)
    if binding.scale is not None:
        limits = np.iinfo(dtype)
        scaled = np.rint(moved.astype(np.float32) / np.float32(binding.scale)) + binding.zero_point
        moved = np.clip(scaled, limits.min, limits.max)
    return np.ascontiguousarray(moved.astype(dtype)).reshape(binding.shape)


def rewrite(source: Path, binding: Binding, target: Path) -> None:
    """One file of a tensor folder in the source's layout -> one in the engine's.

    One sample is in memory at a time: files are read and written plainly, since mapped ones would fill it with pages.
    """
    (array,) = arrays.open_arrays(source).values()
    count = array.shape[0]
    rows = (to_engine(row, binding) for row in array.rows(range(count)))
    arrays.write_rows(target, binding.dtype, binding.shape, count, rows)


def from_engine(array: Array, binding: Binding, spec: TensorSpec) -> Array:
    """One engine tensor as the source's: the inverse of `to_engine`."""
    if binding.scale is not None:
        array = (array.astype(np.float32) - binding.zero_point) * np.float32(binding.scale)
    moved = array.reshape(tuple(spec.shape[axis] for axis in binding.perm))
    inverse = np.argsort(np.asarray(binding.perm, dtype=np.intp))
    back = np.transpose(moved, tuple(int(i) for i in inverse)).astype(spec.dtype)
    return np.ascontiguousarray(back).reshape(spec.shape)  # ascontiguousarray makes rank 0 rank 1


def identity(spec: TensorSpec, name: str | None = None) -> Binding:
    """The binding of a tensor that the engine takes exactly as the source does."""
    return Binding(
        name=spec.name if name is None else name,
        dtype=spec.dtype,
        shape=spec.shape,
        perm=tuple(range(len(spec.shape))),
    )

"""Writes, opens and checks a bundle: a folder with ``manifest.json`` and everything a device needs.

Same inputs and same pins give the same bytes: no times, no absolute paths, sorted names, canonical JSON. Opening
a bundle reads files by the manifest, each a plain relative path of a regular file inside the folder, and checks
every digest.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgepack.cache import flush_folder, flush_tree, out_of_space, sha256_file, sha256_text
from edgepack.errors import IntegrityError, UsageError
from edgepack.types import Artifact, Binding, Bound, BundleFile, Precision, Preprocess, Target, TensorSpec, at_set

SCHEMA = 1
MANIFEST = "manifest.json"
ROLES = {
    "variants": "model",
    "golden": "golden",
    "bin": "harness",
    "lib": "library",
    "include": "header",
    "licences": "licence",
    "config": "build config",
}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: its folder and its manifest, every file checked.

    Manifests of before there were input sets have neither ``input_sets`` nor a variant's ``input_set``.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The source model's inputs, without an input set."""
        return tuple(spec_from(item) for item in self.manifest["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The source model's outputs, without an input set."""
        return tuple(spec_from(item) for item in self.manifest["outputs"])

    def variant(self, name: str) -> Path:
        """The folder of a variant. Raises `UsageError` that lists what the bundle has."""
        return self.path / "variants" / str(self.facts(name)["name"])

    def facts(self, name: str) -> dict[str, Any]:
        """What the manifest says of a variant. Raises `UsageError` that lists what the bundle has."""
        found = {item["name"]: item for item in self.manifest["variants"]}
        if name not in found:
            raise UsageError(
                f"The bundle {self.path.name} has no variant {name!r}.",
                f"It has: {', '.join(found) or 'none'}.",
                id="EP230",
            )
        return dict(found[name])

    def tensors(self, item: Mapping[str, Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The model's inputs and outputs at the shapes of a variant, of which `item` is the manifest's."""
        sets = {part["name"]: part for part in self.manifest.get("input_sets", ())}
        part = sets[item["input_set"]] if item.get("input_set") else self.manifest
        return tuple(map(spec_from, part["inputs"])), tuple(map(spec_from, part["outputs"]))


def golden_of(input_set: str) -> str:
    """The folder of the golden samples for an input set's shapes, "" for those without a set."""
    return at_set("golden", input_set)


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes `destination` when the block ends well.

    An earlier bundle stays whole until the new one is complete; on failure the scratch folder goes away.
    """
    destination = destination.absolute()
    scratch = destination.parent / f".{destination.name}-{uuid.uuid4().hex[:8]}"
    with out_of_space(destination.parent):
        scratch.mkdir(parents=True)
        try:
            yield scratch
            flush_tree(scratch)
            old = destination.parent / f".{destination.name}-old-{uuid.uuid4().hex[:8]}"
            if destination.exists():
                destination.rename(old)
            scratch.rename(destination)
            flush_folder(destination.parent)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``manifest.json`` over all files of `folder`; sets modes so that only harnesses are executable."""
    files: list[dict[str, Any]] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        path.chmod(0o755 if relative.parts[0] in ("bin", "lib") else 0o644)
        role = ROLES.get(relative.parts[0].split("@")[0], "other")
        files.append(
            {
                "path": relative.as_posix(),
                "role": role,
                "sha256": sha256_file(path),
                "size": path.stat().st_size,
            }
        )
    manifest = {"schema": SCHEMA, **facts, "files": files}
    manifest["digest"] = sha256_text(canonical(manifest))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def canonical(content: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def open_bundle(path: Path) -> Bundle:
    """Read a bundle and check every file. Raises `UsageError` (not a bundle) and `IntegrityError`."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        digest = manifest.pop("digest")
        files = [BundleFile(**item) for item in manifest["files"]]
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{path} is not a bundle: it has no {MANIFEST}.",
            "Give the NAME-TARGET.edgepack folder that `edgepack build` made.",
            id="EP231",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{path / MANIFEST} is damaged.", "Build the bundle again.") from None
    if manifest.get("schema") != SCHEMA:
        raise IntegrityError(
            f"{path} has manifest schema {manifest.get('schema')}, this edgepack reads {SCHEMA}.",
            "Use the edgepack that made it, or build it again.",
            id="EP802",
        )
    if sha256_text(canonical(manifest)) != digest:
        raise IntegrityError(f"{path / MANIFEST} was changed after it was made.", "Build the bundle again.")
    for file in files:
        check_file(path, file)
    listed = {file.path for file in files} | {MANIFEST}
    for found in sorted(p for p in path.rglob("*") if not p.is_dir() or p.is_symlink()):
        if found.relative_to(path).as_posix() not in listed:
            raise IntegrityError(f"{found} is not in the manifest.", "Remove it, or build the bundle again.")
    return Bundle(path=path, manifest={**manifest, "digest": digest})


def check_file(root: Path, file: BundleFile) -> None:
    """Refuse a path that leaves the bundle, a link, and a file whose bytes are not the manifest's."""
    pure = PurePosixPath(file.path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in file.path or "\0" in file.path:
        raise IntegrityError(f"The manifest names {file.path!r}, which leaves the bundle.", "Don't use this bundle.")
    path = root / pure
    if any(part.is_symlink() for part in (path, *path.parents) if part != root and root in part.parents):
        raise IntegrityError(f"{file.path} is a link; bundles hold regular files only.", "Don't use this bundle.")
    if not path.is_file():
        raise IntegrityError(f"{file.path} is missing.", "Build the bundle again.")
    if path.stat().st_size != file.size or sha256_file(path) != file.sha256:
        raise IntegrityError(f"{file.path} is not what was built (digest differs).", "Build the bundle again.")


def write_variant(
    folder: Path,
    artifact: Artifact,
    *,
    engine: str,
    engine_version: str,
    precision: str,
    bound: Bound,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    preprocess: tuple[Preprocess | None, ...] = (),
) -> None:
    """Copy an artifact's files to `folder` and write the ``variant.txt`` that the harness reads.

    `preprocess` is what the user declared for each input, in their order, or () for nothing at all.
    """
    folder.mkdir(parents=True)
    for name in artifact.files:
        shutil.copyfile(artifact.folder / name, folder / name)
    sqnr = f" sqnr_db={bound.sqnr_db:.9g}" if bound.sqnr_db is not None else ""
    lines = [
        "edgepack-variant 1",
        f"engine name={engine} version={engine_version} precision={precision}",
        f"bound cosine={bound.cosine:.9g}{sqnr}",
        *(f"file path={name}" for name in artifact.files),
        *(_tensor_line("input", s, b) for s, b in zip(inputs, artifact.inputs, strict=True)),
        *(_tensor_line("output", s, b) for s, b in zip(outputs, artifact.outputs, strict=True)),
        *(_preprocess_line(index, how) for index, how in enumerate(preprocess) if how is not None),
    ]
    (folder / "variant.txt").write_text("\n".join(lines) + "\n")


def _tensor_line(kind: str, spec: TensorSpec, binding: Binding) -> str:
    fields = [
        f"name={_hex(spec.name)}",
        f"dtype={spec.dtype}",
        f"shape={_sizes(spec.shape)}",
        f"engine_name={_hex(binding.name)}",
        f"engine_dtype={binding.dtype}",
        f"engine_shape={_sizes(binding.shape)}",
        f"perm={_sizes(binding.perm)}",
    ]
    if binding.scale is not None:
        fields += [f"scale={binding.scale:.9g}", f"zero_point={binding.zero_point}"]
    return " ".join([kind, *fields])


def _preprocess_line(index: int, how: Preprocess) -> str:
    resize = (how.resize,) if isinstance(how.resize, int) else how.resize
    fields = [f"input={index}", f"layout={how.layout}", f"color={how.color}"]
    fields += [f"resize={_sizes(resize)}"] if resize else []
    fields += [f"fit={how.fit}", f"method={how.method}"]
    fields += [f"crop={_sizes(how.crop)}"] if how.crop else []
    if how.pad:
        fields += [f"pad={_sizes(how.pad)}", f"pad_value={_floats(how.pad_value)}", f"pad_place={how.pad_place}"]
    return " ".join(["preprocess", *fields, f"mean={_floats(how.mean)}", f"std={_floats(how.std)}"])


def _floats(values: tuple[float, ...]) -> str:
    """The float32 values that pre-processing computes with; nine digits tell every one from its neighbours."""
    return ",".join(f"{struct.unpack('<f', struct.pack('<f', value))[0]:.9g}" for value in values)


def _hex(name: str) -> str:
    return "hex:" + name.encode("utf-8", "surrogatepass").hex()


def _sizes(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def spec_from(item: Mapping[str, Any]) -> TensorSpec:
    """A `TensorSpec` from its JSON."""
    return TensorSpec(name=item["name"], dtype=item["dtype"], shape=tuple(item["shape"]))


def target_from(content: Mapping[str, Any]) -> Target:
    """The target profile that a manifest records."""
    fields = dict(content)
    for name in ("cpu_features", "engines"):
        fields[name] = tuple(fields[name])
    fields["clusters"] = tuple((core, count) for core, count in fields["clusters"])
    fields["precisions"] = tuple(Precision(p) for p in fields["precisions"])
    fields["bounds"] = {Precision(p): Bound(**bound) for p, bound in fields["bounds"].items()}
    return Target(**fields)


def tree_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(Path(base, name).stat().st_size for base, _, names in os.walk(folder) for name in names)

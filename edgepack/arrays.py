"""Reads ``.npy`` and ``.npz`` files of any size sample by sample, and writes ``.npy`` the same way.

`numpy.load` holds a whole array of an ``.npz`` in memory and believes what its header says; here one sample is in
memory at a time, and what the header declares is held against the file first. Nothing is ever unpickled. Files are
written with plain writes, not through a memory map: on a full disk a map ends in SIGBUS, a write in an error.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgepack.errors import CalibrationError

Array = npt.NDArray[Any]
EXPANDS = 8  # an .npz may say that it holds this many times its own size ...
ALWAYS_FINE = 2 << 30  # ... or this much: masks and token ids compress a thousandfold
WHOLE = 1 << 30  # Fortran order in an .npz can't be read in pieces; up to this size it is read at once
CURE_FILE = "Write it again with numpy.savez (or numpy.save), as plain numbers."


@dataclass(frozen=True, kw_only=True)
class ArrayFile:
    """One array in a file, of which only the header has been read."""

    path: Path
    member: str | None  # its entry, where `path` is an .npz
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int
    called: str = ""

    @property
    def label(self) -> str:
        """How messages call it."""
        if self.called:
            return self.called
        return str(self.path) if self.member is None else f"{self.path} ({self.name!r})"

    def rows(self, chosen: Sequence[int]) -> Iterator[Array]:
        """The entries `chosen` (rising) of the first axis, one at a time. Raises `CalibrationError` on damage."""
        with _named(self.path):
            if self.fortran:
                whole = self._whole()
                yield from (np.ascontiguousarray(whole[index]) for index in chosen)
                return
            size = math.prod(self.shape[1:]) * self.dtype.itemsize
            with _opened(self.path, self.member) as stream:
                for index in chosen:
                    stream.seek(self.offset + index * size)
                    content = stream.read(size)
                    if len(content) != size:
                        raise EOFError("it ends in the middle of an array")
                    yield np.frombuffer(content, dtype=self.dtype).reshape(self.shape[1:])
                stream.seek(0, 2)  # to the end, where an .npz tells by its checksum whether all was well

    def _whole(self) -> Array:
        if self.member is None:
            mapped: Array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return mapped
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > WHOLE:
            raise ValueError(f"{self.name!r} is {size >> 20} MiB in Fortran order; use numpy.ascontiguousarray")
        with _opened(self.path, self.member) as stream:
            stream.seek(self.offset)
            return np.frombuffer(stream.read(size), dtype=self.dtype).reshape(self.shape, order="F")


def open_arrays(path: Path) -> dict[str, ArrayFile]:
    """Name -> array of an ``.npz``, or ``{"arr_0": array}`` of an ``.npy``.

    Raises `CalibrationError` for a file that is neither, is damaged, holds anything but numbers, or declares far more
    than it can hold.
    """
    with _named(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if not entries:
                raise ValueError("it is a zip archive without arrays")
            declared = sum(info.file_size for info in entries)
            if declared > max(EXPANDS * path.stat().st_size, ALWAYS_FINE):
                size = f"{declared >> 20} MiB, more than {EXPANDS} times its own size"
                raise ValueError(f"it declares {size}, which no set of samples does")
            found = [_header(path, info.filename, info.file_size) for info in entries]
            return {array.name: array for array in found}
        return {"arr_0": _header(path, None, path.stat().st_size)}


def write_rows(path: Path, dtype: str, shape: tuple[int, ...], count: int, rows: Iterable[Array]) -> None:
    """Write `count` arrays of `shape` and `dtype` as one C-order ``.npy`` of shape [count, *shape]."""
    wanted = np.dtype(dtype)
    described = np.lib.format.dtype_to_descr(wanted)
    with path.open("wb") as stream:
        header = {"descr": described, "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(stream, header)
        written = 0
        for row in rows:
            assert row.dtype == wanted and row.shape == shape
            stream.write(np.ascontiguousarray(row).tobytes())
            written += 1
    assert written == count


def _header(path: Path, member: str | None, size: int) -> ArrayFile:
    with _opened(path, member) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"it uses version {version[0]}.{version[1]} of the format, which is not for plain numbers")
        shape, fortran, dtype = read(stream)
        offset = stream.tell()
    name = "arr_0" if member is None else member.removesuffix(".npy")
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects, and edgepack unpickles nothing")
    if dtype.kind not in "biuf":
        raise ValueError(f"{name!r} holds {dtype}, not plain numbers")
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != size - offset:
        raise ValueError(f"{name!r} declares {expected} bytes of shape {list(shape)} but holds {size - offset}")
    return ArrayFile(
        path=path,
        member=member,
        name=name,
        shape=tuple(shape),
        dtype=dtype,
        fortran=fortran and len(shape) > 1,
        offset=offset,
    )


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[IO[bytes]]:
    if member is None:
        with path.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive, archive.open(member) as entry:
        yield entry


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Translate what parsers of foreign files raise, with the file's name."""
    try:
        yield
    except OSError as error:
        raise CalibrationError(f"{path} can't be read: {error.strerror or error}.", "Check the path.") from error
    except (CalibrationError, MemoryError):
        raise
    except Exception as error:  # zipfile's, zlib's and numpy's parsers raise whatever a damaged file leads them to
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise CalibrationError(f"{path} can't be used: {reason}.", CURE_FILE) from error

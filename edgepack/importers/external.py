"""The gate for ONNX external data: which files a model wants read, and whether it may.

An ONNX tensor can name a file, an offset and a length. Here those names are found by walking the protobuf wire
format over a memory map, without parsing the model. A file passes when it is a plain relative
path to a regular file with one name inside the model's folder; everything else is refused, naming the tensor.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from edgepack.converters.wire import BYTES, VARINT, WireError, fields, varint
from edgepack.errors import ModelError

OPSET_IMPORT = 8  # of ModelProto
DEEPEST = 100  # protobuf's own limit of nested messages
KEYS = ("location", "offset", "length", "checksum")
ONE_FILE = "Save the model in one file instead: onnx.save(onnx.load(FILE), NEW_FILE)."

# Message -> {field number: message}. Every path on which onnx.proto3 can hold a TensorProto.
_NESTED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_DATA_FIELDS = (4, 5, 6, 7, 9, 10, 11)  # TensorProto's fields that hold numbers in the file itself


@dataclass(frozen=True, kw_only=True)
class External:
    """One tensor's entry: numbers at ``offset`` of the file ``location``, ``length`` bytes (None: to its end)."""

    tensor: str
    location: str
    offset: int = 0
    length: int | None = None
    checksum: str | None = None


def scan(path: Path) -> list[External]:
    """Every external tensor of the ONNX file `path`.

    Raises `WireError` where the file is no protobuf message, with ``position`` at its end when it is cut off,
    and `ModelError` for an entry that says something impossible.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return list(_tensors(data, 0, len(data), "model", 0))


def lower_versions(path: Path, newest: int, newest_opset: int) -> None:
    """Lower the container's version and the opset in place where they are above `newest` and `newest_opset`.

    Exporters write their own newest ones. Whether the operators are the same at the lower opset is not asked here.
    """
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as data:
        for number, wire, first, last in fields(data, 0, len(data)):
            if number == 1 and wire == VARINT and last - first == 1 and data[first] > newest:
                data[first] = newest
            if number == OPSET_IMPORT and wire == BYTES:
                entry = {number: (wire, first, last) for number, wire, first, last in fields(data, first, last)}
                _, start, end = entry.get(1, (BYTES, 0, 0))
                kind, first, last = entry.get(2, (BYTES, 0, 0))
                one_byte = kind == VARINT and last - first == 1
                if data[start:end] in (b"", b"ai.onnx") and one_byte and data[first] > newest_opset:
                    data[first] = newest_opset


def check(found: list[External], folder: Path) -> list[str]:
    """Check every entry against the files in `folder`; return the relative paths, sorted, each once.

    Raises `ModelError` for the first entry that is not allowed.
    """
    for entry in found:
        with open_inside(folder, entry) as stream:
            size = os.fstat(stream.fileno()).st_size
            end = size if entry.length is None else entry.offset + entry.length
            if entry.offset > size:
                raise _refuse(entry, f"the tensor starts at byte {entry.offset}, but the file has {size}")
            if end > size:
                raise _refuse(entry, f"bytes {entry.offset} to {end} are wanted, but the file has {size}")
    sums = {(entry.location, entry.checksum): entry for entry in found if entry.checksum is not None}
    for entry in sums.values():
        with open_inside(folder, entry) as stream:
            sha1 = hashlib.file_digest(stream, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()
        if entry.checksum is None or sha1 != entry.checksum.lower():
            raise _refuse(entry, f"its SHA-1 is {sha1}, but the model's record says {entry.checksum}")
    return sorted({"/".join(_parts(entry)) for entry in found})


def open_inside(folder: Path, entry: External) -> BufferedReader:
    """Open the entry's file without following any link below `folder`."""
    parts = _parts(entry)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=held)
            except NotADirectoryError:
                linked = stat.S_ISLNK(os.stat(part, dir_fd=held, follow_symlinks=False).st_mode)
                raise _refuse(entry, "its folder is a symbolic link" if linked else "its folder is a file") from None
            except OSError as error:
                raise _refuse(entry, f"its folder can't be opened: {error.strerror}") from error
            os.close(held)
            held = inner
        return _open_file(held, parts[-1], entry)
    finally:
        os.close(held)


def _open_file(folder: int, name: str, entry: External) -> BufferedReader:
    try:
        # O_NONBLOCK: a named pipe must not stop us before we know what it is.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        raise _refuse(entry, "the file is not there", "Copy it beside the model; both belong together.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:  # what O_NOFOLLOW answers for a link
            hint = "Put the file itself beside the model (cp -L copies what a link names)."
            raise _refuse(entry, "it is a symbolic link", hint) from None
        raise _refuse(entry, f"the file can't be opened: {error.strerror}") from error
    found = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(found.st_mode):
        problem = "it is not a regular file"
    elif found.st_nlink > 1:
        problem = f"it is a hard link (the file has {found.st_nlink} names), so it may be somebody else's file"
    if problem:
        os.close(descriptor)
        raise _refuse(entry, problem, "Make a plain copy of the folder and build from that.")
    return os.fdopen(descriptor, "rb")


def _parts(entry: External) -> list[str]:
    """The path's components. Raises `ModelError` unless it is a plain relative path that stays in its folder."""
    location = entry.location
    if not location:
        raise _refuse(entry, "it names no file")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in location):
        raise _refuse(entry, "the name holds a control character")
    if any("\ud800" <= character <= "\udfff" for character in location):
        raise _refuse(entry, "the name is not UTF-8")
    if "\\" in location or re.match(r"[A-Za-z]:", location):
        raise _refuse(entry, "the name is written for Windows", ONE_FILE)
    if location.startswith("/"):
        raise _refuse(entry, "the path is absolute")
    parts = location.removeprefix("./").split("/")
    if ".." in parts:
        raise _refuse(entry, "the path leaves the model's folder")
    if any(part in ("", ".") or len(part.encode()) > 255 for part in parts):
        raise _refuse(entry, "that is no plain path of a file")
    return parts


def _refuse(entry: External, why: str, hint: str = ONE_FILE) -> ModelError:
    return ModelError(
        f"The tensor {entry.tensor!r} keeps its numbers in another file, {entry.location!r}: {why}.", hint, id="EP304"
    )


def _tensors(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[External]:
    if depth > DEEPEST:
        raise WireError(start, f"messages nested more than {DEEPEST} deep")
    nested = _NESTED[message]
    for number, wire, first, last in fields(data, start, end):
        inner = nested.get(number)
        if inner is None or wire != BYTES:
            continue
        if inner == "tensor":
            yield from _external(data, first, last)
        else:
            yield from _tensors(data, first, last, inner, depth + 1)


def _external(data: mmap.mmap, start: int, end: int) -> Iterator[External]:
    name, marked, inline = "", False, False
    entries: list[tuple[str, str]] = []
    for number, wire, first, last in fields(data, start, end):
        if number == 8 and wire == BYTES:
            name = data[first:last].decode("utf-8", "replace")
        elif number == 13 and wire == BYTES:
            entries.append(_pair(data, first, last))
        elif number == 14 and wire == VARINT:
            marked = varint(data, first, last)[0] == 1
        elif number in _DATA_FIELDS and last > first:
            inline = True
    # Leftover entries on a tensor that has its numbers here are ignored by every reader.
    if marked or (entries and not inline):
        yield _entry(name, entries)


def _entry(tensor: str, pairs: list[tuple[str, str]]) -> External:
    values = dict(pairs)
    entry = External(tensor=tensor, location=values.get("location", ""))
    if len(values) != len(pairs):
        raise _refuse(entry, "a key of its record is there twice")
    for key in values:
        if key not in KEYS:
            raise _refuse(entry, f"its record has the unknown key {key!r}")
    numbers: dict[str, int] = {}
    for key in ("offset", "length"):
        if key in values:
            if not re.fullmatch(r"[0-9]{1,18}", values[key]):
                raise _refuse(entry, f"its {key} is {values[key]!r}")
            numbers[key] = int(values[key])
    return External(
        tensor=tensor,
        location=entry.location,
        offset=numbers.get("offset", 0),
        length=numbers.get("length"),
        checksum=values.get("checksum"),
    )


def _pair(data: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for number, wire, first, last in fields(data, start, end):
        if number in texts and wire == BYTES:
            texts[number] = data[first:last].decode("utf-8", "surrogateescape")
    return texts[1], texts[2]

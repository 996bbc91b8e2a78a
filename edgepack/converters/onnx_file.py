"""ONNX files whose large weights stay on disk while the graph is worked on.

`read` gives a model whose large initializers are external data (ONNX's own form for it), in the original file where
they lie in there: nothing is copied, and onnx's checker, inference and version converter and onnxruntime all take
it. They look for the files from the working folder, so a script changes to the model's first. `write` puts
everything into one file, and gives the same bytes as onnx would.
"""

import math
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper
from google.protobuf.message import DecodeError
from wire import BYTES, WireError, fields, head

LARGE = 1 << 20  # bytes; shapes and axes are smaller
BLOCK = 1 << 24  # bytes; how much of a weight is looked at in one go
GRAPH, INITIALIZER, RAW = 7, 5, 9  # of ModelProto, GraphProto, TensorProto
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")  # what onnx, onnxruntime and every system take as a name


class Field(NamedTuple):
    """Where a field starts, where its value does, and where both end."""

    number: int
    start: int
    first: int
    end: int


@dataclass(frozen=True)
class Piece:
    """Where the numbers of a tensor lie: bytes of a file."""

    path: Path
    offset: int
    length: int


def read(path: Path) -> onnx.ModelProto:
    """The model, with large initializers outside. Raises `DecodeError`, and what onnx does about external data."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            large = LARGE if PLAIN.fullmatch(path.name) else len(data)
            parts = list(_parts(data, path.name, large))
    except (WireError, ValueError) as error:
        raise DecodeError(str(error)) from error
    model = onnx.ModelProto.FromString(b"".join(parts))
    kept = {tensor.name for tensor in model.graph.initializer if outside(tensor) and _size(tensor) > LARGE}
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if outside(tensor) and tensor.name not in kept:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    return model


def write(model: onnx.ModelProto, folder: Path, path: Path) -> None:
    """Write `model`, whose weights lie in files of `folder`, to one file."""
    outer: list[bytes | Piece] = []
    data = model.SerializeToString(deterministic=True)
    for field in _pieces(data, 0, len(data), GRAPH):
        if field.number == GRAPH:
            inner = list(_joined(data, field, folder))
            outer += [head(GRAPH, sum(map(_length, inner))), *inner]
        else:
            outer.append(data[field.start : field.end])
    with path.open("wb") as target:
        for part in outer:
            if isinstance(part, bytes):
                target.write(part)
            else:
                target.flush()
                _copy(part, target.fileno())


def size(model: onnx.ModelProto) -> int:
    """Bytes of the file that `write` makes, but for a few."""
    return model.ByteSize() + sum(_size(tensor) for tensor in model.graph.initializer if outside(tensor))


def outside(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def piece(tensor: onnx.TensorProto, folder: Path) -> Piece:
    """Where an outside tensor's numbers are."""
    entry = {item.key: item.value for item in tensor.external_data}
    path = folder / entry["location"]
    offset = int(entry.get("offset", 0))
    return Piece(path, offset, int(entry["length"]) if "length" in entry else path.stat().st_size - offset)


def place(tensor: onnx.TensorProto, where: Piece) -> None:
    """Say where a tensor's numbers are; those that it holds itself are dropped."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", where.path), ("offset", where.offset), ("length", where.length)):
        tensor.external_data.add(key=key, value=str(value))


def blocks(tensor: onnx.TensorProto, folder: Path) -> Iterator[np.ndarray]:
    """A tensor's floats, in any number of flat arrays. Raises `ValueError` where any numbers don't fill its shape."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).newbyteorder("<")
    if outside(tensor):
        where, wanted = piece(tensor, folder), _size(tensor)
        if where.length != wanted:
            raise ValueError(f"{where.length} bytes for {list(tensor.dims)} of {dtype.name}, which take {wanted}")
        with where.path.open("rb") as stream:
            stream.seek(where.offset)
            for start in range(0, wanted if dtype.kind == "f" else 0, BLOCK):
                yield np.frombuffer(stream.read(min(BLOCK, wanted - start)), dtype)
    elif dtype.kind == "f":
        yield onnx.numpy_helper.to_array(tensor).reshape(-1)


def array(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """The numbers of a tensor in its shape; those that lie outside aren't read before they are used."""
    if not outside(tensor):
        return onnx.numpy_helper.to_array(tensor)
    where = piece(tensor, folder)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).newbyteorder("<")
    return np.memmap(where.path, dtype, "r", where.offset, tuple(tensor.dims))


def _size(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor's type and shape take; 0 for a type that there isn't."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return 0
    bits = next((bits for bits in (2, 4) if f"int{bits}" in dtype.name or f"float{bits}_" in dtype.name), None)
    return -(-math.prod(tensor.dims) * (bits or 8 * dtype.itemsize) // 8)


def _parts(data: mmap.mmap, name: str, large: int) -> Iterator[bytes]:
    """The file's bytes, but that large initializers only say where in it their numbers are."""
    for field in _pieces(data, 0, len(data), GRAPH):
        if field.number != GRAPH:
            yield data[field.start : field.end]
            continue
        inner = [_emptied(data, one, name, large) for one in _pieces(data, field.first, field.end, INITIALIZER)]
        yield head(GRAPH, sum(map(len, inner)))
        yield from inner


def _emptied(data: mmap.mmap, field: Field, name: str, large: int) -> bytes:
    """A field's bytes; a tensor with many numbers of its own only says where they are."""
    if field.number == INITIALIZER and field.end - field.first > large:
        kept, numbers, at = [], (0, 0), field.first
        for number, wire, first, last in fields(data, field.first, field.end):
            if number == RAW and wire == BYTES:
                numbers = (first, last - first)
            else:
                kept.append(data[at:last])
            at = last
        if numbers[1] > large:
            tensor = onnx.TensorProto.FromString(b"".join(kept))
            if not outside(tensor):  # numbers at two places: the checker says so
                place(tensor, Piece(Path(name), *numbers))
                written = tensor.SerializeToString()
                return head(INITIALIZER, len(written)) + written
    return data[field.start : field.end]


def _joined(data: bytes, field: Field, folder: Path) -> Iterator[bytes | Piece]:
    """A graph's bytes, with the numbers of its outside initializers in them."""
    for one in _pieces(data, field.first, field.end, INITIALIZER):
        tensor = onnx.TensorProto.FromString(data[one.first : one.end]) if one.number == INITIALIZER else None
        if tensor is None or not outside(tensor):
            yield data[one.start : one.end]
            continue
        where = piece(tensor, folder)
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        small = tensor.SerializeToString(deterministic=True)
        before = head(RAW, where.length)
        cut = max((last for number, _, _, last in fields(small, 0, len(small)) if number < RAW), default=0)
        yield head(INITIALIZER, len(small) + len(before) + where.length) + small[:cut] + before
        yield where
        yield small[cut:]


def _pieces(data: bytes | mmap.mmap, start: int, end: int, wanted: int) -> Iterator[Field]:
    """Every field `wanted` of a message; what lies between as one of number 0."""
    at, done = start, start
    for number, wire, first, last in fields(data, start, end):
        if number == wanted and wire == BYTES:
            if at > done:
                yield Field(0, done, done, at)
            yield Field(number, at, first, last)
            done = last
        at = last
    if at > done:
        yield Field(0, done, done, at)


def _length(part: bytes | Piece) -> int:
    return part.length if isinstance(part, Piece) else len(part)


def _copy(part: Piece, target: int) -> None:
    """Have the system copy bytes from file to file: they never get into this process."""
    with part.path.open("rb") as source:
        offset, left = part.offset, part.length
        while left:
            sent = os.sendfile(target, source.fileno(), offset, left)
            if not sent:
                raise OSError(f"{part.path.name} ended {left} bytes too early")
            offset, left = offset + sent, left - sent

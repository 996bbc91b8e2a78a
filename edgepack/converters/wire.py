"""The protobuf wire format (https://protobuf.dev/programming-guides/encoding): only tags and lengths are touched.

Works on bytes and on memory maps, so a file of any size costs little memory. Needs nothing installed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Data = bytes | mmap.mmap


class WireError(Exception):
    """Bytes that are no protobuf message. ``position`` is the byte where that shows."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(f"{what} at byte {position}")
        self.position = position


def fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of one message as (number, wire type, first byte, past last byte of the value)."""
    position = start
    while position < end:
        tag, after = varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise WireError(position, "a field without a number")
        if wire == VARINT:
            last = varint(data, after, end)[1]
        elif wire == BYTES:
            length, after = varint(data, after, end)
            last = after + length
        elif wire in (FIXED64, FIXED32):
            last = after + (8 if wire == FIXED64 else 4)
        else:
            raise WireError(position, f"an unknown wire type {wire}")
        if last > end:
            raise WireError(position, f"a field of {last - after} bytes in a message that has {end - after} left,")
        yield number, wire, after, last
        position = last


def varint(data: Data, position: int, end: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    value = shift = 0
    while True:
        if position >= end:
            raise WireError(position, "an unfinished number")
        if shift > 63:
            raise WireError(position, "a number that is too long")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80:
            return value, position


def head(number: int, length: int) -> bytes:
    """What stands before a field of `length` bytes."""
    return encoded(number << 3 | BYTES) + encoded(length)


def encoded(value: int) -> bytes:
    """`value` as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

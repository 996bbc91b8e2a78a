"""What a ``.tflite`` file says of itself, read without TensorFlow: surface, operators, and how it is quantized.

A FlatBuffer (https://flatbuffers.dev/internals) is tables that point to fields by offsets; every offset is checked
against the file's size before it is followed, so a damaged file gives `Damaged` and nothing else. Field numbers are
those of TensorFlow's schema.fbs, version 3.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edgepack.types import Precision, TensorSpec

# TensorType -> numpy name; what is missing here can't be an input or output.
DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}
DTYPES |= {10: "float64", 12: "uint64", 15: "uint32", 16: "uint16"}
NAMES = {5: "strings", 8: "complex numbers", 11: "complex numbers", 13: "resources", 14: "variants"}
NAMES |= {17: "4-bit integers", 18: "bfloat16"}
FLOAT32, FLOAT16 = 0, 1
INTEGERS = (3, 7, 9)
CUSTOM, PLACEHOLDER = 32, 127  # builtin operators: a custom one; "look at the newer, wider field"
STATEFUL = {142: "VAR_HANDLE", 143: "READ_VARIABLE", 144: "ASSIGN_VARIABLE"}


class Damaged(Exception):
    """Bytes that are no whole .tflite file."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor; ``scale`` is None where it isn't quantized per tensor."""

    name: str
    kind: int
    shape: tuple[int, ...]
    open: bool
    scale: float | None
    zero_point: int
    constant: bool
    sparse: bool
    variable: bool

    @property
    def spec(self) -> TensorSpec:
        """The tensor as edgepack's other parts know it; call it only for kinds of `DTYPES`."""
        return TensorSpec(name=self.name, dtype=DTYPES[self.kind], shape=self.shape)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file holds. ``operators`` counts them by number, custom ones by name; ``custom`` are the latter."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tensors: tuple[Tensor, ...]
    operators: dict[int | str, int]
    custom: tuple[str, ...]
    subgraphs: int

    @property
    def stateful(self) -> bool:
        """Whether the file remembers anything between two runs."""
        return any(number in self.operators for number in STATEFUL)

    @property
    def remembering(self) -> list[str]:
        """Tensors in which recurrent layers keep their state between two runs."""
        return sorted(tensor.name for tensor in self.tensors if tensor.variable)

    @property
    def packed(self) -> bool:
        """Whether weights are stored sparse."""
        return any(tensor.sparse for tensor in self.tensors)

    @property
    def precision(self) -> Precision:
        """INT8 where weights or activations are integers with a scale, FP16 where weights are float16."""
        if any(t.kind in INTEGERS and t.scale is not None for t in self.tensors):
            return Precision.INT8
        return Precision.FP16 if any(t.kind == FLOAT16 and t.constant for t in self.tensors) else Precision.FP32


def read(path: Path) -> Contents:
    """The contents of the file `path`. Raises `Damaged` and OSError."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _contents(_Table(data, _u32(data, 0)))
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise Damaged(str(error)) from error


class _Table:
    """A table at a byte position: fields by their number."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data, self.position = data, position
        self.fields = position - struct.unpack_from("<i", data, _inside(data, position))[0]
        self.size = struct.unpack_from("<H", data, _inside(data, self.fields))[0]

    def place(self, number: int) -> int | None:
        """Where a field's value is, or None for a field that isn't there."""
        slot = 4 + 2 * number
        if slot + 2 > self.size:
            return None
        offset = struct.unpack_from("<H", self.data, _inside(self.data, self.fields + slot))[0]
        return self.position + offset if offset else None

    def number(self, field: int, form: str, default: int = 0) -> int:
        place = self.place(field)
        return (
            default if place is None else int(struct.unpack_from("<" + form, self.data, _inside(self.data, place))[0])
        )

    def table(self, field: int) -> _Table | None:
        place = self.place(field)
        return None if place is None else _Table(self.data, place + _u32(self.data, place))

    def tables(self, field: int) -> list[_Table]:
        start, count = self._vector(field, 4)
        return [_Table(self.data, at + _u32(self.data, at)) for at in range(start, start + 4 * count, 4)]

    def numbers(self, field: int, form: str) -> list[int | float]:
        start, count = self._vector(field, struct.calcsize(form))
        return list(struct.unpack_from(f"<{count}{form}", self.data, start)) if count else []

    def length(self, field: int) -> int:
        """How many entries a vector of bytes has."""
        return self._vector(field, 1)[1]

    def text(self, field: int) -> str:
        start, count = self._vector(field, 1)
        return self.data[start : start + count].decode("utf-8") if count else ""

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        place = self.place(field)
        if place is None:
            return 0, 0
        start = place + _u32(self.data, place)
        count = _u32(self.data, start)
        if start + 4 + count * size > len(self.data):
            raise Damaged(f"a list of {count:,} entries does not fit into the file")
        return start + 4, count


def _u32(data: mmap.mmap, position: int) -> int:
    return int(struct.unpack_from("<I", data, _inside(data, position))[0])


def _inside(data: mmap.mmap, position: int) -> int:
    if not 0 <= position < len(data):
        raise Damaged(f"an offset leads to byte {position:,} of {len(data):,}")
    return position


def _contents(model: _Table) -> Contents:
    graphs = model.tables(2)
    if not graphs:
        raise Damaged("it has no graph")
    buffers = model.tables(4)
    filled = [bool(buffer.length(0) or buffer.number(1, "Q") > 1) for buffer in buffers]
    codes = [_code(table) for table in model.tables(1)]
    operators: Counter[int | str] = Counter()
    for graph in graphs:
        operators.update(codes[operator.number(0, "I")] for operator in graph.tables(3))
    first = graphs[0]
    tensors = tuple(_tensor(table, filled) for table in first.tables(0))
    every = tensors + tuple(_tensor(table, filled) for graph in graphs[1:] for table in graph.tables(0))
    return Contents(
        inputs=tuple(tensors[_index(i, tensors)] for i in first.numbers(1, "i")),
        outputs=tuple(tensors[_index(i, tensors)] for i in first.numbers(2, "i")),
        tensors=every,
        operators=dict(operators),
        custom=tuple(sorted({code for code in operators if isinstance(code, str)})),
        subgraphs=len(graphs),
    )


def _index(index: int | float, tensors: tuple[Tensor, ...]) -> int:
    if not 0 <= index < len(tensors):
        raise Damaged(f"it names tensor {index} of {len(tensors)}")
    return int(index)


def _code(table: _Table) -> int | str:
    number = max(table.number(0, "b"), table.number(3, "i"))
    return table.text(1) or "(no name)" if number == CUSTOM else number


def _tensor(table: _Table, filled: list[bool]) -> Tensor:
    quantization = table.table(4)
    scales = quantization.numbers(2, "f") if quantization else []
    zeros = quantization.numbers(3, "q") if quantization else []
    buffer = table.number(2, "I")
    if buffer >= len(filled):
        raise Damaged(f"a tensor names buffer {buffer} of {len(filled)}")
    shape = tuple(int(size) for size in table.numbers(0, "i"))
    return Tensor(
        name=table.text(3),
        kind=table.number(1, "b"),
        shape=shape,
        open=-1 in table.numbers(7, "i") or any(size < 1 for size in shape),
        scale=float(scales[0]) if scales else None,
        zero_point=int(zeros[0]) if len(zeros) == 1 else 0,
        constant=filled[buffer],
        sparse=table.place(6) is not None,
        variable=bool(table.number(5, "b")),
    )

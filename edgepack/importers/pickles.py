"""Names what a pickle would import, without unpickling it.

Unpickling runs code: a pickle is a program that may call any function it names. `pickletools` reads its
instructions; a small stack of the strings that they push tells the names. What is not on the short list of what a
state dict needs is reported. This is for a good message: the guard is torch's ``weights_only=True`` in the child.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

LARGEST = 64 << 20  # bytes of one pickle inside a zip; the numbers themselves lie beside it
PICKLES_IN_A_ROW = 8  # torch's legacy format has five before the numbers
UNNAMED = "(a name made at run time)"

_DTYPES = "Float Double Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble".split()
_NAMES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split()
EXPECTED = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._tensor._rebuild_from_type_v2",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "_codecs.encode",
        *(f"torch.{name}Storage" for name in _DTYPES),
        *(f"torch.{name}" for name in _NAMES),
    }
)


class Damaged(Exception):
    """The bytes are no pickle, or it ends in the middle."""


def offending(path: Path) -> list[str]:
    """Globals of a pickle or of every pickle in a zip that no state dict needs, sorted.

    Looks into zips inside zips one level deep (as .pt2 archives have them). Raises `Damaged` and OSError.
    """
    with path.open("rb") as stream:
        return sorted(_in_file(stream, 0) - EXPECTED)


def globals_of(stream: IO[bytes]) -> set[str]:
    """Every ``module.name`` that the pickle at the stream's position imports. Raises `Damaged`."""
    found: set[str] = set()
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, arg, _ in pickletools.genops(stream):
            _step(opcode, arg, stack, memo, found)
    except Exception as error:  # pickletools raises many kinds for bytes that are no pickle
        raise Damaged(f"not a whole pickle: {error}") from error
    return found


def _in_file(stream: IO[bytes], depth: int) -> set[str]:
    start = stream.read(4)
    stream.seek(0)
    if start == b"PK\x03\x04":
        return _in_zip(stream, depth) if depth < 2 else {"(a zip nested too deep)"}
    return _in_row(stream)


def _in_row(stream: IO[bytes]) -> set[str]:
    """Pickles one after another, as torch's legacy format has them, until the numbers begin."""
    found = globals_of(stream)
    for _ in range(PICKLES_IN_A_ROW):
        try:
            found |= globals_of(stream)
        except Damaged:
            break
    return found


def _in_zip(stream: IO[bytes], depth: int) -> set[str]:
    found: set[str] = set()
    try:
        with zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    start = member.read(4)
                named = info.filename.endswith((".pkl", ".pickle"))
                nested = start == b"PK\x03\x04"
                if not (named or nested or (start[:1] == b"\x80" and start[1:2] <= b"\x05")):
                    continue
                if named and info.file_size > LARGEST:
                    return found | {f"(a pickle of {info.file_size:,} bytes)"}
                if not named and not nested and not info.filename.endswith((".pt", ".pth")):
                    # Numbers may start with any bytes; only what reads as a pickle to its end is one.
                    found |= _perhaps(archive, info)
                    continue
                with archive.open(info) as member:
                    whole = io.BytesIO(member.read(LARGEST)) if named else member
                    found |= _in_file(whole, depth + 1) if nested else globals_of(whole)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise Damaged(f"a damaged zip: {error}") from error
    return found


def _perhaps(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> set[str]:
    try:
        with archive.open(info) as member:
            return globals_of(io.BytesIO(member.read(LARGEST)))
    except Damaged:
        return set()


_MARK = object()


def _step(opcode: pickletools.OpcodeInfo, arg: Any, stack: list[Any], memo: dict[int, Any], found: set[str]) -> None:
    """What one instruction does to the stack; strings are kept, everything else is None."""
    name = opcode.name
    if name in ("GLOBAL", "INST"):
        found.add(str(arg).replace(" ", ".", 1))
    elif name == "STACK_GLOBAL":
        module, attribute = [None, None, *stack][-2:]
        known = isinstance(module, str) and isinstance(attribute, str)
        found.add(f"{module}.{attribute}" if known else UNNAMED)
    elif name.startswith("EXT"):
        found.add(f"(copyreg extension {arg})")

    if name == "MEMOIZE":
        memo[len(memo)] = stack[-1] if stack else None
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[int(arg)] = stack[-1] if stack else None
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo.get(int(arg)))
    elif name == "DUP":
        stack.append(stack[-1] if stack else None)
    elif name == "MARK":
        stack.append(_MARK)
    elif isinstance(arg, str) and opcode.stack_after and not opcode.stack_before:
        stack.append(arg if "GLOBAL" not in name else None)
    else:
        _pop(opcode, stack)
        stack.extend([None] * len(opcode.stack_after))


def _pop(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    before = opcode.stack_before
    if pickletools.markobject in before:
        while stack and stack.pop() is not _MARK:
            pass
        before = before[: before.index(pickletools.markobject)]
    elif opcode.name == "POP":
        before = before[:1]
    del stack[max(0, len(stack) - len(before)) :]

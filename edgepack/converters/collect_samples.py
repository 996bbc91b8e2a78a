# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.4.6",
# ]
# ///
"""Write the samples that a user's own function gives as a tensor folder. Runs under an interpreter that has its code.

Request: ``source`` (``package.module:name`` of an iterable, or of a function without arguments that returns one),
``inputs`` (list of name, dtype, shape), ``limit`` (samples to take at most), ``cwd`` and ``pythonpath`` (where the code
is found). Writes ``0.npy``, ``1.npy`` ... in the order of the inputs, each [samples, *what the function gave];
``result.json`` holds ``count`` and ``notes``, or ``error`` (message, hint).

One sample is in memory at a time. Nothing is pickled: what is no array of numbers is refused.
"""

import contextlib
import importlib
import itertools
import json
import os
import site
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

HEADER = 512  # bytes before the numbers of an .npy, written when their count is known; a multiple of 64


class Refused(Exception):
    """What the user is told: message and hint."""


try:
    import numpy as np
except ImportError as missing:
    raise SystemExit(f"the interpreter {sys.executable} can't import numpy ({missing}); install it there") from missing


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        # What the user's code prints is talk.
        with contextlib.redirect_stdout(sys.stderr):
            result: dict[str, Any] = collect(request, out)
    except Refused as refused:
        message, hint = map(visible, refused.args)
        result = {"error": {"message": message, "hint": hint}}
    (out / "result.json").write_text(json.dumps(result))


def collect(request: dict[str, Any], out: Path) -> dict[str, Any]:
    source, inputs, limit = request["source"], request["inputs"], request["limit"]
    entries = entries_of(source, request["cwd"], request["pythonpath"])
    kinds: list[tuple[str, tuple[int, ...]]] = []
    notes: list[str] = []
    count = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((out / f"{index}.npy").open("wb")) for index in range(len(inputs))]
        for file in files:
            file.write(bytes(HEADER))
        for entry in itertools.islice(entries, limit):
            arrays = [as_array(value, source, count) for value in parted(entry, inputs, source, count, notes)]
            found = [(np.lib.format.dtype_to_descr(array.dtype), array.shape) for array in arrays]
            kinds = kinds or found
            for spec, kind, first in zip(inputs, found, kinds, strict=True):
                if kind != first:
                    raise Refused(
                        f"Sample {count} of {source} is {kind[0]} {list(kind[1])} for the input {spec['name']!r}, "
                        f"and those before it are {first[0]} {list(first[1])}.",
                        "Bring every sample to one shape and type.",
                    )
            for file, array in zip(files, arrays, strict=True):
                file.write(np.ascontiguousarray(array).tobytes())
            count += 1
            if any(not fits(spec, shape) for spec, (_, shape) in zip(inputs, found, strict=True)):
                break  # of a wrong shape one sample is enough: edgepack says what is wrong with it
        for file, (dtype, shape) in zip(files, kinds, strict=False):
            write_header(file, dtype, (count, *shape))
    if not count:
        raise Refused(f"{source} gave no sample.", "Let it give some tens of real inputs.")
    if count == limit:
        notes.append(f"{source} was stopped after {limit} samples, the most that are used")
    return {"count": count, "notes": notes}


def entries_of(source: str, cwd: str, pythonpath: list[str]) -> Iterator[Any]:
    """What the user's iterable gives, with every exception of their code as `Refused`."""
    where, _, attribute = source.partition(":")
    # First the user's own folder, as for any script; last what is installed beside edgepack.
    sys.path.insert(0, cwd)
    for folder in pythonpath:
        sys.path.append(folder)
        for listing in sorted(Path(folder).glob("*.pth")):  # editable installs
            with contextlib.suppress(UnicodeDecodeError):
                site.addpackage(folder, listing.name, None)
    os.chdir(cwd)
    with told(f"Importing {where} failed", f"Run edgepack in the folder that holds {where.partition('.')[0]}.py"):
        module = importlib.import_module(where)
    if not hasattr(module, attribute):
        offered = ", ".join(sorted(name for name in vars(module) if not name.startswith("_"))[:30])
        raise Refused(f"The module {where} has no {attribute!r}.", f"It offers: {offered}.")
    given = getattr(module, attribute)
    hint = "It is called without arguments and gives one sample after the other; try it in Python"
    if callable(given):
        with told(f"Calling {source}() failed", hint):
            given = given()
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise Refused(
            f"{source} gave {type(given).__name__}, not samples one after the other.",
            "Write a generator function: one `yield` of an array, or of a dict of arrays by input name, per sample.",
        )
    with told(f"{source} failed before its first sample", hint):
        entries = iter(given)
    for number in itertools.count():
        with told(f"{source} failed at sample {number}", hint):
            try:
                entry = next(entries)
            except StopIteration:
                return
        yield entry


@contextlib.contextmanager
def told(what: str, hint: str) -> Iterator[None]:
    """Whatever the user's code raises (SystemExit too) becomes a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Refused(f"{what}: {one_line(error)}.", f"{hint}, or name the interpreter with --python PATH.") from error


def parted(entry: Any, inputs: list[dict[str, Any]], source: str, number: int, notes: list[str]) -> list[Any]:
    """One value per input, in their order."""
    names = [spec["name"] for spec in inputs]
    wanted = ", ".join(map(repr, names))
    if isinstance(entry, Mapping):
        missing = [name for name in names if name not in entry]
        if missing:
            raise Refused(
                f"Sample {number} of {source} has no {missing[0]!r}; it has {', '.join(map(repr, entry))}.",
                f"Give a dict with an array for each input: {wanted}.",
            )
        extra = [key for key in entry if key not in names]
        if extra and not number:
            notes.append(f"{source} also gives {', '.join(map(repr, extra))}, which the model has no input for; unused")
        return [entry[name] for name in names]
    if isinstance(entry, (tuple, list)):
        if len(entry) != len(names):
            raise Refused(
                f"Sample {number} of {source} is a {type(entry).__name__} of {len(entry)}, but the model has "
                f"{len(names)} input{'s' * (len(names) > 1)}: {wanted}.",
                "Give the inputs alone, without labels: a dict by input name is safest.",
            )
        return list(entry)
    if len(names) != 1:
        raise Refused(
            f"Sample {number} of {source} is one {type(entry).__name__}, but the model has {len(names)} inputs: "
            f"{wanted}.",
            "Give a dict with an array for each input.",
        )
    return [entry]


def as_array(value: Any, source: str, number: int) -> "np.ndarray":
    """A value (array, number, list of numbers, torch tensor) as a plain array."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
    except Exception as error:
        raise Refused(f"Sample {number} of {source} is no array: {one_line(error)}.", "Give numpy arrays.") from error
    if array.dtype.kind not in "biuf":
        raise Refused(
            f"Sample {number} of {source} holds {type(value).__name__} of {array.dtype}, not plain numbers.",
            "Give numpy arrays of numbers.",
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def fits(spec: dict[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether this is one sample, with the model's batch axis of 1 or without."""
    whole = tuple(spec["shape"])
    return shape == whole or (whole[:1] == (1,) and shape == whole[1:])


def write_header(file: BinaryIO, dtype: str, shape: tuple[int, ...]) -> None:
    """An .npy header of `HEADER` bytes (format 1.0) at the file's start."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode("ascii")
    room = HEADER - 10
    if len(text) >= room:
        raise Refused(f"A sample has {len(shape) - 1} axes.", "Give arrays of the model's shape.")
    file.seek(0)
    file.write(b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1) + b"\n")


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:400].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def visible(text: str) -> str:
    """Text with every character that a terminal would act on replaced by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    main()

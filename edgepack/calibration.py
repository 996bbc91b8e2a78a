"""Real inputs of the model, from a folder of pictures, arrays or a function, checked while they stream to disk.

The result is a tensor folder (see `edgepack.interfaces`): ``0.npy``, ``1.npy`` ... of shape [samples, *input shape].
One sample at a time is in memory. Nothing here is random but `synthetic`, which is for verification only, never for
INT8 ranges, and whose use the caller states in the report.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import arrays, lint, preprocess
from edgepack import synthetic as made_up
from edgepack.arrays import ArrayFile
from edgepack.cache import sha256_file, sha256_text
from edgepack.errors import CalibrationError, OutOfSpace
from edgepack.lint import Report, Seen, check_declared, check_varied, declared_for
from edgepack.types import Preprocess, TensorSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where samples come from: a folder of pictures, an array file, or the arrays that `function` gave, at `path`."""

    path: Path
    function: str = ""

    @property
    def label(self) -> str:
        """What messages call it: the user's own words."""
        return self.function or str(self.path)

    def digest(self) -> str:
        """SHA-256 over the names and bytes of the user's data: the part of a cache key that stands for them.

        Files that `gather` would ignore don't count. Raises `CalibrationError` when a file can't be read.
        """
        if self.function:
            return digest(self.path)
        return from_source_digest(self.path)


def gather(
    source: Path | Source,
    inputs: tuple[TensorSpec, ...],
    preprocess: Mapping[str, Preprocess],
    out: Path,
    limit: int = 512,
    report: Report | None = None,
) -> int:
    """Write at most `limit` samples of `source`, evenly spaced, as a tensor folder; returns how many.

    `source` is a folder of pictures (for a model with one image input; sub-folders are searched, order is by name), an
    ``.npz`` with one array per input, an ``.npy``, or what a function gave (`edgepack.iterables`). Arrays are
    [samples, *shape], or without the model's batch axis where that is 1. What is odd but usable goes to `report`.
    Raises `CalibrationError` for data that can't be this model's inputs; `out` is then incomplete.
    """
    check_declared(inputs, preprocess)
    out.mkdir(parents=True, exist_ok=True)
    data = source if isinstance(source, Source) else Source(path=source)
    report = report or Report()
    if data.function:
        found = {spec.name: _given(data, index) for index, spec in enumerate(inputs)}
        return _gather_arrays(data.label, found, inputs, preprocess, out, limit, report)
    if data.path.is_dir():
        return _gather_images(data.path, inputs, preprocess, out, limit, report)
    return _gather_arrays(data.label, _open(data.path), inputs, preprocess, out, limit, report)


def sample_name(source: Source, index: int, limit: int) -> str:
    """What sample `index` of those that `gather` chose is called in messages."""
    if source.function or not source.path.is_dir():
        return f"sample {index}"
    pictures, _ = _find_pictures(source.path)
    chosen = _evenly(len(pictures), limit) if len(pictures) > limit else range(len(pictures))
    return pictures[chosen[index]].relative_to(source.path).as_posix()


def split(folder: Path, count: int, calib_out: Path, verify_out: Path, verify: int = 16) -> tuple[int, int]:
    """Part a tensor folder of `count` samples for calibration and verification; returns how many each got.

    With at least ``2 * verify`` samples, `verify` evenly spaced ones are held out and the two sets share none. With
    fewer, both get all of them.
    """
    used, held = parts(count, verify)
    for target, chosen in ((calib_out, used), (verify_out, held)):
        target.mkdir(parents=True, exist_ok=True)
        for path in _tensor_files(folder):
            if len(chosen) == count:
                shutil.copyfile(path, target / path.name)
                continue
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            rows = (np.asarray(stored[index]) for index in chosen)
            arrays.write_rows(target / path.name, stored.dtype.str, stored.shape[1:], len(chosen), rows)
    return len(used), len(held)


def parts(count: int, verify: int) -> tuple[list[int], list[int]]:
    """The samples that `split` gives to calibration, and those that it gives to verification."""
    if count < 2 * verify:
        return list(range(count)), list(range(count))
    held = _evenly(count, verify)
    return sorted(set(range(count)) - set(held)), held


def synthetic(inputs: tuple[TensorSpec, ...], preprocess: Mapping[str, Preprocess], out: Path, count: int = 16) -> None:
    """Write `count` made-up samples: the same bytes for the same model, every time.

    See `edgepack.synthetic` for what is in them. Enough to see whether a float conversion is right, and no measure of
    accuracy on real data.
    """
    out.mkdir(parents=True, exist_ok=True)
    for index, spec in enumerate(inputs):
        how = declared_for(spec, inputs, preprocess)
        rows = (made_up.sample(spec, how, np.random.default_rng([index, number])) for number in range(count))
        arrays.write_rows(out / f"{index}.npy", spec.dtype, spec.shape, count, rows)


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a tensor folder's files."""
    return sha256_text("\n".join(f"{path.name} {sha256_file(path)}" for path in _tensor_files(folder)))


def from_source_digest(source: Path) -> str:
    """SHA-256 over the names and bytes of the user's data: the part of a cache key that stands for them.

    Files that `gather` would ignore don't count. Raises `CalibrationError` when a file can't be read.
    """
    try:
        if not source.is_dir():
            return sha256_file(source)
        pictures, _ = _find_pictures(source)
        return sha256_text("\n".join(f"{path.relative_to(source).as_posix()} {sha256_file(path)}" for path in pictures))
    except OSError as error:
        raise CalibrationError(
            f"{error.filename or source} can't be read: {error.strerror}.", "Check the path and its permissions."
        ) from error


def code_digest() -> str:
    """SHA-256 over what turns the user's data into samples: these modules, numpy and Pillow."""
    from PIL import __version__ as pillow

    own = [Path(str(module.__file__)) for module in (arrays, lint, preprocess, made_up)]
    sources = [sha256_file(path) for path in (Path(__file__), *own)]
    return sha256_text("\n".join([*sources, np.__version__, pillow]))


# --- pictures -------------------------------------------------------------------------------------------------------


def _gather_images(
    source: Path,
    inputs: tuple[TensorSpec, ...],
    declared: Mapping[str, Preprocess],
    out: Path,
    limit: int,
    report: Report,
) -> int:
    pictures, ignored = _find_pictures(source)
    if not pictures:
        packed = [path.name for path in ignored if path.suffix in (".npy", ".npz")]
        raise CalibrationError(
            f"{source} holds no pictures ({', '.join(sorted(preprocess.SUFFIXES))}).",
            f"Give the array file itself, such as {source / packed[0]}." if packed else "Check the folder.",
            id="EP321",
        )
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise CalibrationError(
            f"A folder of pictures feeds one input, but the model has {len(inputs)}: {names}.",
            "Give an .npz with one array per input, named like the inputs.",
        )
    spec = inputs[0]
    how = declared_for(spec, inputs, declared)
    if how is None:
        raise CalibrationError(
            f"How the pictures of {source} become the input {spec.name!r} {list(spec.shape)} is not declared.",
            f"Write this to preprocess.toml with the numbers used in training, and add --preprocess preprocess.toml:\n"
            f"{example(spec)}",
            id="EP323",
        )
    if ignored:
        report.note(f"{len(ignored)} file(s) of {source} are no pictures and are ignored, such as {ignored[0].name}")
    chosen = _choose(len(pictures), limit, source, report)
    _check_space(out, inputs, len(chosen))

    def row(index: int) -> Array:
        image = preprocess.load_image(pictures[index])
        try:
            return preprocess.apply(image, how, spec.shape, spec.dtype)
        except CalibrationError as error:
            raise CalibrationError(f"{pictures[index]}: {error.message}", error.hint) from error

    seen = Seen(spec, str(source))
    arrays.write_rows(out / "0.npy", spec.dtype, spec.shape, len(chosen), seen.watch(_ahead(row, chosen)))
    check_varied([seen], str(source), len(chosen), report)
    return len(chosen)


def _ahead(make: Callable[[int], Array], chosen: list[int]) -> Iterator[Array]:
    """`make` of each index, in order, by a few threads that run at most that many results ahead."""
    threads = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Array]] = deque()
        try:
            for index in chosen:
                waiting.append(pool.submit(make, index))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _find_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures below `folder` by name, and the other files. Hidden ones (``._x.jpg`` of macOS) are neither."""
    pictures: list[Path] = []
    others: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                path = Path(root, name)
                (pictures if path.suffix.lower() in preprocess.SUFFIXES else others).append(path)
    return sorted(pictures, key=lambda path: path.relative_to(folder).parts), sorted(others)


def example(spec: TensorSpec) -> str:
    """A declaration for `spec` to paste and correct; ImageNet's numbers stand in for the unknown ones."""
    layout = preprocess.guess_layout(spec.shape) or "NCHW"
    sizes = dict(zip(layout, spec.shape, strict=False))
    gray = sizes.get("C") == 1
    numbers = ("[0.0]", "[255.0]") if gray else ("[123.675, 116.28, 103.53]", "[58.395, 57.12, 57.375]")
    name = '"' + spec.name.encode("unicode_escape").decode().replace('"', '\\"') + '"'
    if any(ord(character) < 32 or character in '"\\' for character in spec.name):
        name = '"*"'
    return (
        f"[input.{name}]\n"
        f'layout = "{layout}"\n'
        f'color = "{"GRAY" if gray else "RGB"}"\n'
        f"resize = [{sizes.get('H', 224)}, {sizes.get('W', 224)}]\n"
        f"mean = {numbers[0]}\n"
        f"std = {numbers[1]}"
    )


# --- arrays ---------------------------------------------------------------------------------------------------------


def _open(path: Path) -> dict[str, ArrayFile]:
    if path.suffix.lower() in preprocess.SUFFIXES:
        raise CalibrationError(f"{path} is one picture.", "Give the folder that holds it and others.")
    return arrays.open_arrays(path)


def _given(source: Source, index: int) -> ArrayFile:
    (array,) = arrays.open_arrays(source.path / f"{index}.npy").values()
    return replace(array, called=f"What {source.function} gives")


def _gather_arrays(
    source: str,
    found: Mapping[str, ArrayFile],
    inputs: tuple[TensorSpec, ...],
    declared: Mapping[str, Preprocess],
    out: Path,
    limit: int,
    report: Report,
) -> int:
    matched = [_match(spec, inputs, found, source) for spec in inputs]
    extra = sorted(name for name, array in found.items() if array not in matched and name != "labels")
    if extra:
        report.note(f"{source} also holds {', '.join(map(repr, extra))}, which the model has no input for; ignored")
    counts = [_samples_in(array, spec) for array, spec in zip(matched, inputs, strict=True)]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{spec.name!r} has {count}" for spec, count in zip(inputs, counts, strict=True))
        raise CalibrationError(
            f"{source} holds different numbers of samples per input: {listed}.",
            "Sample k is entry k of every array. An input that never changes is repeated with numpy.repeat.",
        )
    if counts[0] == 0:
        raise CalibrationError(f"{source} holds 0 samples.", "Give some tens of real inputs.", id="EP321")
    chosen = _choose(counts[0], limit, source, report)
    _check_space(out, inputs, len(chosen))
    watched = []
    for index, (spec, array) in enumerate(zip(inputs, matched, strict=True)):
        _check_dtype(array, spec)
        seen = Seen(spec, source)
        rows = (_convert(row, spec, array) for row in array.rows(chosen))
        arrays.write_rows(out / f"{index}.npy", spec.dtype, spec.shape, len(chosen), seen.watch(rows))
        seen.check_range(declared_for(spec, inputs, declared), report)
        watched.append(seen)
    check_varied(watched, source, len(chosen), report)
    return len(chosen)


def _match(spec: TensorSpec, inputs: tuple[TensorSpec, ...], found: Mapping[str, ArrayFile], source: str) -> ArrayFile:
    if spec.name in found:
        return found[spec.name]
    if len(inputs) == 1 and set(found) == {"arr_0"}:
        return found["arr_0"]
    near = difflib.get_close_matches(spec.name, found, n=1)
    guess = f" Did you mean to rename {near[0]!r}?" if near else ""
    raise CalibrationError(
        f"{source} has no array for the input {spec.name!r}; it has {', '.join(map(repr, found))}.{guess}",
        "Save it as numpy.savez(file, **{name: array}) with the names " + ", ".join(repr(i.name) for i in inputs) + ".",
    )


def _samples_in(array: ArrayFile, spec: TensorSpec) -> int:
    shape = array.shape
    if shape and shape[1:] == spec.shape:
        return shape[0]
    if shape and spec.shape[:1] == (1,) and shape[1:] == spec.shape[1:]:
        return shape[0]
    wanted = spec.shape[1:] if spec.shape[:1] == (1,) else spec.shape
    raise CalibrationError(
        f"{array.label} has shape {list(shape)}; the input {spec.name!r} is {list(spec.shape)}, so it should be "
        f"[samples{''.join(f', {size}' for size in wanted)}].",
        _shape_cure(shape, wanted, spec.shape),
    )


def _shape_cure(shape: tuple[int, ...], wanted: tuple[int, ...], whole: tuple[int, ...]) -> str:
    if shape in (wanted, whole):
        return "That is one sample: add an axis for samples in front, x[None]."
    rest = shape[1:]
    if len(shape) == len(whole) + 1 and shape[1] == 1:
        rest = shape[2:]
    batch = len(shape) - len(rest)
    if len(rest) == len(wanted) == 3:
        axes = list(range(batch))
        if (rest[2], rest[0], rest[1]) == wanted:
            order = [*axes, batch + 2, batch, batch + 1]
            return f"It looks like channels-last (NHWC) for a channels-first (NCHW) model: x.transpose({order})."
        if (rest[1], rest[2], rest[0]) == wanted:
            order = [*axes, batch + 1, batch + 2, batch]
            return f"It looks like channels-first (NCHW) for a channels-last (NHWC) model: x.transpose({order})."
    return "Prepare the arrays as the model gets them, one entry of the first axis per sample."


def _check_dtype(array: ArrayFile, spec: TensorSpec) -> None:
    """Refuse what can't be converted without a guess."""
    have, want = array.dtype, np.dtype(spec.dtype)
    if have.kind == want.kind or (have.kind in "iu" and want.kind in "iu"):
        return
    if have == np.uint8 and want.kind == "f":
        raise CalibrationError(
            f"{array.label} holds uint8, but the input {spec.name!r} is {spec.dtype}: raw pixels are not what it was "
            "trained on.",
            "Scale them as in training and save float32, or give a folder of pictures with --preprocess.",
        )
    raise CalibrationError(
        f"{array.label} holds {have}, but the input {spec.name!r} is {spec.dtype}.",
        f"If that is what you mean, save x.astype('{spec.dtype}').",
    )


def _convert(row: Array, spec: TensorSpec, array: ArrayFile) -> Array:
    want = np.dtype(spec.dtype)
    if want.kind in "iu" and row.dtype != want:
        limits = np.iinfo(want)
        if row.size and (int(row.min()) < limits.min or int(row.max()) > limits.max):
            raise CalibrationError(
                f"{array.label} has values from {row.min()} to {row.max()}; the input {spec.name!r} is {spec.dtype}.",
                "Check that these are this input's values.",
            )
    with np.errstate(over="ignore"):  # an overflow to infinity is found by the check that follows
        return row.astype(want, copy=False).reshape(spec.shape)


# --- both -----------------------------------------------------------------------------------------------------------


def _check_space(out: Path, inputs: tuple[TensorSpec, ...], count: int) -> None:
    """Room for the samples twice over: they are parted in two afterwards."""
    needed = 2 * count * sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in inputs)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise OutOfSpace(
            f"{count} samples need {needed >> 20} MiB in {out}, where {free >> 20} MiB are free.",
            "Make room, set EDGEPACK_CACHE to another disk, or give fewer samples.",
        )


def _choose(available: int, limit: int, source: Path | str, report: Report) -> list[int]:
    if available > limit:
        report.note(f"{limit} of the {available} samples of {source} are used, evenly spaced")
        return _evenly(available, limit)
    return list(range(available))


def _evenly(count: int, wanted: int) -> list[int]:
    """`wanted` different indices below `count`, evenly spaced, rising."""
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def _tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"), key=lambda path: int(path.stem))

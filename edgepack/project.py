"""edgepack.toml, or any file given with --preprocess -> the declared inputs of a model, and its input sets.

Strict like every TOML here: an unknown key is an error with its line and the nearest name. What every key means is in
docs/preprocess.md and docs/shapes.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack import log
from edgepack.errors import ConfigError
from edgepack.strict_toml import Document, near, number, read, whole
from edgepack.types import InputSet, Preprocess

PREPROCESS_KEYS = (
    "layout", "color", "resize", "fit", "method", "crop", "pad", "pad_value", "pad_place", "mean", "std",
)  # fmt: skip
PREPROCESS_CHOICES = {
    "layout": ("NCHW", "NHWC", "CHW", "HWC", "NHW", "HW"),
    "color": ("RGB", "BGR", "GRAY"),
    "fit": ("stretch", "inside", "height"),
    "method": ("bilinear", "nearest"),
    "pad_place": ("center", "top_left"),
}
PROJECT = "edgepack.toml"
LARGEST_SIDE = 1 << 16
LARGEST_NUMBER = 1e30  # of mean and std, and 1 / of std: what float32 holds with room to spare
SHAPE = "shape"
MOST_AXES = 8

Table = Mapping[str, Any]
Where = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a file declares of a model: shapes by input, how pictures become inputs, and the input sets."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    preprocess: Mapping[str, Preprocess] = field(default_factory=dict)
    input_sets: tuple[InputSet, ...] = ()


def load(path: Path) -> Project:
    """Read the ``[input.NAME]`` and ``[input-set.SET.input.NAME]`` tables; ``[input."*"]`` is the only input.

    Raises `ConfigError` (file, line and nearest key) and `UsageError` when the file can't be read.
    """
    document = read(path)
    document.check({"input": "a table", "input-set": "a table"})
    inputs = _inputs(document, ("input",))
    if not inputs and not document.content.get("input-set"):
        raise ConfigError(f"{path} declares no input.", 'Write a table [input."NAME"], see docs/preprocess.md.')
    return Project(
        shapes=_shapes(document, ("input",), inputs),
        preprocess=_all_preprocess(document, ("input",), inputs, {}),
        input_sets=tuple(_input_set(document, name, inputs) for name in document.content.get("input-set", {})),
    )


def beside(source: str, folder: Path | None = None) -> Project:
    """What an ``edgepack.toml`` beside the model declares; nothing where there is no such file.

    For ``package.module:factory`` it is the one in `folder`, by default the current one. Raises like `load`.
    """
    model = Path(source)
    path = (model.parent if model.is_file() else folder or Path()) / PROJECT
    if not path.is_file():
        return Project()
    log.note(f"inputs are declared in {path}")
    return load(path)


def _input_set(document: Document, name: str, base: Mapping[str, Table]) -> InputSet:
    """One ``[input-set.SET]``: its inputs' keys go over those of ``[input.NAME]``."""
    where = ("input-set", name)
    document.check({"input": "a table"}, where)
    inputs = _inputs(document, (*where, "input"))
    return InputSet(
        name=name,
        shapes=_shapes(document, (*where, "input"), inputs),
        preprocess=_all_preprocess(document, (*where, "input"), inputs, base),
    )


def _inputs(document: Document, where: Where) -> dict[str, Table]:
    tables: Any = document.content
    for key in where:
        tables = tables.get(key, {})
    for name, table in tables.items():
        if not isinstance(table, dict):
            shown = ".".join((*where, name))
            hint = f'Write [{".".join(where)}."{name}"] and its keys below.'
            raise document.fail((*where, name), f"{shown} = {table!r} should be a table.", hint)
    return dict(tables)


def _shapes(document: Document, where: Where, inputs: Mapping[str, Table]) -> dict[str, tuple[int, ...]]:
    """The inputs' ``shape = [1, 3, 48, 320]``."""
    found = {}
    for name, table in inputs.items():
        if SHAPE not in table:
            continue
        sizes = table[SHAPE]
        if not isinstance(sizes, list) or not all(map(whole, sizes)) or len(sizes) > MOST_AXES:
            message = f"shape = {sizes!r} should be at most {MOST_AXES} whole numbers, such as [1, 3, 48, 320]."
            raise document.fail((*where, name, SHAPE), message)
        if name == "*":
            raise document.fail((*where, name, SHAPE), "a shape needs the input's name.", "Write it in place of the *.")
        found[name] = tuple(sizes)
    return found


def _all_preprocess(
    document: Document, where: Where, inputs: Mapping[str, Table], base: Mapping[str, Table]
) -> dict[str, Preprocess]:
    """A declaration for every input; one with nothing but a shape has none."""
    return {
        name: _preprocess(document, (*where, name), table, {**base.get(name, {}), **table})
        for name, table in inputs.items()
        if set(table) != {SHAPE}
    }


def _preprocess(document: Document, where: Where, own: Table, table: Table) -> Preprocess:
    """The declaration of one input: `own` are the keys written at `where`, `table` with those that it goes over."""
    for key, value in own.items():
        if key not in (*PREPROCESS_KEYS, SHAPE):
            hint = f'Keys: {", ".join((SHAPE, *PREPROCESS_KEYS))}. A name with a dot is quoted: [input."a.b"].'
            shown = ".".join(where)
            raise document.fail((*where, key), f"unknown key {key!r} in [{shown}].{near(key, PREPROCESS_KEYS)}", hint)
        allowed = PREPROCESS_CHOICES.get(key)
        if allowed and value not in allowed:
            guess = near(value, allowed) if isinstance(value, str) else ""
            raise document.fail(
                (*where, key), f"{key} = {value!r} is not known.{guess}", f"One of {', '.join(allowed)}."
            )
    fields = {key: table[key] for key in PREPROCESS_CHOICES if key in table}
    for key in ("resize", "crop", "pad"):
        if key in table:
            fields[key] = _sizes(document, where, key, table[key])
    for key in ("mean", "std", "pad_value"):
        if key in table:
            fields[key] = _numbers(document, where, key, table[key], 1 if table.get("color") == "GRAY" else 3)
    _check_pad(document, where, fields)
    _check_scale(document, where, fields)
    return Preprocess(**fields)


def _sizes(document: Document, where: tuple[str, ...], key: str, value: Any) -> tuple[int, int] | int:
    if key == "resize" and whole(value) and value <= LARGEST_SIDE:
        return int(value)
    if isinstance(value, list) and len(value) == 2 and all(whole(size) and size <= LARGEST_SIDE for size in value):
        return value[0], value[1]
    alone = ", or the shorter side's length" if key == "resize" else ""
    raise document.fail((*where, key), f"{key} = {value!r} should be [height, width] in pixels{alone}.")


def _numbers(document: Document, where: tuple[str, ...], key: str, value: Any, channels: int) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, channels) or not all(number(each) for each in values):
        message = f"{key} = {value!r} should be one number" + (
            f", or {channels}, one per channel." * (channels > 1) or "."
        )
        raise document.fail((*where, key), message)
    if key == "std" and 0 in values:
        raise document.fail((*where, key), "std divides, so it can't be 0.", "1 leaves values as they are.")
    if any(abs(each) > LARGEST_NUMBER or (key == "std" and abs(each) < 1 / LARGEST_NUMBER) for each in values):
        raise document.fail((*where, key), f"{key} = {value!r} is too far from 1 for float32.")
    return tuple(float(each) for each in values)


def _check_pad(document: Document, where: tuple[str, ...], fields: Mapping[str, Any]) -> None:
    """Keys that only make sense together."""
    if fields.get("fit", "stretch") != "stretch" and not isinstance(fields.get("resize"), tuple):
        raise document.fail((*where, "fit"), f"fit = {fields['fit']!r} needs resize = [height, width] to fit into.")
    pad, crop = fields.get("pad"), fields.get("crop")
    for key in ("pad_value", "pad_place"):
        if key in fields and pad is None:
            raise document.fail((*where, key), f"{key} does nothing without pad.", "Add pad = [height, width].")
    if pad and crop and (crop[0] > pad[0] or crop[1] > pad[1]):
        raise document.fail((*where, "pad"), f"pad = {list(pad)} is smaller than crop = {list(crop)}.")
    if not all(0 <= each <= 255 for each in fields.get("pad_value", ())):
        raise document.fail(
            (*where, "pad_value"),
            f"pad_value = {list(fields['pad_value'])} is outside 0..255.",
            "It is a colour before mean and std; mean itself becomes 0.",
        )


def _check_scale(document: Document, where: tuple[str, ...], fields: Mapping[str, Any]) -> None:
    """Means and deviations for pixels in 0..1 are the usual slip: they would blow 0..255 up to thousands."""
    std, mean = fields.get("std"), fields.get("mean", (0.0,))
    if std and max(abs(each) for each in std) < 1 and max(abs(each) for each in mean) <= 1:
        scaled = [
            f"{key} = {[round(255 * each, 4) for each in values]}" for key, values in (("mean", mean), ("std", std))
        ]
        raise document.fail(
            (*where, "std"),
            "these mean and std are for pixels in 0..1; edgepack's are for pixels in 0..255.",
            f"Multiply by 255: {', '.join(scaled)}.",
        )

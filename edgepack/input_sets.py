"""Input sets: further shapes of a model's inputs, each with variants of its own in the same bundle.

What can be said without work is checked when the plan is made (`declare`); what needs the model's own inputs, as soon
as it is imported (`plans`). From there on a set is built by a plan of its own, in which everything is as it would be
were these the only shapes: INT8 too is calibrated at its shapes, because ranges depend on what a shape lets in.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgepack.errors import UsageError
from edgepack.lint import ANY_INPUT, declared_for
from edgepack.types import InputSet, Precision, Preprocess, TensorSpec

Shape = tuple[int, ...]
NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
LONGEST = 32  # of a name
ID = "EP215"


def split(text: str) -> tuple[str, str]:
    """``wide:x=1x3x48x640`` as (``wide``, ``x=1x3x48x640``). Raises `UsageError`."""
    name, colon, rest = text.partition(":")
    if not colon or "=" in name:
        raise UsageError(
            f"--input-set {text!r} is not SET:NAME=SHAPE.",
            "Write it like --input-set wide:image=1x3x48x640, once for each input that differs.",
            id="EP209",
        )
    return name, rest


def declare(
    declared: Sequence[InputSet],
    shapes: Sequence[tuple[str, str, Shape, str | None]],
    data: Mapping[str, Mapping[str, Path]],
    engines: Sequence[str],
) -> tuple[InputSet, ...]:
    """The sets of a build: those of edgepack.toml, under `shapes` (set, input, shape, dtype) of the command line.

    `data` maps "calibration", "samples" and "data" to a path for each set that has its own. `engines` are names that
    a set can't have. Raises `UsageError`.
    """
    sets = {item.name: item for item in declared}
    for name, given, shape, dtype in shapes:
        if dtype:
            raise UsageError(
                f"--input-set {name}:{given}={_x(shape)}:{dtype}: a set has other shapes, not other types.",
                f"Leave {dtype} out, and say it with --input.",
                id="EP209",
            )
        before = sets.get(name, InputSet(name=name))
        sets[name] = replace(before, shapes={**before.shapes, given: shape})
    for item in sets.values():
        _check_name(item.name, engines)
        if not item.shapes:
            raise UsageError(
                f"The input set {item.name!r} changes no shape.",
                f"Say which: --input-set {item.name}:NAME=SHAPE, or a shape in [input-set.{item.name}.input.NAME].",
                id=ID,
            )
    return tuple(
        replace(item, **{kind: paths[item.name] for kind, paths in data.items() if item.name in paths})  # type: ignore[arg-type]
        for item in sets.values()
    )


def own_data(option: str, values: Sequence[str], sets: Sequence[str]) -> tuple[Path | None, dict[str, Path]]:
    """``--calib DIR --calib wide:OTHER`` as (what is for all, what is for one set). Raises `UsageError`."""
    common: Path | None = None
    own: dict[str, Path] = {}
    for value in values:
        name, colon, path = value.partition(":")
        if colon and name in sets:
            if name in own:
                raise UsageError(f"{option} is given twice for the input set {name!r}.", "Give it once.")
            own[name] = Path(path)
        elif common is not None:
            raise UsageError(
                f"{option} is given twice: {common} and {value}.",
                f"Give it once; data of an input set are {option} SET:PATH.",
            )
        else:
            common = Path(value)
    return common, own


def check(sets: Sequence[InputSet], inputs: Sequence[TensorSpec]) -> dict[str, dict[str, Shape]]:
    """All inputs' shapes in each set, by set and input, held against the model's `inputs` without a set.

    Raises `UsageError`: no such input, another rank, the same shapes as another set.
    """
    base = {spec.name: spec.shape for spec in inputs}
    seen = {tuple(base.items()): "the model without a set"}
    found = {}
    for item in sets:
        for name, shape in item.shapes.items():
            if name not in base:
                near = difflib.get_close_matches(name, base, n=1)
                guess = f" Did you mean {near[0]!r}?" if near else ""
                raise UsageError(
                    f"The input set {item.name!r} names the input {name!r}, which the model doesn't have.{guess}",
                    f"The model's inputs: {', '.join(f'{n!r} {list(s)}' for n, s in base.items())}.",
                    id="EP211",
                )
            if len(shape) != len(base[name]):
                raise UsageError(
                    f"The input set {item.name!r} gives {name!r} {len(shape)} axes ({_x(shape)}), but the model's has "
                    f"{len(base[name])}: {_x(base[name])}.",
                    f"For example: --input-set {shlex.quote(f'{item.name}:{name}={_x(base[name])}')}",
                    id="EP211",
                )
        shapes = {**base, **item.shapes}
        if other := seen.get(tuple(shapes.items())):
            raise UsageError(f"The input set {item.name!r} has the same shapes as {other}.", "Leave it out.", id=ID)
        seen[tuple(shapes.items())] = f"the input set {item.name!r}"
        found[item.name] = shapes
    return found


def preprocess_of(
    item: InputSet, inputs: tuple[TensorSpec, ...], declared: Mapping[str, Preprocess], shapes: Mapping[str, Shape]
) -> dict[str, Preprocess]:
    """How pictures become the inputs of a set: as the set declares it, else as without it, for its height and width.

    A size of the declaration that is the input's own follows the set's. Another one, such as the shorter side before a
    crop, can't be guessed: raises `UsageError` with the table to write.
    """
    found = dict(declared)
    for spec in inputs:
        own = declared_for(spec, inputs, item.preprocess)
        before = declared_for(spec, inputs, declared)
        how = own or (before and _resized(before, spec, shapes[spec.name], item.name))
        if how is not None:
            found.pop(ANY_INPUT, None)
            found[spec.name] = how
    known = {spec.name for spec in inputs} | {ANY_INPUT}
    return found | {name: how for name, how in item.preprocess.items() if name not in known}  # refused with the data


def _resized(how: Preprocess, spec: TensorSpec, shape: Shape, name: str) -> Preprocess:
    before, after = _picture(how, spec.shape), _picture(how, shape)
    sizes = {key: getattr(how, key) for key in ("resize", "crop", "pad") if getattr(how, key) is not None}
    if before is None or after is None or before == after or not sizes:
        return how
    if any(size != before for size in sizes.values()):
        written = ", ".join(f"{key} = {list(s) if isinstance(s, tuple) else s}" for key, s in sizes.items())
        raise UsageError(
            f"The input set {name!r} changes the picture of {spec.name!r} from {_x(before)} to {_x(after)}, and its "
            f"declaration has sizes of which edgepack can't tell how they follow: {written}.",
            f'Write them in edgepack.toml under [input-set.{name}.input."{spec.name}"].',
            id=ID,
        )
    return replace(how, **dict.fromkeys(sizes, after))  # type: ignore[arg-type]


def _picture(how: Preprocess, shape: Shape) -> tuple[int, int] | None:
    """Height and width of an input; None for a rank that isn't the layout's."""
    axes = how.layout if len(how.layout) == len(shape) else f"N{how.layout}"
    if len(axes) != len(shape):
        axes = axes.removeprefix("N")
    return (shape[axes.index("H")], shape[axes.index("W")]) if len(axes) == len(shape) else None


def _check_name(name: str, engines: Sequence[str]) -> None:
    taken = {*engines, *Precision}
    if re.fullmatch(NAME, name) is None or len(name) > LONGEST or name in taken:
        why = "is a name of edgepack's own" if name in taken else "is no name for an input set"
        raise UsageError(
            f"{name!r} {why}.",
            f"Take at most {LONGEST} of a-z, 0-9 and -, such as wide or 640; variants are then called ncnn-int8@wide.",
            id=ID,
        )


def _x(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))

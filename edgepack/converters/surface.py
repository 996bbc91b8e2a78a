"""What the scripts of importers share about a model's surface: names, shapes and refusals. Needs nothing installed."""

import difflib
import shlex
from collections.abc import Sequence


class Refused(Exception):
    """What the user is told. ``kind`` is ``model`` or ``usage``."""

    def __init__(self, message: str, hint: str, id: str = "EP301", kind: str = "model") -> None:
        super().__init__(message)
        self.entry = {"kind": kind, "id": id, "message": visible(message), "hint": visible(hint)}


def visible(text: str) -> str:
    """Text with every character that a terminal would act on replaced by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(" .") + ("..." if len(text) > 300 else "")


def fix(
    inputs: Sequence[tuple[str, Sequence[int | None] | None]],
    given: dict[str, Sequence[int]],
    unknown: str = "1x224x224x3",
) -> dict[str, list[int]]:
    """Every input's sizes: the command line's where an axis is open, 1 for an open first axis (the batch).

    `inputs` are (name, axes) with None for an open axis, and for axes where even the rank is open. Raises `Refused`
    for names and sizes that don't fit, and where an axis stays open; `unknown` is the example for an unknown rank.
    """
    names = dict(inputs)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(f"{n} {shown(axes)}" for n, axes in inputs) or "none"
            raise usage(f"The model has no input {name!r}.{guess}", f"Its inputs: {listed}.")
    fixed: dict[str, list[int]] = {}
    still_open: list[tuple[str, Sequence[int | None] | None]] = []
    for name, axes in inputs:
        if name in given:
            check(name, axes, given[name])
            fixed[name] = list(given[name])
        elif axes is None or None in axes[1:]:
            still_open.append((name, axes))
        else:
            fixed[name] = [1 if axis is None else axis for axis in axes]
    if still_open:
        said = "; ".join(
            f"input {name!r} has " + (f"open axes {shown(axes)}" if axes is not None else "no shape at all")
            for name, axes in still_open
        )
        flags = " ".join(
            "--input " + shlex.quote(f"{name}={unknown if axes is None else example(axes)}")
            for name, axes in still_open
        )
        raise Refused(f"{said}: edgepack builds for fixed sizes.", f"Say which, for example: add {flags}", "EP305")
    return fixed


def check(name: str, axes: Sequence[int | None] | None, sizes: Sequence[int]) -> None:
    if axes is None:
        return
    given = "x".join(map(str, sizes))
    if len(axes) != len(sizes):
        raise usage(
            f"--input gives {name!r} {len(sizes)} axes ({given}), but the model's has {len(axes)}: {shown(axes)}.",
            f"For example: --input {shlex.quote(f'{name}={example(axes)}')}",
        )
    if any(axis is not None and axis != size for axis, size in zip(axes, sizes, strict=True)):
        raise usage(
            f"--input gives {name!r} the shape {given}, but the model fixes it to {shown(axes)}.",
            "Only axes that the model leaves open can be chosen.",
        )


def example(axes: Sequence[int | None]) -> str:
    """Sizes that somebody might mean, channels last: batch 1, pictures of 224, sequences of 128."""
    usual = 224 if len(axes) == 4 else 128
    guess = [1 if i == 0 else 3 if (i == 3 and len(axes) == 4) else usual for i in range(len(axes))]
    return "x".join(str(guess[i] if axis is None else axis) for i, axis in enumerate(axes))


def shown(axes: Sequence[int | None] | None) -> str:
    return "(no shape)" if axes is None else "[" + ", ".join("?" if a is None else str(a) for a in axes) + "]"


def distinct(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names, with ``_out`` added to those that are taken already."""
    used, result = set(taken), []
    for name in names:
        while name in used:
            name += "_out"
        used.add(name)
        result.append(name)
    return result


def usage(message: str, hint: str) -> Refused:
    return Refused(message, hint, "EP211", "usage")

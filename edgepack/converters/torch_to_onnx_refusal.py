"""How `torch_to_onnx` refuses. Needs nothing installed: it also says that torch is missing."""

import re


class Refused(Exception):
    """What the user is told. ``kind`` is ``model``, ``usage`` or ``tool``."""

    def __init__(self, message: str, hint: str, id: str = "EP301", kind: str = "model") -> None:
        super().__init__(message)
        self.entry = {"kind": kind, "id": id, "message": visible(message), "hint": visible(hint)}


def visible(text: str) -> str:
    """Text with every character that a terminal would act on replaced by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """The innermost reason: torch wraps errors in pages of general advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or type(error).__name__
    return (text[:300] + "..." if len(text) > 300 else text).rstrip(" .")

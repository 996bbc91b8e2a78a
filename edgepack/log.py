"""Talk on stderr: steps with a duration, notes, warnings. stdout is for results only."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_verbose = False
_quiet = False
_lock = threading.Lock()


def configure(*, verbose: bool = False, quiet: bool = False) -> None:
    """Choose how much is said."""
    global _verbose, _quiet
    _verbose, _quiet = verbose, quiet


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say that a step begins, and how long it took or that it failed."""
    started = time.monotonic()
    _say(f"  ... {name}")
    try:
        yield
    except BaseException:
        _say(f"   {_red('x')}  {name}  {time.monotonic() - started:.1f} s")
        raise
    _say(f"  {_green('ok')}  {name}  {time.monotonic() - started:.1f} s")


def reused(name: str) -> None:
    """Say that a step's output came from the cache."""
    _say(f"   =  {name}  (cached)")


def note(message: str) -> None:
    """Something worth knowing that needs no action."""
    _say(f"note: {message}")


def warn(message: str) -> None:
    """Something the user may want to act on."""
    _say(f"{_yellow('warning')}: {message}", always=True)


def command(argv: Sequence[str]) -> None:
    """The command line of a child, shown with --verbose."""
    if _verbose:
        _say(f"+ {shlex.join(argv)}")


def _say(line: str, *, always: bool = False) -> None:
    if _quiet and not always:
        return
    with _lock:
        try:
            print(line, file=sys.stderr, flush=True)
        except UnicodeEncodeError:
            print(line.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)


def _color(code: str, text: str) -> str:
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        return f"\x1b[{code}m{text}\x1b[0m"
    return text


def _red(text: str) -> str:
    return _color("31", text)


def _green(text: str) -> str:
    return _color("32", text)


def _yellow(text: str) -> str:
    return _color("33", text)

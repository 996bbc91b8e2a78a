"""What transports to another machine share: how a command line is quoted, wrapped, ended and understood.

A program is started as ``sh -c RUN edgepack ARGV...``: the arguments are data of a constant script. The script says
its process id first, so that a program that runs too long can be killed by a second command.
"""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

from edgepack.errors import DeviceFailed
from edgepack.resources import data

RUN = 'echo "edgepack-pid $$" >&2; "$@"'
KEPT = 4 << 20  # bytes of a program's output that are kept: its end, as process.run does
TOO_SHORT = 65  # push.sh's exit code
_PID = re.compile(rb"^edgepack-pid (\d+)\r?\n", re.M)


@functools.cache
def script(name: str) -> str:
    """A constant shell script of templates/device/."""
    return (data("templates") / "device" / f"{name}.sh").read_text()


def command(argv: list[str]) -> str:
    """The shell command line that runs `argv` by `RUN`."""
    return shlex.join(["sh", "-c", RUN, "edgepack", *argv])


def shown(argv: list[str]) -> list[str]:
    """`argv` as people want to read it: without the text of scripts."""
    return ["(script)" if "\n" in word else word for word in argv]


def killing(pid: int) -> str:
    """The shell command line that kills a program started by `command`."""
    return shlex.join(["sh", "-c", script("kill"), "edgepack", str(pid)])


def pushing(remote: str, offset: int) -> str:
    """The shell command line that appends its stdin to `remote` after `offset` bytes and prints the size."""
    return shlex.join(["sh", "-c", script("push"), "edgepack", path(remote), str(offset)])


def pulling(remote: str) -> str:
    """The shell command line that prints the file `remote`."""
    return shlex.join(["sh", "-c", 'export LC_ALL=C; exec cat "$1"', "edgepack", path(remote)])


def path(remote: str) -> str:
    """`remote` in a form that no program takes for an option."""
    return remote if remote.startswith("/") else f"./{remote}"


def pid(stderr: bytes) -> int | None:
    """The process id that `RUN` said, if it came to that."""
    found = _PID.search(stderr)
    return int(found.group(1)) if found else None


def without_pid(stderr: bytes) -> bytes:
    """A program's own stderr."""
    return _PID.sub(b"", stderr, count=1)


def exit_code(code: int) -> int:
    """The exit code as `Completed` tells it: -N for signal N, which a shell calls 128 + N."""
    return 128 - code if 128 < code < 128 + 32 else code


def check_pushed(device: str, local: Path, remote: str, size: int, code: int, stdout: bytes, stderr: bytes) -> None:
    """Raise `DeviceFailed` unless push.sh ended well and `remote` has `size` bytes now."""
    if code == TOO_SHORT:
        raise DeviceFailed(
            f"{device}: {remote} holds {_last(stderr)} bytes, fewer than it should go on from.",
            "Start again from the beginning.",
            id="EP624",
        )
    if code != 0:
        raise _file_error(device, f"{local.name} could not be written to {remote}", stderr, code)
    if stdout.split()[-1:] != [str(size).encode()]:
        raise DeviceFailed(
            f"{device}: {remote} should have {size} bytes now, the device says {_last(stdout) or 'nothing'}.",
            "Another program wrote to it, or its disk is faulty. Try again.",
            id="EP624",
        )


def check_pulled(device: str, remote: str, code: int, stderr: bytes) -> None:
    """Raise `DeviceFailed` unless `pulling` ended well."""
    if code != 0:
        raise _file_error(device, f"{remote} could not be read", stderr, code)


def _file_error(device: str, what: str, stderr: bytes, code: int) -> DeviceFailed:
    why = _last(stderr) or f"exit {code}"
    known = {
        "No space left on device": ("EP620", "Free some space there."),
        "Disk quota exceeded": ("EP620", "Free some space there."),
        "Read-only file system": ("EP621", "Give the device another root folder, on a disk that can be written."),
        "Permission denied": ("EP622", "Give the device another root folder, or another user."),
        "No such file or directory": ("EP623", "Check the path."),
        "nonexistent": ("EP623", "Check the path."),  # dash and busybox say "Directory nonexistent"
    }
    for words, (number, hint) in known.items():
        if words in why:
            return DeviceFailed(f"{device}: {what}: {why}.", hint, id=number)
    return DeviceFailed(f"{device}: {what}: {why}.", "")


def _last(output: bytes) -> str:
    lines = [line.strip() for line in without_pid(output).decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""

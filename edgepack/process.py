"""The one function that starts programs.

Every child runs from an argument list (never a shell string), in its own process group, with a time limit and
optional memory and file-size limits. The group is killed when the limit is hit, when edgepack is interrupted,
and when edgepack itself ends.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack import log
from edgepack.errors import ToolMissing
from edgepack.types import Completed

MEGABYTE = 1 << 20
_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()
_interrupted = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one child: wall time in seconds, address space and largest written file in bytes."""

    seconds: float = 1800.0
    memory: int | None = None
    file_size: int | None = None


class TimedOut(Exception):
    """The child ran longer than its limit and was killed. `seconds` is the limit."""

    def __init__(self, seconds: float, stderr: str) -> None:
        super().__init__(f"killed after {seconds:.0f} s")
        self.seconds = seconds
        self.stderr = stderr


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    limits: Limits = Limits(),
    log_file: Path | None = None,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a program to its end and return its output; a non-zero exit is not an error here.

    `env` replaces the environment when given, `stdin` is what the program reads (default: nothing). `log_file`
    receives the command, its output and exit code. `pass_fds` stay open in the program and its children.
    Raises `ToolMissing` when the program isn't found (naming the PATH searched) and `TimedOut`.
    """
    command = tuple(str(a) for a in argv)
    environment = dict(os.environ if env is None else env)
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        raise ToolMissing(
            f"The program {command[0]!r} was not found.",
            f"Install it or put it on PATH. Searched: {environment.get('PATH', '(empty PATH)')}",
        )
    log.command(command)
    if _interrupted.is_set():
        raise KeyboardInterrupt
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as into:
        into.write(stdin or b"")
        into.seek(0)
        child = subprocess.Popen(
            (program, *command[1:]),
            cwd=cwd,
            env=environment,
            stdin=into if stdin else subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        with _tracked(child):
            _limit(child.pid, limits)
            timed_out = not _ended(child, limits.seconds)
        seconds = time.monotonic() - started
        stdout, stderr = _text(out), _text(err)
    if log_file is not None:
        ending = f"killed after {limits.seconds:.0f} s" if timed_out else f"exit {child.returncode}"
        log_file.write_text(f"+ {shlex.join(command)}\n{stdout}\n{stderr}\n[{ending}, {seconds:.1f} s]\n")
    if _interrupted.is_set():
        raise KeyboardInterrupt
    if timed_out:
        raise TimedOut(limits.seconds, stderr)
    return Completed(argv=command, returncode=child.returncode, stdout=stdout, stderr=stderr, seconds=seconds)


def clean_environment() -> dict[str, str]:
    """The environment for compilers: without the variables that would change what they make."""
    changing = ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH", "CC", "CXX")
    return {k: v for k, v in os.environ.items() if k not in changing} | {
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": "315532800",
    }


def describe_exit(code: int) -> str:
    """Say in words how a program ended: ``exit 3``, or ``signal 11 (SIGSEGV)``."""
    if code >= 0:
        return f"exit {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"


def kill_all() -> None:
    """Kill every running child's group and refuse to start more; for ctrl-C."""
    _interrupted.set()
    with _lock:
        children = list(_running)
    for child in children:
        _kill_session(child)


@contextlib.contextmanager
def _tracked(child: subprocess.Popen[bytes]) -> Iterator[None]:
    with _lock:
        _running.add(child)
    try:
        yield
    finally:
        if child.poll() is None or _interrupted.is_set():
            _kill_session(child)
        _kill_group(child)  # also what the child left behind in its group
        child.wait()
        with _lock:
            _running.discard(child)


def _ended(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the child's end, at most `seconds`. The kernel says when: ``wait(timeout)`` looks 20 times a second."""
    with contextlib.suppress(OSError, AttributeError):  # a kernel before 5.3, another system
        watched = os.pidfd_open(child.pid)
        try:
            poll = select.poll()
            poll.register(watched, select.POLLIN)
            poll.poll(min(seconds * 1000, 2**31 - 1))
        finally:
            os.close(watched)
        seconds = 0
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _kill_session(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and all that it started: ninja gives each of its commands a group of its own."""
    for _ in range(300):  # a process that sits in a system call dies later
        _kill_group(child)
        left = [pid for pid, session in _sessions() if session == child.pid and pid != child.pid]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _sessions() -> Iterator[tuple[int, int]]:
    """Every living process and its session, as far as the system tells."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:4]
            if state not in "ZX":
                yield int(folder.name), int(session)


def _limit(pid: int, limits: Limits) -> None:
    with contextlib.suppress(ProcessLookupError):
        if limits.memory is not None:
            resource.prlimit(pid, resource.RLIMIT_AS, (limits.memory, limits.memory))
        if limits.file_size is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limits.file_size, limits.file_size))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _text(stream: object, keep: int = 4 * MEGABYTE) -> str:
    """The end of a child's output, at most `keep` bytes."""
    assert hasattr(stream, "seek") and hasattr(stream, "read")
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - keep))
    data: bytes = stream.read()
    return data.decode("utf-8", "replace")

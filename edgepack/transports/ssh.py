"""The transport by ssh: one connection, strict host keys, every file as one streamed command.

paramiko is imported when the link is opened. An object serves one thread at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgepack import log, process
from edgepack.cache import out_of_space
from edgepack.errors import DeviceUnreachable
from edgepack.transports import remote as other_side
from edgepack.transports.ssh_settings import OPTIONS, parse_address
from edgepack.types import Completed, Device

if TYPE_CHECKING:
    from edgepack.transports.ssh_link import Link

BLOCK = (1 << 15) - 64  # the most that fits one packet to OpenSSH: larger ones are cut and copied by paramiko
AHEAD = 3 << 18  # bytes that may be under way: what a cut link can lose, so below the 1 MiB that a resume may re-send
_TICK = 0.2  # seconds between two looks at the link
_ENDING = 5.0  # seconds that killing a program on the device may take
_LINGER = 2.0  # seconds to wait for output after a program's end: a child of it may keep the stream open


class Ssh:
    """Runs, pushes and pulls by ssh; ``address`` is ``user@host[:port]`` or a host of ~/.ssh/config."""

    name = "ssh"
    version = "1"
    options: ClassVar[Mapping[str, str]] = OPTIONS

    def __init__(self, device: Device) -> None:
        parse_address(device.address)
        self.device = device
        self._link: Link | None = None

    def run(self, argv: list[str], timeout: float, *, stdin: bytes | None = None) -> Completed:
        """Run a program on the device; `timeout` in seconds, then it is killed there."""
        log.command(("ssh", self.device.name, *other_side.shown(argv)))
        started = time.monotonic()
        stdout, stderr = _Kept(), _Kept()
        feed = [stdin[at : at + BLOCK] for at in range(0, len(stdin), BLOCK)] if stdin else ()
        code = self._execute(other_side.command(argv), feed, stdout, stderr, timeout)
        return Completed(
            argv=tuple(argv),
            returncode=other_side.exit_code(code),
            stdout=stdout.text(),
            stderr=other_side.without_pid(stderr.data()).decode("utf-8", "replace"),
            seconds=time.monotonic() - started,
        )

    def push(self, local: Path, remote: str, *, offset: int = 0) -> None:
        """Append a file's bytes from `offset` on to the file `remote`."""
        stdout, stderr = _Kept(), _Kept()
        size = local.stat().st_size
        code = self._execute(other_side.pushing(remote, offset), _blocks(local, offset, size), stdout, stderr, None)
        other_side.check_pushed(self.device.name, local, remote, size, code, stdout.data(), stderr.data())

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the device."""
        scratch, stderr = local.with_name(f".{local.name}.part"), _Kept()
        try:
            with out_of_space(local.parent), scratch.open("wb") as file:
                code = self._execute(other_side.pulling(remote), (), file.write, stderr, None)
            other_side.check_pulled(self.device.name, remote, code, stderr.data())
            scratch.replace(local)
        finally:
            scratch.unlink(missing_ok=True)

    def close(self) -> None:
        """Hang up."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _execute(
        self,
        command: str,
        feed: Iterable[bytes | memoryview],
        stdout: Callable[[bytes], Any],
        stderr: _Kept,
        timeout: float | None,
    ) -> int:
        """Run one command line in a session of its own; returns its exit code (255 where the server told none)."""
        end = None if timeout is None else time.monotonic() + timeout
        link = self._open()
        session = self._session(link, command)
        _Worker(lambda worker: _send(worker, session, link, feed)).start()
        outputs = [
            _Worker(lambda worker: _receive(worker, session.recv, link, stdout)),
            _Worker(lambda worker: _receive(worker, session.recv_stderr, link, stderr)),
        ]
        for worker in outputs:
            worker.start()
        try:
            while not session.status_event.wait(_TICK if end is None else min(_TICK, max(0.0, end - time.monotonic()))):
                link.check()
                _raise_failure(outputs)
                if end is not None and time.monotonic() >= end and timeout is not None:
                    self._kill(link, stderr)
                    raise process.TimedOut(timeout, other_side.without_pid(stderr.data()).decode("utf-8", "replace"))
            return self._ended(link, session, outputs)
        except DeviceUnreachable:
            self.close()
            raise
        except KeyboardInterrupt:
            with contextlib.suppress(Exception):  # the interruption counts; this is the best that can be done
                self._kill(link, stderr)
            raise
        finally:
            session.close()

    def _open(self) -> Link:
        if self._link is None or not self._link.transport.is_active():
            self.close()
            from edgepack.transports.ssh_link import open_link

            self._link = open_link(self.device)
        self._link.heard()
        return self._link

    def _session(self, link: Link, command: str, timeout: float | None = None) -> Any:
        import paramiko

        seconds = timeout or link.host.connect_timeout
        try:
            session = link.transport.open_session(timeout=seconds)
            session.settimeout(seconds)
            session.exec_command(command)
            session.settimeout(None)
        except paramiko.ChannelException as error:
            raise DeviceUnreachable(
                f"{self.device.name}: the ssh server opened no session: {error.text}.",
                "It allows too few at once (MaxSessions), or none.",
                id="EP518",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            stands = link.transport.is_active()
            self.close()
            if stands:
                raise DeviceUnreachable(
                    f"{self.device.name}: the ssh server didn't answer within {seconds:g} s, although the connection "
                    "stands.",
                    "The device hangs, or the network between was cut. Try again.",
                    id="EP521",
                ) from error
            raise link.lost() from error
        return session

    def _ended(self, link: Link, session: Any, outputs: list[_Worker]) -> int:
        """Wait for the rest of the output; the exit code."""
        for worker in outputs:
            before = -1
            while worker.is_alive() and before != worker.bytes:
                before = worker.bytes
                worker.join(_LINGER)
        _raise_failure(outputs)
        if session.exit_status == -1 and not link.transport.is_active():
            raise link.lost()
        return 255 if session.exit_status == -1 else int(session.exit_status)

    def _kill(self, link: Link, stderr: _Kept) -> None:
        pid = other_side.pid(stderr.head())
        if pid is None:
            return  # not started yet; closing the session ends the shell
        killer = self._session(link, other_side.killing(pid), _ENDING)
        try:
            end = time.monotonic() + _ENDING
            while not killer.status_event.wait(_TICK) and time.monotonic() < end:
                link.check()
        finally:
            killer.close()


class _Kept:
    """The end of a stream, at most `remote.KEPT` bytes; written by one thread, read by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data = bytearray()
        self._head = b""

    def __call__(self, block: bytes) -> None:
        with self._lock:
            if len(self._head) < 256:
                self._head += block[: 256 - len(self._head)]
            self._data += block
            if len(self._data) > 2 * other_side.KEPT:
                del self._data[: -other_side.KEPT]

    def head(self) -> bytes:
        with self._lock:
            return self._head

    def data(self) -> bytes:
        with self._lock:
            return bytes(self._data[-other_side.KEPT :])

    def text(self) -> str:
        return self.data().decode("utf-8", "replace")


def _blocks(path: Path, offset: int, size: int) -> Iterator[memoryview]:
    """The bytes of a file from `offset` to `size`, which it must not change meanwhile."""
    with path.open("rb") as file:
        file.seek(offset)
        left = size - offset
        while left > 0 and (block := file.read(min(1 << 20, left))):
            left -= len(block)
            view = memoryview(block)
            yield from (view[at : at + BLOCK] for at in range(0, len(view), BLOCK))


class _Worker(threading.Thread):
    """A thread that moves bytes; its failure is kept, because a session that ended early tells why by its exit code."""

    def __init__(self, move: Callable[[_Worker], None]) -> None:
        super().__init__(daemon=True, name="edgepack-ssh")
        self._move = move
        self.bytes = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        """Move until the end."""
        try:
            self._move(self)
        except Exception as error:
            self.failure = error


def _send(worker: _Worker, session: Any, link: Link, feed: Iterable[bytes | memoryview]) -> None:
    try:
        for block in feed:
            with session.lock:  # the window that the server opens; what it adds later is only what it has taken
                session.out_window_size = min(session.out_window_size, AHEAD)
            session.sendall(block)
            worker.bytes += len(block)
            link.heard()
    finally:
        session.shutdown_write()  # also when a file could not be read to its end: the size is checked there


def _raise_failure(outputs: list[_Worker]) -> None:
    """Raise what stopped a stream on this machine, such as a full disk; the device would wait for ever."""
    for worker in outputs:
        if worker.failure is not None:
            raise worker.failure


def _receive(worker: _Worker, read: Callable[[int], bytes], link: Link, write: Callable[[bytes], Any]) -> None:
    while block := read(1 << 17):
        link.heard()
        write(block)
        worker.bytes += len(block)

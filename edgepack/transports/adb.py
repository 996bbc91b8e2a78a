"""The transport by adb: an Android device, or anything that runs adbd.

Everything goes through the adb server (adb_server.py), always to one serial. Programs run by the shell_v2 protocol,
which keeps exit codes and stderr; files are streamed by it too, because adb's own push starts anew after every cut. An
object serves one thread at a time.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgepack import log, process
from edgepack.cache import out_of_space
from edgepack.errors import DeviceFailed, DeviceUnreachable, UsageError
from edgepack.transports import remote as other_side
from edgepack.transports.adb_server import Refused, Server
from edgepack.types import Completed, Device

BLOCK = 1 << 18
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\[\]-]{0,127}")
_TICK = 0.2
_STATES = {
    "unauthorized": (
        "has not allowed this computer to debug it",
        "Unlock its screen and accept the question there; if none shows, switch USB debugging off and on.",
        "EP534",
    ),
    "offline": (
        "is offline: adb sees it, but it doesn't answer",
        "Pull the plug and put it back, or: adb reconnect offline",
        "EP535",
    ),
}


class Adb:
    """Runs, pushes and pulls by adb; ``address`` is the serial, or empty where one device only is attached."""

    name = "adb"
    version = "1"
    options: ClassVar[Mapping[str, str]] = {
        "server_host": "a string",
        "server_port": "a whole number",
        "connect_timeout": "a number",
        "silence_timeout": "a number",
    }

    def __init__(self, device: Device) -> None:
        if device.address and not _SERIAL.fullmatch(device.address):
            raise UsageError(
                f"{device.address!r} is no adb serial.", "See the first column of `adb devices`.", id="EP251"
            )
        self.device = device
        self._patience = float(device.options.get("connect_timeout", 10))
        self._silence = float(device.options.get("silence_timeout", 30))
        self._server = Server(device, self._patience)
        self._found = ""  # the serial, once the device is known to be ready

    def run(self, argv: list[str], timeout: float, *, stdin: bytes | None = None) -> Completed:
        """Run a program on the device; `timeout` in seconds, then it is killed there."""
        log.command(("adb", "-s", self.device.address, "shell", *other_side.shown(argv)))
        started = time.monotonic()
        stdout, stderr = bytearray(), bytearray()
        feed = [stdin[at : at + BLOCK] for at in range(0, len(stdin), BLOCK)] if stdin else ()
        code = self._execute(other_side.command(argv), feed, stdout.extend, stderr, timeout)
        return Completed(
            argv=tuple(argv),
            returncode=other_side.exit_code(code),
            stdout=stdout[-other_side.KEPT :].decode("utf-8", "replace"),
            stderr=other_side.without_pid(bytes(stderr))[-other_side.KEPT :].decode("utf-8", "replace"),
            seconds=time.monotonic() - started,
        )

    def push(self, local: Path, remote: str, *, offset: int = 0) -> None:
        """Append a file's bytes from `offset` on to the file `remote`."""
        stdout, stderr = bytearray(), bytearray()
        size = local.stat().st_size
        feed = _blocks(local, offset, size)
        code = self._execute(other_side.pushing(remote, offset), feed, stdout.extend, stderr, None)
        other_side.check_pushed(self.device.name, local, remote, size, code, bytes(stdout), bytes(stderr))

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the device."""
        scratch, stderr = local.with_name(f".{local.name}.part"), bytearray()
        try:
            with out_of_space(local.parent), scratch.open("wb") as file:
                code = self._execute(other_side.pulling(remote), (), file.write, stderr, None)
            other_side.check_pulled(self.device.name, remote, code, bytes(stderr))
            scratch.replace(local)
        finally:
            scratch.unlink(missing_ok=True)

    def close(self) -> None:
        """Forget the device; the adb server keeps running, as it does for `adb`."""
        self._found = ""

    def _execute(
        self,
        command: str,
        feed: Iterable[bytes | memoryview],
        stdout: Callable[[bytes], Any],
        stderr: bytearray,
        timeout: float | None,
    ) -> int:
        """Run one command line; its exit code."""
        end = None if timeout is None else time.monotonic() + timeout
        shell = self._shell(command)
        threading.Thread(target=_send, args=(shell, feed), daemon=True, name="edgepack-adb").start()
        try:
            while True:
                for kind, block in self._packets(shell):
                    if kind == STDOUT:
                        stdout(block)
                    elif kind == STDERR:
                        stderr += block
                    elif kind == EXIT:
                        return block[0]
                if end is not None and timeout is not None and time.monotonic() >= end:
                    self._kill(stderr)
                    raise process.TimedOut(timeout, other_side.without_pid(bytes(stderr)).decode("utf-8", "replace"))
                if time.monotonic() - shell.moved > self._silence:
                    self._still_there()
                    shell.moved = time.monotonic()
        except KeyboardInterrupt:
            with contextlib.suppress(Exception):  # the interruption counts; this is the best that can be done
                self._kill(stderr)
            raise
        finally:
            shell.close()

    def _packets(self, shell: _Shell) -> list[tuple[int, bytes]]:
        try:
            return shell.receive(_TICK)
        except (EOFError, OSError) as error:
            self._found = ""
            states = self._states()
            if states.get(self.device.address or "", "device") != "device":
                self._attached()  # tells what it is now
            raise DeviceUnreachable(
                f"{self.device.name}: the link by adb was lost: {error}.",
                "The device restarted, or its cable or network was cut. Try again.",
                id="EP520",
            ) from error

    def _kill(self, stderr: bytearray) -> None:
        if (pid := other_side.pid(bytes(stderr[:256]))) is not None:
            self._wait(self._shell(other_side.killing(pid)))

    def _still_there(self) -> None:
        """Raise `DeviceUnreachable` unless the device still starts programs."""
        self._wait(self._shell("true"))

    def _wait(self, shell: _Shell) -> None:
        end = time.monotonic() + self._patience
        try:
            while not any(kind == EXIT for kind, _ in self._packets(shell)):
                if time.monotonic() > end:
                    raise self._silent()
        finally:
            shell.close()

    def _silent(self) -> DeviceUnreachable:
        return DeviceUnreachable(
            f"{self.device.name}: nothing came from the device within {self._patience:g} s, although adb sees it.",
            "It hangs, or its network was cut. Try again.",
            id="EP521",
        )

    # --- finding it -------------------------------------------------------------------------------------------------

    def _shell(self, command: str) -> _Shell:
        """Start a command line on the device."""
        service = f"shell,v2,raw:{command}"
        if len(service.encode()) > 0xFFFF:
            raise DeviceFailed(f"{self.device.name}: a command of over 64 KB is more than adb takes.", "")
        return _Shell(self._service(service))

    def _service(self, service: str) -> socket.socket:
        """A connection to one of adbd's services."""
        serial = self._attached()
        try:
            return self._server.open(serial, service)
        except TimeoutError as error:
            raise self._silent() from error
        except (Refused, OSError) as error:
            self._found = ""
            raise DeviceUnreachable(
                f"{self.device.name}: adb could not start a program on {serial}: {error}.",
                "See `adb devices`; perhaps: adb reconnect",
                id="EP520",
            ) from error

    def _attached(self) -> str:
        """The serial of the device, which is ready to run programs. Raises `DeviceUnreachable`."""
        if self._found:
            return self._found
        states = self._states()
        wanted = self.device.address
        if not wanted and len(states) > 1:
            raise DeviceUnreachable(
                f"{self.device.name}: {len(states)} devices are attached and the entry has no address: "
                f"{', '.join(sorted(states))}.",
                "Set address to one of these serials.",
                id="EP533",
            )
        serial = wanted or next(iter(states), "")
        if ":" in serial and states.get(serial, "offline") == "offline":
            states = self._connect(serial)
        if not states:
            raise DeviceUnreachable(
                f"{self.device.name}: adb sees no device.",
                "Plug it in and switch USB debugging on, or: adb connect HOST:PORT",
                id="EP531",
            )
        if serial not in states:
            raise DeviceUnreachable(
                f"{self.device.name}: adb sees no device {serial}; there is {', '.join(sorted(states))}.",
                "Plug it in, or correct the address.",
                id="EP532",
            )
        state = states[serial]
        if state != "device":
            usual = (f"is in the state {state!r}", "Start it normally; programs run on it only then.", "EP536")
            what, hint, code = _STATES.get(state, usual)
            raise DeviceUnreachable(f"{self.device.name}: {serial} {what}.", hint, id=code)
        self._check_features(serial)
        self._found = serial
        return serial

    def _check_features(self, serial: str) -> None:
        features = self._server.ask(f"host-serial:{serial}:features").split(",")
        if "shell_v2" not in features:
            raise DeviceUnreachable(
                f"{self.device.name}: adbd on {serial} is too old: it doesn't tell how a program ended (no shell_v2).",
                "Android 7 is the oldest that works.",
                id="EP537",
            )

    def _connect(self, serial: str) -> dict[str, str]:
        """Ask the server to connect to HOST:PORT; what is attached then."""
        answer = self._server.ask(f"host:connect:{serial}")
        states = self._states()
        if serial not in states:
            raise DeviceUnreachable(
                f"{self.device.name}: adb could not connect to {serial}: {answer.strip()}.",
                "Is it in this network, with debugging over the network switched on?",
                id="EP538",
            )
        return states

    def _states(self) -> dict[str, str]:
        """Serial -> state of everything that the server sees."""
        lines = [line.split("\t") for line in self._server.ask("host:devices").splitlines()]
        return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}


class _Shell:
    """One program on the device, by the packets of shell_v2: kind (1 byte), length (4 bytes), data."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self.moved = time.monotonic()  # when bytes last moved

    def receive(self, seconds: float) -> list[tuple[int, bytes]]:
        """The packets that have come, waiting for at most `seconds`. Raises `EOFError` when the link is gone."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return []
        block = self._socket.recv(1 << 18)
        if not block:
            raise EOFError("the device closed it")
        self.moved = time.monotonic()
        self._buffer += block
        packets, at = [], 0
        while len(self._buffer) - at >= 5:
            kind, length = struct.unpack_from("<BI", self._buffer, at)
            if len(self._buffer) - at - 5 < length:
                break
            packets.append((kind, bytes(self._buffer[at + 5 : at + 5 + length])))
            at += 5 + length
        del self._buffer[:at]
        return packets

    def send(self, kind: int, block: bytes | memoryview) -> None:
        """Send one packet."""
        head = struct.pack("<BI", kind, len(block))
        sent = self._socket.sendmsg([head, block])  # both at once, and neither copied
        if sent < len(head) + len(block):
            self._socket.sendall(head[sent:])
            self._socket.sendall(memoryview(block)[max(0, sent - len(head)) :])
        self.moved = time.monotonic()

    def close(self) -> None:
        """Hang up; the program's stdin and stdout close."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # also wakes the thread that sends
        self._socket.close()


def _send(shell: _Shell, feed: Iterable[bytes | memoryview]) -> None:
    with contextlib.suppress(OSError, ValueError):  # a program that ended early: its exit code tells why
        try:
            for block in feed:
                shell.send(STDIN, block)
        finally:
            shell.send(CLOSE_STDIN, b"")  # also when a file could not be read to its end: the size is checked there


def _blocks(path: Path, offset: int, size: int) -> Iterator[memoryview]:
    """The bytes of a file from `offset` to `size`, which it must not change meanwhile.

    They are its pages, which only the kernel reads: of a file that shrinks, sending is an `OSError` (EFAULT).
    """
    if offset < size:
        with path.open("rb") as file:
            pages = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        yield from (pages[at : min(at + BLOCK, size)] for at in range(offset, size, BLOCK))

"""The adb server, which knows the devices: its questions and answers, and starting one where none runs.

A question is its length in four hexadecimal digits and its text; the answer OKAY or FAIL, and mostly a text of the same
form. adbutils, whose copy of adb is used where there is no other, would take 10 ms longer for each.
"""

from __future__ import annotations

import os
import socket

from edgepack import process
from edgepack.errors import DeviceUnreachable, ToolMissing
from edgepack.types import Device


class Refused(Exception):
    """The server answered FAIL, or what is no answer."""


class Server:
    """The adb server of a device; each question is a connection."""

    def __init__(self, device: Device, patience: float) -> None:
        options = device.options
        self.device = device
        self.host = options.get("server_host", os.environ.get("ANDROID_ADB_SERVER_HOST", "127.0.0.1"))
        self.port = options.get("server_port", int(os.environ.get("ANDROID_ADB_SERVER_PORT", 5037)))
        self.patience = patience

    def ask(self, question: str) -> str:
        """The answer to a question. Raises `DeviceUnreachable`."""
        try:
            with self._connect() as sock:
                _say(sock, question)
                return _text(sock)
        except TimeoutError as error:
            raise DeviceUnreachable(
                f"{self.device.name}: the adb server gave no answer within {self.patience:g} s.",
                "Try: adb kill-server",
                id="EP530",
            ) from error
        except (Refused, OSError) as error:
            raise DeviceUnreachable(
                f"{self.device.name}: the adb server refused {question!r}: {error}.", "Try: adb kill-server", id="EP530"
            ) from error

    def open(self, serial: str, service: str) -> socket.socket:
        """A connection to a service of a device's adbd. Raises `Refused`, `TimeoutError` and `OSError`."""
        sock = self._connect()
        try:
            _say(sock, f"host:transport:{serial}")
            _say(sock, service)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connect(self) -> socket.socket:
        """A connection to the server; one on this machine is started when it doesn't run."""
        try:
            sock = socket.create_connection((self.host, self.port), timeout=min(3.0, self.patience))
        except OSError as error:
            if self.host not in ("127.0.0.1", "localhost", "::1"):
                raise DeviceUnreachable(
                    f"{self.device.name}: there is no adb server at {self.host}:{self.port}: {error}.",
                    "Start one there: adb -a nodaemon server",
                    id="EP530",
                ) from error
            _start(self.port)
            sock = socket.create_connection((self.host, self.port), timeout=self.patience)
        sock.settimeout(self.patience)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def _say(sock: socket.socket, question: str) -> None:
    text = question.encode()
    sock.sendall(b"%04x" % len(text) + text)
    status = _exactly(sock, 4)
    if status != b"OKAY":
        raise Refused(_text(sock) if status == b"FAIL" else f"it said {status!r}")


def _text(sock: socket.socket) -> str:
    length = _exactly(sock, 4)
    try:
        return _exactly(sock, int(length, 16)).decode("utf-8", "replace")
    except ValueError:
        raise Refused(f"it said {length!r}") from None


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = sock.recv(size - len(data))
        if not block:
            raise Refused("it hung up")
        data += block
    return data


def _start(port: int) -> None:
    import adbutils

    try:
        program = adbutils.adb_path()
    except adbutils.AdbError as error:
        raise ToolMissing("There is no adb on this machine.", "Install it: apt install adb") from error
    done = process.run([program, "-P", str(port), "start-server"], limits=process.Limits(seconds=30))
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise ToolMissing(f"The adb server can't be started on port {port}: {said}", "Is the port taken?", id="EP403")

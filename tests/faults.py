"""A small TCP proxy on loopback that does to a connection what bad networks do. Counts the bytes that it passed."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Faults:
    """What happens to each connection; may be changed while the proxy runs."""

    delay: float = 0.0  # seconds before every block
    rate: float | None = None  # bytes a second, each way
    cut_up: int | None = None  # hang up after so many bytes to the server (of all connections together)
    cut_down: int | None = None  # ... from the server
    reset: bool = False  # hang up with RST instead of FIN
    stall_up: int | None = None  # pass so many bytes to the server, then nothing, and keep the connection
    stall_down: int | None = None  # ... from the server
    greeting: bytes | None = None  # say this in the server's place and nothing else
    stalled: bool = False  # pass nothing at all from now on
    up: int = 0  # bytes passed to the server
    down: int = 0
    connections: int = 0
    sockets: list[socket.socket] = field(default_factory=list)


@contextlib.contextmanager
def proxy(server: tuple[str, int] | Path, faults: Faults | None = None) -> Iterator[tuple[int, Faults]]:
    """Forward a free port of 127.0.0.1 to `server` (an address or a Unix socket); yields (port, faults)."""
    faults = faults or Faults()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if faults.rate:  # a slow link has no large buffers behind it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        threading.Thread(target=_accept, args=(listener, server, faults), daemon=True).start()
        try:
            yield listener.getsockname()[1], faults
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for each in faults.sockets:
                _close(each)


@contextlib.contextmanager
def silence() -> Iterator[int]:
    """A port of 127.0.0.1 on which a connection is never answered, as behind a firewall that drops packets."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # the kernel drops what doesn't fit its queue
        port = listener.getsockname()[1]
        waiting = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", port))
            waiting.append(filler)
        time.sleep(0.1)
        try:
            yield port
        finally:
            for each in waiting:
                each.close()


def _accept(listener: socket.socket, server: tuple[str, int] | Path, faults: Faults) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        faults.connections += 1
        faults.sockets.append(client)
        if faults.greeting is not None:
            client.sendall(faults.greeting)
            continue
        try:
            upstream = socket.socket(socket.AF_UNIX) if isinstance(server, Path) else socket.socket()
            upstream.connect(str(server) if isinstance(server, Path) else server)
        except OSError:
            client.close()
            continue
        faults.sockets.append(upstream)
        for source, target, way in ((client, upstream, "up"), (upstream, client, "down")):
            threading.Thread(target=_pass, args=(source, target, way, faults), daemon=True).start()


def _pass(source: socket.socket, target: socket.socket, way: str, faults: Faults) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 14 if faults.rate else 1 << 16):
            if faults.delay:
                time.sleep(faults.delay)
            if faults.rate:
                time.sleep(len(block) / faults.rate)
            passed = getattr(faults, way)
            cut, stall = getattr(faults, f"cut_{way}"), getattr(faults, f"stall_{way}")
            if stall is not None and passed + len(block) > stall:
                target.sendall(block[: max(0, stall - passed)])
                faults.stalled = True
            if faults.stalled:
                time.sleep(3600)
            if cut is not None and passed + len(block) >= cut:
                target.sendall(block[: cut - passed])
                setattr(faults, way, cut)
                setattr(faults, f"cut_{way}", None)  # the next connection works
                _hang_up(source, target, faults.reset)
                return
            target.sendall(block)
            setattr(faults, way, passed + len(block))
        target.shutdown(socket.SHUT_WR)


def _hang_up(source: socket.socket, target: socket.socket, reset: bool) -> None:
    for each in (source, target):
        if reset:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _close(each)


def _close(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        each.close()

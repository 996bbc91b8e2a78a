"""The steps of an install on the device: one constant shell script and one round trip each, and what they answer."""

from __future__ import annotations

import functools
import getpass
import os
import re
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack import process
from edgepack.cache import sha256_text
from edgepack.errors import Busy, DeviceFailed
from edgepack.interfaces import Transport
from edgepack.shipment import Shipment
from edgepack.transports.remote import script
from edgepack.types import Completed, Device

SECONDS = 120.0  # for a step that does little
SLOWEST_HASH = 2_000_000  # bytes a second that the slowest board hashes and flushes
BUSY = 9  # a step's exit code when somebody else has the lock


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a step said: lines of a word and its values."""

    lines: tuple[tuple[str, ...], ...]

    def all(self, word: str) -> list[str]:
        """The values of every such line."""
        return [line[1] for line in self.lines if line[0] == word and len(line) > 1]

    def get(self, word: str) -> str:
        """The value of such a line, "" when there is none."""
        return next(iter(self.all(word)), "")

    def pairs(self, word: str) -> list[tuple[str, str]]:
        """The two values of every such line."""
        return [(line[1], line[2]) for line in self.lines if line[0] == word and len(line) == 3]

    def pair(self, word: str) -> tuple[str, str]:
        """The two values of such a line, ("", "") when there is none."""
        return next(iter(self.pairs(word)), ("", ""))


class Steps:
    """Runs the scripts of templates/device/ in edgepack's folder on a device."""

    def __init__(self, device: Device, transport: Transport) -> None:
        from edgepack.probe import root

        self.device = device
        self.transport = transport
        self.root = root(device)
        self.owner = owner()
        self.stopped = False

    def look(self, shipment: Shipment) -> Answer:
        """``current``, ``previous``, and ``whole`` when every byte of the shipment is there. Changes nothing."""
        argv = [shipment.name, shipment.digest, sha256_text(shipment.listing)]
        return self._step("look", argv, size=_size(shipment))

    def begin(self, shipment: Shipment, lease: int) -> Answer:
        """Take the lock; ``have`` and ``part`` objects, ``links``, ``free`` KiB. Without a lease: only look."""
        return self._locking("begin", lease, [], shipment.listing.encode(), _size(shipment))

    def lock(self, lease: int) -> None:
        """Take the lock. Raises `Busy`."""
        self._locking("lock", lease, [])

    def receive(self, lease: int, tar: bytes) -> None:
        """Unpack a tar in the folder."""
        self._step("receive", [str(lease)], tar, len(tar))

    def folder(self, lease: int, path: str) -> None:
        """Make a folder in the folder."""
        self._step("folder", [str(lease), path])

    def commit(self, lease: int, shipment: Shipment) -> list[str]:
        """Put the bundle together of what arrived; returns the objects that are missing or have other bytes."""
        argv = [str(lease), shipment.digest, sha256_text(shipment.listing)]
        return self._step("commit", argv, size=_size(shipment)).all("missing")

    def activate(self, lease: int, shipment: Shipment) -> Answer:
        """Switch, remove what nobody needs, give the lock back."""
        return self._step("activate", [str(lease), shipment.name, shipment.digest])

    def abandon(self, lease: int) -> None:
        """Remove what nobody needs, give the lock back."""
        self._step("abandon", [str(lease)])

    def rollback(self, lease: int, model: str) -> Answer:
        """``switched FROM TO``, or why not. Takes the lock and gives it back."""
        return self._locking("rollback", lease, [model])

    def release(self, run: str = "") -> None:
        """Give the lock back, if it is ours."""
        self._step("release", [run] if run else [])

    def text(self, name: str, *args: str) -> str:
        """A script's output as it is."""
        done = self.call(name, list(args))
        self._check(name, done)
        return done.stdout

    def call(self, name: str, args: Sequence[str], stdin: bytes | None = None, timeout: float = SECONDS) -> Completed:
        """Run a script to its end, whatever that is. Raises `process.TimedOut` and `DeviceUnreachable`."""
        if self.stopped and name != "release":
            raise KeyboardInterrupt
        argv = ["sh", "-c", _text(name), "edgepack", self.root, self.owner, *args]
        return self.transport.run(argv, timeout, stdin=stdin)

    def _locking(self, name: str, lease: int, args: list[str], stdin: bytes | None = None, size: int = 0) -> Answer:
        """A step that takes the lock, also from an owner on this machine who is dead."""
        try:
            return self._step(name, [str(lease), "", *args], stdin, size)
        except _Held as held:
            if not held.dead:
                raise
            return self._step(name, [str(lease), held.text, *args], stdin, size)

    def _step(self, name: str, args: Sequence[str], stdin: bytes | None = None, size: int = 0) -> Answer:
        timeout = SECONDS + size / SLOWEST_HASH
        try:
            done = self.call(name, args, stdin, timeout)
        except process.TimedOut:
            raise DeviceFailed(
                f"{self.device.name}: the step `{name}` was killed after {timeout:.0f} s.",
                "The old version is still active. Is the device's disk very slow or faulty?",
                id="EP606",
            ) from None
        self._check(name, done)
        return Answer(lines=tuple(tuple(line.split(" ")) for line in done.stdout.splitlines()))

    def _check(self, name: str, done: Completed) -> None:
        if done.returncode == 0:
            return
        busy = next((line.split(" ")[1:] for line in done.stdout.splitlines() if line.startswith("busy ")), None)
        if done.returncode == BUSY and busy is not None:
            raise _Held(self.device.name, self.root, busy, lost=name not in ("begin", "lock", "rollback"))
        words = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message").strip()
        kept = "The old version is still active."
        if "No space left" in done.stderr or "quota exceeded" in done.stderr:
            message, hint, code = (
                "ran out of space",
                "Free some space there; the next deploy goes on from here.",
                "EP620",
            )
        elif "Read-only file system" in done.stderr:
            message, hint, code = "can't write to its disk", "Give it another `root`, or mount it writable.", "EP621"
        else:
            message = f"failed in the step `{name}` ({process.describe_exit(done.returncode)})"
            hint, code = "The same command tries again from where it stopped.", "EP606"
        raise DeviceFailed(f"{self.device.name} {message}: {words}", f"{kept} {hint}", id=code)


class _Held(Busy):
    """`text` is the lock's; `dead` says that its owner was a process of this machine that is gone."""

    def __init__(self, device: str, root: str, words: list[str], *, lost: bool) -> None:
        self.text = words[0] if words else ""
        holder, _, deadline = self.text.partition(":")
        person, pid, machine = [*holder.split(","), "", "", ""][:3]
        ours = machine == _machine() and machine != "" and pid.isdigit()
        self.dead = ours and not lost and not Path("/proc", pid).exists()
        seconds = deadline.rpartition(":")[2]
        up = words[1] if len(words) > 1 else ""
        left = f", for at most {int(seconds) - int(up)} s more" if seconds.isdigit() and up.isdigit() else ""
        what = "was taken over while this deploy was slow: it is held" if lost else "is held"
        super().__init__(
            f"{device} {what} by {person or 'somebody'} (process {pid or '?'}{left}).",
            f"Wait for it. If nobody is at work there, remove the link {root}/lock on the device.",
            id="EP902",
        )


@functools.cache
def _machine() -> str:
    """This boot of this machine, as far as process ids mean the same; "" where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return sha256_text(boot + str(Path("/proc/self/ns/pid").readlink()))[:12]
    except OSError:
        return ""


def owner() -> str:
    """Who holds a lock: ``user@host,process,machine,token``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    person = re.sub(r"[^A-Za-z0-9._@-]", "_", f"{user}@{socket.gethostname()}")
    return f"{person},{os.getpid()},{_machine()},{uuid.uuid4().hex[:12]}"


def _size(shipment: Shipment) -> int:
    return sum(file.size for file in shipment.files)


@functools.cache
def _text(name: str) -> str:
    """A script as it is sent: with what it shares, without comments and indentation."""
    parts = ["common", "switch", name] if name in ("activate", "abandon", "rollback") else ["common", name]
    lines = (line.strip() for part in parts for line in script(part).splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))

"""Which ssh host keys are trusted: never one that nobody confirmed.

edgepack writes to its own file in the user's configuration folder. What that says of a host is final; of other hosts
the user's and the system's OpenSSH files are asked, which are only ever read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import DeviceUnreachable, UsageError
from edgepack.resources import config_root

if TYPE_CHECKING:
    from paramiko import PKey

SYSTEM = Path("/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True, kw_only=True)
class KnownHost:
    """One line of a known_hosts file: where it stands, the names it is for, its key's type and bytes."""

    file: Path
    line: int
    names: tuple[str, ...]
    revoked: bool
    key_type: str
    key: bytes

    def about(self, name: str) -> bool:
        """Whether the line is about `name` (``host`` or ``[host]:port``); it may hold it as a salted hash."""
        return any(name == each or _hashed(name, each) for each in self.names)


def own_file() -> Path:
    """The file that `devices trust` writes."""
    return config_root() / "known_hosts"


def host_name(host: str, port: int) -> str:
    """What known_hosts calls a host: the port is named unless it is ssh's own."""
    return host if port == 22 else f"[{host}]:{port}"


def fingerprint(key: bytes) -> str:
    """The fingerprint of a public key's bytes, as `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def known(name: str, file: Path | None = None) -> list[KnownHost]:
    """What is known of the host `name`: by `file` alone where given, else by our own file, else by OpenSSH's."""
    for files in [(file,)] if file else [(own_file(),), (Path("~/.ssh/known_hosts").expanduser(), SYSTEM)]:
        found = [entry for each in files for entry in read(each) if entry.about(name)]
        if found:
            return found
    return []


def check(device: str, name: str, key: PKey, file: Path | None = None) -> None:
    """Raise `DeviceUnreachable` unless `key` is the one known of the host `name`."""
    entries = known(name, file)
    if any(entry.revoked and entry.key == key.asbytes() for entry in entries):
        raise DeviceUnreachable(
            f"{device}: the host key {fingerprint(key.asbytes())} of {name} is marked as revoked.",
            "Find out why before you connect.",
            id="EP512",
        )
    entries = [entry for entry in entries if not entry.revoked]
    if any(entry.key == key.asbytes() for entry in entries):
        return
    if not entries:
        raise DeviceUnreachable(
            f"{device}: {name} shows the host key {fingerprint(key.asbytes())} ({key.get_name()}), which nobody has "
            "confirmed yet.",
            f"Compare it with the device's own (ssh-keygen -lf on it), then: edgepack devices trust {device}",
            id="EP510",
        )
    expected = ", ".join(f"{fingerprint(e.key)} ({e.key_type}, {e.file} line {e.line})" for e in entries)
    raise DeviceUnreachable(
        f"{device}: the host key of {name} has changed. Expected {expected}; got {fingerprint(key.asbytes())} "
        f"({key.get_name()}). Somebody may be between you and the device, or it was installed anew.",
        f"If you know why it changed: edgepack devices trust {device} --replace",
        id="EP511",
    )


def store(name: str, key: PKey, file: Path | None = None) -> Path:
    """Trust `key` for the host `name` from now on, in place of any other in the file; returns the file."""
    file = file or own_file()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    drop = {entry.line for entry in read(file) if entry.about(name)}
    lines = file.read_text().splitlines() if file.exists() else []
    lines = [line for number, line in enumerate(lines, 1) if number not in drop]
    lines.append(f"{name} {key.get_name()} {base64.b64encode(key.asbytes()).decode()}")
    scratch = file.with_name(f"{file.name}.{os.getpid()}")
    scratch.write_text("\n".join(lines) + "\n")
    if file.exists():
        scratch.chmod(stat.S_IMODE(file.stat().st_mode))
    scratch.replace(file)
    return file


def read(file: Path) -> list[KnownHost]:
    """The lines of a known_hosts file that have a plain or a revoked key; [] where there is no file.

    Raises `UsageError` when it can't be read. Lines that OpenSSH would skip too are skipped.
    """
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}.", "Check its owner and mode.", id="EP204") from error
    return [entry for number, line in enumerate(lines, 1) if (entry := _entry(file, number, line.split()))]


def _entry(file: Path, number: int, words: list[str]) -> KnownHost | None:
    revoked = words[:1] == ["@revoked"]
    words = words[1:] if revoked else words
    if len(words) < 3 or words[0].startswith(("#", "@")):
        return None
    try:
        key = base64.b64decode(words[2], validate=True)
    except (binascii.Error, ValueError):
        return None
    names = tuple(words[0].split(","))
    return KnownHost(file=file, line=number, names=names, revoked=revoked, key_type=words[1], key=key)


def _hashed(name: str, pattern: str) -> bool:
    parts = pattern.split("|")
    if len(parts) != 4 or parts[:2] != ["", "1"]:
        return False
    import hmac

    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)

"""Where and as whom to log in by ssh: the device's address and options over the user's ~/.ssh/config."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import UsageError
from edgepack.types import Device

OPTIONS: Mapping[str, str] = {
    "key": "a string",
    "proxy_jump": "a string",
    "known_hosts": "a string",
    "connect_timeout": "a number",
    "silence_timeout": "a number",
    "cipher": "a string",
    "password_env": "a string",
    "ssh_config": "a string",
}
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?")
_ADDRESS = re.compile(r"(?:ssh://)?(?:(?P<user>[^@]*)@)?(?:\[(?P<six>[^\]]*)\]|(?P<host>[^:@/]*))(?::(?P<port>\d+))?/?")
_INCLUDES = 16  # files inside files


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that opening a link needs. ``jumps`` are addresses to go through, the nearest to us first."""

    host: str
    port: int
    user: str
    known_as: str | None
    keys: tuple[Path, ...]
    only_these_keys: bool
    jumps: tuple[str, ...]
    connect_timeout: float
    silence_timeout: float
    ciphers: tuple[str, ...]
    known_hosts: Path | None
    password_env: str | None
    config: Path


def parse_address(address: str) -> tuple[str, str, int | None]:
    """(user or "", host, port or None) of ``[ssh://][user@]host[:port]``; an IPv6 address stands in brackets.

    Raises `UsageError`.
    """
    found = _ADDRESS.fullmatch(address)
    user, host = (found["user"] or "", found["six"] or found["host"] or "") if found else ("", "")
    port = int(found["port"]) if found and found["port"] else None
    right = _HOST.fullmatch(host) and (not user or _USER.fullmatch(user)) and (port is None or 0 < port < 65536)
    if not found or not right or (found["user"] is not None and not user):
        raise UsageError(
            f"{address!r} is no ssh address.", "Such as root@192.168.1.20, me@board:2222 or me@[fe80::1].", id="EP251"
        )
    return user, host, port


def settings(device: Device, address: str | None = None) -> Settings:
    """The settings for `device`, or for `address` on the way to it. Raises `UsageError`."""
    options = device.options
    user, alias, port = parse_address(address or device.address)
    config = Path(options.get("ssh_config", "~/.ssh/config")).expanduser()
    said = _lookup(config, alias)
    if said.get("proxycommand", "none").lower() != "none":
        raise UsageError(
            f"{device.name}: {config} has a ProxyCommand for {alias}, which edgepack doesn't run.",
            "Use ProxyJump there, or the device's option proxy_jump.",
            id="EP252",
        )
    jump = said.get("proxyjump", "none") if address else options.get("proxy_jump", said.get("proxyjump", "none"))
    keys = [options["key"]] if "key" in options and address is None else said.get("identityfile", [])
    host = said.get("hostname", alias)
    name, host, _ = parse_address(f"{user or said.get('user') or getpass.getuser()}@{_bracketed(host)}")
    cipher = options.get("cipher")
    if cipher is not None and cipher not in CIPHERS:
        raise UsageError(f"{device.name}: cipher {cipher!r} is not known.", f"One of {', '.join(CIPHERS)}.", id="EP251")
    return Settings(
        host=host,
        port=port or int(said.get("port", 22)),
        user=name,
        known_as=said.get("hostkeyalias"),
        keys=tuple(Path(key).expanduser() for key in keys),
        only_these_keys=("key" in options and address is None) or said.get("identitiesonly", "no").lower() == "yes",
        jumps=() if jump.lower() == "none" else tuple(each.strip() for each in jump.split(",")),
        connect_timeout=float(options.get("connect_timeout", said.get("connecttimeout", 10))),
        silence_timeout=float(options.get("silence_timeout", 30)),
        ciphers=(cipher,) if cipher else CIPHERS,
        known_hosts=Path(options["known_hosts"]).expanduser() if "known_hosts" in options else None,
        password_env=options.get("password_env") if address is None else None,
        config=config,
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _lookup(config: Path, alias: str) -> Mapping[str, Any]:
    """What a config file says of `alias`; {} where there is no file."""
    import paramiko

    if not config.is_file():
        return {}
    try:
        text = "\n".join(_lines(config, config.parent, 0))
        said: Mapping[str, Any] = paramiko.SSHConfig.from_text(text).lookup(alias)
        return said
    except (OSError, UnicodeDecodeError, paramiko.ssh_exception.ConfigParseError, ImportError, ValueError) as error:
        raise UsageError(f"{config} can't be used: {error}", "Correct it, or set ssh_config.", id="EP252") from error


def _lines(file: Path, folder: Path, depth: int) -> Iterator[str]:
    """The lines of a config file with those of the files that it includes, which paramiko doesn't know."""
    if depth > _INCLUDES:
        raise ValueError(f"{file} is included too deeply")
    header = "Host *"
    for line in file.read_text().splitlines():
        key, _, value = line.strip().replace("=", " ", 1).partition(" ")
        if key.lower() in ("host", "match"):
            header = line
        if key.lower() != "include":
            yield line
            continue
        for pattern in value.split():
            pattern = pattern.strip('"')
            parts = Path(pattern).expanduser()
            base = Path("/") if parts.is_absolute() else folder
            for found in sorted(base.glob(str(parts.relative_to("/") if parts.is_absolute() else parts))):
                yield from _lines(found, folder, depth + 1)
        yield header  # what follows belongs to the block that the Include stands in

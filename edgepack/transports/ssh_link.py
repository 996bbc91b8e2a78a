"""Opening an ssh link: name, TCP, greeting, key exchange, host key, login, each with a failure of its own.

The whole of it, with every host on the way, has one time limit: the device's connect_timeout.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import queue
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko

from edgepack import trust
from edgepack.errors import DeviceUnreachable, UsageError
from edgepack.transports.ssh_settings import Settings, settings
from edgepack.types import Device

WINDOW = 8 << 20  # bytes the device may send before it waits for us
PACKET = 1 << 15
_HOPS = 8
_UNREACHABLE = {
    errno.ECONNREFUSED: ("refused the connection", "EP503", "Is the ssh server running there, on this port?"),
    errno.EHOSTUNREACH: ("can't be reached: no route to it", "EP505", "Is it switched on, and in this network?"),
    errno.ENETUNREACH: ("can't be reached: no network there", "EP505", "Is it in this network?"),
}

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # its failures are told by us, once


class Link:
    """One connection to a device, through as many others as it takes; knows whether the other side is alive."""

    def __init__(self, device: str, transport: Any, host: Settings, through: list[Any]) -> None:
        self._socket = (through or [transport])[0].sock
        self._unsent = 0
        self.device = device
        self.transport = transport
        self.host = host
        self._through = through
        self._heard = time.monotonic()
        self._closing = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name=f"edgepack-alive-{device}").start()

    def heard(self) -> None:
        """Note a sign of life."""
        self._heard = time.monotonic()

    def check(self) -> None:
        """Raise `DeviceUnreachable` when the link is lost, or the other side has been silent for too long."""
        if not self.transport.is_active():
            raise self.lost()
        unsent, before = _unsent(self._socket), self._unsent
        self._unsent = unsent
        if unsent < before:
            self.heard()  # a slow link that still takes what waits in this machine's buffers
        if time.monotonic() - self._heard > self.host.silence_timeout:
            self.close()
            raise DeviceUnreachable(
                f"{self.device}: nothing came from {self.host.host} for {self.host.silence_timeout:g} s, "
                "although the connection stands.",
                "It was switched off, hangs, or the network between was cut. Try again.",
                id="EP521",
            )

    def lost(self) -> DeviceUnreachable:
        """The failure of a link that broke."""
        cause = self.transport.saved_exception
        why = f": {cause}" if cause and str(cause) else ""
        return DeviceUnreachable(
            f"{self.device}: the link to {self.host.host} was lost{why}.",
            "The device restarted, or the network was cut. Try again.",
            id="EP520",
        )

    def close(self) -> None:
        """Hang up, the furthest connection first."""
        self._closing.set()
        for transport in (self.transport, *reversed(self._through)):
            with contextlib.suppress(Exception):  # whatever paramiko says of a connection that is gone
                transport.close()

    def _listen(self) -> None:
        while not self._closing.wait(self.host.silence_timeout / 3) and self.transport.is_active():
            with contextlib.suppress(Exception):  # the link's end is noticed by check()
                self.transport.global_request("keepalive@openssh.com", wait=True)
                if self.transport.is_active():
                    self.heard()


def _unsent(sock: Any) -> int:
    """Bytes that wait in a socket's buffer for the other side to acknowledge them; 0 where that isn't known."""
    with contextlib.suppress(OSError, ValueError):
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    return 0


def open_link(device: Device) -> Link:
    """Connect and log in. Raises `DeviceUnreachable`, each cause with its own id, and `UsageError`."""
    host = settings(device)
    clock = _Clock(host.connect_timeout)
    through: list[Any] = []
    transport = None
    try:
        transport = _reach(device, host, clock, through, 0)
        _login(device, transport, host, clock)
    except BaseException:
        for each in reversed([*through, *([transport] if transport else [])]):
            each.close()
        raise
    return Link(device.name, transport, host, through)


def fetch_key(device: Device) -> tuple[str, paramiko.PKey, Settings]:
    """(known_hosts name, host key, settings) of a device, without logging in and without trusting it."""
    host = settings(device)
    through: list[Any] = []
    transport = None
    try:
        transport = _reach(device, host, _Clock(host.connect_timeout), through, 0, check=False)
        return known_as(host), transport.get_remote_server_key(), host
    finally:
        for each in reversed([*through, *([transport] if transport else [])]):
            each.close()


def known_as(host: Settings) -> str:
    """What known_hosts calls a host."""
    return host.known_as or trust.host_name(host.host, host.port)


class _Clock:
    """What is left of a time limit."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.05, self._end - time.monotonic())

    def out(self) -> bool:
        return time.monotonic() >= self._end - 0.06


def _reach(device: Device, host: Settings, clock: _Clock, through: list[Any], depth: int, *, check: bool = True) -> Any:
    """A connection to `host` whose host key is trusted, nobody logged in yet."""
    if depth > _HOPS:
        raise UsageError(f"{device.name}: the jump hosts lead in a circle.", "Check ProxyJump.", id="EP252")
    sock: Any = None
    for number, address in enumerate(host.jumps):
        hop = settings(device, address)
        if number:
            hop = _without_jumps(hop)
        if sock is not None:
            transport = _handshake(device, hop, sock, clock)
            through.append(transport)
            _trust(device, hop, transport)
        else:
            transport = _reach(device, hop, clock, through, depth + 1)
            through.append(transport)
        _login(device, transport, hop, clock)
        following = settings(device, host.jumps[number + 1]) if number + 1 < len(host.jumps) else host
        sock = _channel_to(device, transport, hop, following, clock)
    sock = sock or _tcp(device.name, host, clock)
    transport = _handshake(device, host, sock, clock)
    if check:
        try:
            _trust(device, host, transport)
        except BaseException:
            transport.close()
            raise
    return transport


def _without_jumps(hop: Settings) -> Settings:
    from dataclasses import replace

    return replace(hop, jumps=())


def _tcp(name: str, host: Settings, clock: _Clock) -> socket.socket:
    failures: list[OSError] = []
    for family, kind, protocol, _, address in _resolve(name, host, clock):
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(clock.left())
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            failures.append(error)
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    failure = next((each for each in failures if each.errno in _UNREACHABLE), failures[0])
    where = f"{host.host} port {host.port}"
    if isinstance(failure, TimeoutError) or failure.errno == errno.ETIMEDOUT:
        raise DeviceUnreachable(
            f"{name}: {where} didn't answer within {clock.seconds:g} s.",
            "It is switched off or in another network, or a firewall drops the packets.",
            id="EP504",
        ) from failure
    said, code, hint = _UNREACHABLE.get(
        failure.errno or 0, (f"can't be reached: {failure.strerror or failure}", "EP501", "")
    )
    raise DeviceUnreachable(f"{name}: {where} {said}.", hint, id=code) from failure


def _resolve(name: str, host: Settings, clock: _Clock) -> list[Any]:
    """The host's addresses. The system's resolver has no time limit, so it is asked in a thread that may be left."""
    answers: queue.Queue[list[Any] | OSError] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=ask, daemon=True, name="edgepack-resolve").start()
    try:
        answer = answers.get(timeout=clock.left())
    except queue.Empty:
        answer = OSError(f"no answer from the name server within {clock.seconds:g} s")
    if isinstance(answer, OSError) or not answer:
        why = (answer.strerror or str(answer)) if isinstance(answer, OSError) else "no address"
        raise DeviceUnreachable(
            f"{name}: the host name {host.host!r} can't be resolved: {why}.",
            "Check the name in devices.toml or ~/.ssh/config, or use the device's IP address.",
            id="EP502",
        )
    return answer


def _handshake(device: Device, host: Settings, sock: Any, clock: _Clock) -> Any:
    """Greeting and key exchange."""
    where = f"{host.host} port {host.port}"
    first = _first_bytes(sock, clock)
    transport = paramiko.Transport(sock, default_window_size=WINDOW)
    security = transport.get_security_options()
    security.ciphers = host.ciphers
    security.key_types = _known_types_first(security.key_types, host)
    transport.banner_timeout = clock.left()
    transport.handshake_timeout = clock.seconds
    error: Exception | None = None
    try:
        transport.start_client(timeout=clock.left())
    except (paramiko.SSHException, EOFError, OSError) as caught:
        error = caught
    if error is None and transport.initial_kex_done and transport.is_active():
        return transport
    error = error or transport.get_exception() or EOFError("no answer")  # it also returns when its time is up
    transport.close()
    raise _handshake_failure(device.name, where, first, transport.remote_version, clock, error) from error


def _first_bytes(sock: Any, clock: _Clock) -> bytes:
    """What the server says first, left unread; nothing where it closes or says nothing, or where we can't look."""
    if not isinstance(sock, socket.socket):
        return b""
    sock.settimeout(clock.left())
    try:
        return sock.recv(4, socket.MSG_PEEK)
    except OSError:
        return b""


def _handshake_failure(
    name: str, where: str, first: bytes, greeted: str, clock: _Clock, error: Exception
) -> DeviceUnreachable:
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        message = f"{name}: {where} and edgepack have no algorithm in common: {error}."
        return DeviceUnreachable(message, "Its ssh server is too old; update it, or set the option cipher.", id="EP509")
    if not greeted and (first or "Indecipherable" in str(error)):
        message = f"{name}: {where} is no ssh server; it begins with {first.decode('ascii', 'replace')!r}."
        return DeviceUnreachable(message, "Check the port.", id="EP519")
    if greeted and clock.out():
        message = f"{name}: {where} greeted and then fell silent; no key exchange within {clock.seconds:g} s."
        return DeviceUnreachable(message, "The device hangs, or the network between was cut. Try again.", id="EP508")
    if greeted:
        message = f"{name}: {where} broke off during the key exchange: {error}."
        return DeviceUnreachable(message, "See the ssh server's log on the device.", id="EP508")
    if clock.out():
        message = f"{name}: {where} took the connection but sent no ssh greeting within {clock.seconds:g} s."
        return DeviceUnreachable(message, "The ssh server hangs or is overloaded, or this is another port.", id="EP506")
    message = f"{name}: {where} closed the connection before its ssh greeting."
    return DeviceUnreachable(message, "Too many connections at once, or it refuses this machine's address.", id="EP507")


def _known_types_first(types: tuple[str, ...], host: Settings) -> tuple[str, ...]:
    """Ask for the kinds of host key that are known, so that a server with several shows one of those."""
    kinds = {entry.key_type for entry in trust.known(known_as(host), host.known_hosts)}
    if "ssh-rsa" in kinds:
        kinds |= {"rsa-sha2-512", "rsa-sha2-256"}
    return tuple(sorted(types, key=lambda kind: kind not in kinds))


def _trust(device: Device, host: Settings, transport: Any) -> None:
    try:
        trust.check(device.name, known_as(host), transport.get_remote_server_key(), host.known_hosts)
    except DeviceUnreachable as error:
        transport.close()
        if host.host != settings(device).host:  # `devices trust` is for the device itself
            error.hint = f"This is a host on the way. Log in there once with ssh: ssh -p {host.port} {host.host}"
        raise


def _channel_to(device: Device, transport: Any, hop: Settings, host: Settings, clock: _Clock) -> Any:
    try:
        return transport.open_channel("direct-tcpip", (host.host, host.port), ("127.0.0.1", 0), timeout=clock.left())
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise DeviceUnreachable(
            f"{device.name}: the jump host {hop.host} can't reach {host.host} port {host.port}: {error}.",
            f"Try it there: ssh {hop.host}, then nc {host.host} {host.port}.",
            id="EP517",
        ) from error


# --- login ----------------------------------------------------------------------------------------------------------


def _login(device: Device, transport: Any, host: Settings, clock: _Clock) -> None:
    offered: list[str] = []
    unusable: list[str] = []
    try:
        transport.auth_timeout = clock.left()
        with contextlib.suppress(paramiko.AuthenticationException):
            transport.auth_none(host.user)  # a board without any password; otherwise tells what is allowed
        for name, key in _keys(host, unusable):
            if transport.is_authenticated() or clock.out():
                break
            transport.auth_timeout = clock.left()
            offered.append(name)
            with contextlib.suppress(paramiko.AuthenticationException):
                transport.auth_publickey(host.user, key)
        if not transport.is_authenticated() and (secret := _password(device, host)):
            offered.append("a password")
            with contextlib.suppress(paramiko.AuthenticationException):
                transport.auth_password(host.user, secret)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _login_failure(device, host, clock, offered, error) from error
    if transport.is_authenticated():
        return
    if clock.out() or not transport.is_active():
        raise _login_failure(device, host, clock, offered, transport.saved_exception)
    if unusable and not offered:
        raise DeviceUnreachable(
            f"{device.name}: no key to log in with as {host.user} at {host.host}: {'; '.join(unusable)}.",
            "Load the key into an agent (ssh-add), or name another with the option key.",
            id="EP515",
        )
    if not offered:
        agent = "the agent has no key" if os.environ.get("SSH_AUTH_SOCK") else "no ssh agent runs"
        raise DeviceUnreachable(
            f"{device.name}: nothing to log in with as {host.user} at {host.host}: {agent}, and there is no key file.",
            "Make a key (ssh-keygen -t ed25519) and put its .pub into the device's authorized_keys, "
            "or name one with the option key.",
            id="EP514",
        )
    raise DeviceUnreachable(
        f"{device.name}: {host.host} refused to log {host.user} in. Offered: {', '.join(offered)}.",
        "Check the user name, and that the key's .pub is in the device's ~/.ssh/authorized_keys.",
        id="EP513",
    )


def _login_failure(
    device: Device, host: Settings, clock: _Clock, offered: list[str], error: Exception | None
) -> DeviceUnreachable:
    if clock.out():
        message = f"{device.name}: {host.host} fell silent during the login; nothing within {clock.seconds:g} s."
        return DeviceUnreachable(message, "The device hangs, or the network between was cut. Try again.", id="EP516")
    many = f" after {len(offered)} keys were offered" if len(offered) > 1 else ""
    return DeviceUnreachable(
        f"{device.name}: {host.host} broke off the login{many}: {error or 'connection closed'}.",
        "Name the right key with the option key; servers give up after a few.",
        id="EP513" if many else "EP516",
    )


def _keys(host: Settings, unusable: list[str]) -> Iterator[tuple[str, Any]]:
    """(what to call it, key) in the order of OpenSSH: named keys, the agent's, the usual files.

    What is there but can't be used is added to `unusable`.
    """
    held = {key.asbytes(): key for key in _agent_keys()}
    named = [(path, _load(path, held, unusable)) for path in host.keys]
    seen = {key.asbytes() for _, key in named if key is not None}
    yield from ((str(path), key) for path, key in named if key is not None)
    if host.only_these_keys:
        return
    yield from (
        (f"{key.comment or key.get_name()} of the agent", key) for data, key in held.items() if data not in seen
    )
    seen |= set(held)
    if not host.keys:
        for name in ("id_ed25519", "id_ecdsa", "id_rsa"):
            path = Path("~/.ssh", name).expanduser()
            if path.is_file() and (key := _load(path, held, unusable)) and key.asbytes() not in seen:
                yield str(path), key


def _agent_keys() -> list[Any]:
    try:
        return list(paramiko.Agent().get_keys())
    except (paramiko.SSHException, OSError):  # a socket that nobody listens to
        return []


def _load(path: Path, held: dict[bytes, Any], unusable: list[str]) -> Any:
    """The key of a file. One that is locked, or whose .pub alone is there, is taken from the agent if that has it."""
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError:
        unusable.append(f"{path} doesn't exist")
    except paramiko.PasswordRequiredException:
        unusable.append(f"{path} is locked with a passphrase and the agent doesn't hold it")
    except OSError as error:
        unusable.append(f"{path} can't be read ({error.strerror})")
    except (paramiko.SSHException, ValueError, TypeError) as error:
        locked = "password" in str(error).lower() or "passphrase" in str(error).lower()
        why = "is locked with a passphrase and the agent doesn't hold it" if locked else f"is no usable key ({error})"
        unusable.append(f"{path} {why}")
    public = path.with_name(path.name.removesuffix(".pub") + ".pub")
    with contextlib.suppress(OSError, ValueError, IndexError):
        import base64

        if key := held.get(base64.b64decode(public.read_text().split()[1])):
            unusable.pop()
            return key
    return None


def _password(device: Device, host: Settings) -> str | None:
    """The password, from the environment variable that the device's option names; it is never on a command line."""
    if host.password_env is None:
        return None
    secret = os.environ.get(host.password_env)
    if secret is None:
        raise UsageError(
            f"{device.name}: its option password_env names {host.password_env}, which is not set.",
            f"Set {host.password_env}, or log in with a key.",
            id="EP251",
        )
    return secret

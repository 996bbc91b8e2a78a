"""A real sshd on 127.0.0.1 with a configuration and keys of its own, for tests."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepack.types import Device
from tests.conftest import need

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
PrintMotd no
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Server:
    """A running sshd: its port, user, the client's key, and a known_hosts that trusts it."""

    folder: Path
    port: int
    user: str

    @property
    def key(self) -> Path:
        return self.folder / "user_key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def device(self, *, port: int | None = None, user: str | None = None, **options: object) -> Device:
        """The device that it stands for, perhaps seen through a proxy's `port`, whose name is trusted too."""
        given = {"key": str(self.key), "known_hosts": str(self.known_hosts), "ssh_config": "/nonexistent", **options}
        port = port or self.port
        if port != self.port:
            self.trust(port)
        return Device(
            name="board",
            target="host",
            transport="ssh",
            address=f"{user or self.user}@127.0.0.1:{port}",
            options={key: value for key, value in given.items() if value is not None},
        )

    def trust(self, port: int) -> None:
        key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        with self.known_hosts.open("a") as file:
            file.write(f"[127.0.0.1]:{port} {key}\n")


@contextlib.contextmanager
def running(folder: Path, extra: str = "") -> Iterator[Server]:
    """Start an sshd that lets this user in with folder/user_key; it is stopped by its process id."""
    program = need("sshd", "apt install openssh-server")
    keygen = need("ssh-keygen", "apt install openssh-client")
    for name in ("host_key", "user_key"):
        if not (folder / name).exists():
            subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    port = free_port()
    (folder / "config").write_text(extra + CONFIG.format(port=port, folder=folder))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    child = subprocess.Popen(
        [program, "-D", "-f", str(folder / "config"), "-E", str(folder / "log")], stdin=subprocess.DEVNULL
    )
    try:
        _wait(port, child, folder)
        import getpass

        server = Server(folder, port, getpass.getuser())
        server.known_hosts.write_text("")
        server.trust(port)
        yield server
    finally:
        child.terminate()
        child.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait(port: int, child: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if child.poll() is not None:
            raise OSError(f"sshd ended: {(folder / 'log').read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise OSError("sshd doesn't listen")

"""Addresses, ~/.ssh/config and known_hosts files, without any connection."""

import base64
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from edgepack import trust
from edgepack.errors import UsageError
from edgepack.transports.remote import command, exit_code, pid, without_pid
from edgepack.transports.ssh_settings import parse_address, settings
from edgepack.types import Device

CONFIG = """
Host board
  HostName 10.0.0.7
  User pi
  Port 2200
  IdentityFile ~/keys/pi
  ProxyJump jump.example:2222, second
  ConnectTimeout 3
Host stepping
  ProxyJump none
  HostKeyAlias the-stone
"""


@pytest.fixture()
def device(tmp_path: Path) -> Device:
    (tmp_path / "config").write_text(CONFIG)
    options = {"ssh_config": str(tmp_path / "config")}
    return Device(name="d", target="t", transport="ssh", address="board", options=options)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("board", ("", "board", None)),
        ("me@board:2222", ("me", "board", 2222)),
        ("ssh://me@10.0.0.1:22", ("me", "10.0.0.1", 22)),
        ("me@[fe80::1%eth0]:22", ("me", "fe80::1%eth0", 22)),
        ("a.b-c_d@x_y.local", ("a.b-c_d", "x_y.local", None)),
    ],
)
def test_an_address_is_taken_apart(address: str, parts: tuple[str, str, int | None]) -> None:
    assert parse_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", "@x", "me@", "-x", "me@-x", "a@b@c", "x:0", "x:70000", "x y", "x;id", "x\n", "[", "me@x/y"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError) as failure:
        parse_address(address)

    assert failure.value.id == "EP251"


def test_the_users_config_fills_in_what_the_entry_leaves_open(device: Device) -> None:
    found = settings(device)

    assert (found.host, found.port, found.user, found.connect_timeout) == ("10.0.0.7", 2200, "pi", 3.0)
    assert found.keys == (Path("~/keys/pi").expanduser(),)
    assert found.jumps == ("jump.example:2222", "second")


def test_the_entry_wins_over_the_users_config(device: Device) -> None:
    options = {**device.options, "key": "/k", "proxy_jump": "none", "connect_timeout": 1, "cipher": "aes256-ctr"}

    found = settings(replace(device, address="root@board:22", options=options))

    assert (found.user, found.port, found.keys, found.jumps) == ("root", 22, (Path("/k"),), ())
    assert found.only_these_keys and found.connect_timeout == 1 and found.ciphers == ("aes256-ctr",)


def test_a_host_on_the_way_has_settings_of_its_own(device: Device) -> None:
    options = {**device.options, "key": "/k", "proxy_jump": "stepping"}
    found = settings(replace(device, options=options), "you@stepping:99")

    assert (found.host, found.user, found.port, found.keys, found.jumps) == ("stepping", "you", 99, (), ())
    assert found.known_as == "the-stone"


def test_arguments_are_quoted_and_the_pid_line_is_taken_out() -> None:
    assert command(["a b", "$x"]).endswith("edgepack 'a b' '$x'")
    assert pid(b"motd\nedgepack-pid 123\nrest") == 123 and pid(b"no edgepack-pid 5") is None
    assert without_pid(b"motd\nedgepack-pid 123\nedgepack-pid 9\n") == b"motd\nedgepack-pid 9\n"
    assert [exit_code(code) for code in (0, 127, 139, 143, 255)] == [0, 127, -11, -15, 255]


# --- known_hosts ----------------------------------------------------------------------------------------------------


@pytest.fixture()
def key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


def line(names: str, key: paramiko.PKey) -> str:
    return f"{names} {key.get_name()} {base64.b64encode(key.asbytes()).decode()}\n"


def test_storing_replaces_one_host_and_keeps_the_others(tmp_path: Path, key: paramiko.PKey) -> None:
    file, other = tmp_path / "new" / "known", paramiko.ECDSAKey.generate()
    trust.store("[board]:22022", other, file)
    file.write_text("# note\n" + line("other,10.0.0.1", other) + file.read_text())

    trust.store("[board]:22022", key, file)

    assert [entry.key for entry in trust.known("[board]:22022", file)] == [key.asbytes()]
    assert [entry.key for entry in trust.known("10.0.0.1", file)] == [other.asbytes()]
    assert file.read_text().startswith("# note\n")
    assert (file.parent.stat().st_mode & 0o777) == 0o700


def test_our_own_file_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: paramiko.PKey) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    old = paramiko.ECDSAKey.generate()
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(line("board", old))
    trust.check("d", "board", old)

    trust.store("board", key)

    trust.check("d", "board", key)
    with pytest.raises(Exception, match="has changed") as failure:
        trust.check("d", "board", old)
    assert trust.fingerprint(key.asbytes()) in str(failure.value) and trust.fingerprint(old.asbytes()) in str(
        failure.value
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "board\n",
        "board ssh-ed25519\n",
        "board ssh-ed25519 !!!\n",
        "@cert-authority * x y\n",
        "|1|a|b x QQ==\n",
        "\x00\xff\n",
    ],
)
def test_lines_that_say_nothing_are_skipped(tmp_path: Path, text: str) -> None:
    (tmp_path / "known").write_bytes(text.encode("latin-1"))

    assert trust.known("board", tmp_path / "known") == []

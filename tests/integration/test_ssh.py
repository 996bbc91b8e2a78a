"""The ssh transport against a real sshd on loopback, through a proxy that plants faults."""

import getpass
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import process, transports, trust
from edgepack.errors import DeviceFailed, DeviceUnreachable, OutOfSpace, UsageError
from edgepack.interfaces import Transport
from edgepack.transports.ssh_link import fetch_key
from edgepack.types import Device
from tests import sshd
from tests.conftest import need
from tests.faults import Faults, proxy, silence

NASTY = ["a b", "$HOME", "`id`", "'\"\\", "; rm -rf x", "-n", "*", "line\nbreak", "ü", ""]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture()
def link(server: sshd.Server) -> Iterator[Transport]:
    transport = transports.connect(server.device())
    yield transport
    transport.close()


def refused(device: Device) -> DeviceUnreachable:
    """The failure of a first command, which must come within the device's time limit."""
    transport, started = transports.connect(device), time.monotonic()
    with pytest.raises(DeviceUnreachable) as failure:
        transport.run(["true"], 20)
    assert time.monotonic() - started < float(device.options.get("connect_timeout", 10)) + 5
    assert failure.value.exit_code == 5 and device.name in failure.value.message
    return failure.value


# --- running programs -----------------------------------------------------------------------------------------------


def test_arguments_arrive_as_they_are_and_streams_stay_apart(link: Transport) -> None:
    done = link.run(["sh", "-c", 'for x; do printf "%s|" "$x"; done; echo talk >&2; exit 3', "sh", *NASTY], 20)

    assert done.stdout == "".join(f"{word}|" for word in NASTY)
    assert (done.returncode, done.stderr) == (3, "talk\n")


def test_a_program_reads_what_it_is_given_and_nothing_else(link: Transport) -> None:
    data = random.Random(1).randbytes(300_000).hex()

    assert link.run(["cat"], 20, stdin=data.encode()).stdout == data
    assert link.run(["cat"], 20).stdout == ""


def test_a_signal_is_told_as_process_run_tells_it(link: Transport) -> None:
    assert link.run(["sh", "-c", "kill -SEGV $$"], 20).returncode == -11
    assert link.run(["edgepack-has-no-such-program"], 20).returncode == 127


def test_a_program_that_runs_too_long_is_killed_on_the_device_with_its_children(
    link: Transport, tmp_path: Path
) -> None:
    beat = tmp_path / "beat"
    script = f"(while :; do echo x >>{beat}; sleep 0.1; done) & sleep 60"

    with pytest.raises(process.TimedOut):
        link.run(["sh", "-c", script], 1.0)

    time.sleep(0.3)
    before = beat.stat().st_size
    time.sleep(0.5)
    assert 0 < before == beat.stat().st_size
    assert link.run(["echo", "on"], 20).stdout == "on\n"  # the link is still good


def test_many_commands_use_one_connection(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", server.port)) as (port, faults):
        transport = transports.connect(server.device(port=port))
        for _ in range(5):
            transport.run(["true"], 20)
        transport.close()

    assert faults.connections == 1


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_goes_there_and_back(link: Transport, tmp_path: Path) -> None:
    source, remote, back = tmp_path / "source", tmp_path / "a remote 'file'", tmp_path / "back"
    for size in (0, 1, 32704, 3_000_001):
        source.write_bytes(random.Random(size).randbytes(size))
        link.push(source, str(remote))
        link.pull(str(remote), back)

        assert source.read_bytes() == remote.read_bytes() == back.read_bytes()


def test_a_file_is_gone_on_with_from_an_offset_whatever_lies_behind_it(link: Transport, tmp_path: Path) -> None:
    source, remote = tmp_path / "source", tmp_path / "remote"
    source.write_bytes(random.Random(3).randbytes(500_000))
    remote.write_bytes(source.read_bytes()[:200_000] + b"left by a broken writer")

    link.push(source, str(remote), offset=200_000)

    assert remote.read_bytes() == source.read_bytes()
    remote.write_bytes(b"short")
    with pytest.raises(DeviceFailed, match="holds 5 bytes") as failure:
        link.push(source, str(remote), offset=200_000)
    assert failure.value.id == "EP624" and remote.read_bytes() == b"short"


@pytest.mark.parametrize(
    ("remote", "id", "words"),
    [("/dev/full", "EP620", "No space left"), ("/proc/edgepack/x", "EP623", "/proc/edgepack/x")],
)
def test_a_device_that_takes_no_file_says_why(
    link: Transport, tmp_path: Path, remote: str, id: str, words: str
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(100_000))

    with pytest.raises(DeviceFailed, match=words) as failure:
        link.push(source, remote)

    assert failure.value.id == id
    assert Path("/dev/full").is_char_device()


def test_a_file_that_is_not_there_leaves_nothing_here(link: Transport, tmp_path: Path) -> None:
    with pytest.raises(DeviceFailed) as failure:
        link.pull("/nonexistent/file", tmp_path / "here")

    assert failure.value.id == "EP623"
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize("reset", [False, True])
def test_a_link_cut_at_any_byte_leaves_a_prefix_and_resuming_sends_the_rest_only(
    server: sshd.Server, tmp_path: Path, reset: bool
) -> None:
    source, remote = tmp_path / "source", tmp_path / "remote"
    content = random.Random(7).randbytes(6 << 20)
    source.write_bytes(content)
    draw = random.Random(11 + reset)

    for _ in range(5):
        remote.unlink(missing_ok=True)
        with proxy(("127.0.0.1", server.port), Faults(reset=reset)) as (port, faults):
            transport = transports.connect(server.device(port=port))
            transport.run(["true"], 20)
            cut = faults.up + draw.randrange(2_000, len(content))
            faults.cut_up = cut
            with pytest.raises(DeviceUnreachable) as failure:
                transport.push(source, str(remote))
            assert failure.value.id == "EP520"

            there = int(transport.run(["stat", "-c", "%s", str(remote)], 20).stdout)  # connects anew
            assert remote.read_bytes()[:there] == content[:there]
            transport.push(source, str(remote), offset=there)
            transport.close()

            assert remote.read_bytes() == content
            assert faults.up <= len(content) + (1 << 20)  # what was sent twice, with all protocol overhead


# --- every way not to get there ------------------------------------------------------------------------------------


def test_an_unknown_name_is_told(server: sshd.Server) -> None:
    device = replace(server.device(), address="me@no-such-host.invalid")

    assert refused(device).id == "EP502"


def test_a_refused_connection_is_told(server: sshd.Server) -> None:
    failure = refused(server.device(port=sshd.free_port()))

    assert failure.id == "EP503" and "refused" in failure.message


def test_a_black_hole_is_told_after_the_time_limit(server: sshd.Server) -> None:
    with silence() as port:
        failure = refused(server.device(port=port, connect_timeout=1.0))

    assert failure.id == "EP504" and "1 s" in failure.message


def test_a_server_that_never_greets_is_told(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", server.port), Faults(greeting=b"")) as (port, _):
        assert refused(server.device(port=port, connect_timeout=1.0)).id == "EP506"


def test_a_server_that_is_no_ssh_server_is_told(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", server.port), Faults(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n")) as (port, _):
        assert refused(server.device(port=port, connect_timeout=2.0)).id == "EP519"


def test_a_server_that_hangs_up_at_once_is_told(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", sshd.free_port())) as (port, _):
        assert refused(server.device(port=port)).id == "EP507"


def test_a_server_that_greets_and_falls_silent_is_told(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", server.port), Faults(stall_down=60)) as (port, _):
        assert refused(server.device(port=port, connect_timeout=1.5)).id == "EP508"


def test_a_server_that_breaks_off_the_key_exchange_is_told(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", server.port), Faults(cut_down=500)) as (port, _):
        failure = refused(server.device(port=port, connect_timeout=5.0))

    assert failure.id == "EP508" and "broke off" in failure.message


def test_a_half_open_link_is_noticed_while_a_program_runs(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", server.port)) as (port, faults):
        transport = transports.connect(server.device(port=port, silence_timeout=1.5))
        transport.run(["true"], 20)
        threading.Timer(0.3, setattr, (faults, "stalled", True)).start()
        started = time.monotonic()
        with pytest.raises(DeviceUnreachable) as failure:
            transport.run(["sleep", "50"], 60)

    assert failure.value.id == "EP521"
    assert time.monotonic() - started < 20


def test_a_half_open_link_is_noticed_while_a_file_is_sent(server: sshd.Server, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(20 << 20))
    with proxy(("127.0.0.1", server.port), Faults(stall_up=3 << 20)) as (port, _):
        transport = transports.connect(server.device(port=port, silence_timeout=1.5))
        started = time.monotonic()
        with pytest.raises(DeviceUnreachable) as failure:
            transport.push(source, str(tmp_path / "remote"))

    assert failure.value.id == "EP521"
    assert time.monotonic() - started < 20


def test_a_full_disk_here_is_told_and_nobody_waits(
    link: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "remote").write_bytes(bytes(20 << 20))  # more than the window: the device would wait
    (tmp_path / ".here.part").symlink_to("/dev/full")

    with pytest.raises(OutOfSpace):
        link.pull(str(tmp_path / "remote"), tmp_path / "here")

    assert not (tmp_path / "here").exists()
    assert link.run(["echo", "on"], 20).stdout == "on\n"


def test_a_file_that_shrinks_while_it_is_sent_is_told(
    link: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.transports import ssh

    def half(path: Path, offset: int, size: int) -> Iterator[bytes]:
        yield bytes(size // 2)
        raise OSError("read error")

    monkeypatch.setattr(ssh, "_blocks", half)
    (tmp_path / "source").write_bytes(bytes(100_000))
    with pytest.raises(DeviceFailed, match="should have 100000 bytes") as failure:
        link.push(tmp_path / "source", str(tmp_path / "remote"))

    assert failure.value.id == "EP624"


def test_a_quiet_program_is_not_taken_for_a_dead_link(server: sshd.Server) -> None:
    transport = transports.connect(server.device(silence_timeout=0.6))

    assert transport.run(["sh", "-c", "sleep 2; echo done"], 20).stdout == "done\n"


def test_a_slow_link_is_no_dead_link(server: sshd.Server, tmp_path: Path) -> None:
    source, remote = tmp_path / "source", tmp_path / "remote"
    source.write_bytes(random.Random(5).randbytes(400_000))
    with proxy(("127.0.0.1", server.port), Faults(rate=200_000.0)) as (port, _):
        transport = transports.connect(server.device(port=port, silence_timeout=1.5))
        transport.push(source, str(remote))

    assert remote.read_bytes() == source.read_bytes()


def test_a_device_that_restarts_is_reached_again(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", server.port)) as (port, faults):
        transport = transports.connect(server.device(port=port))
        transport.run(["true"], 20)
        faults.cut_up = faults.up + 100
        with pytest.raises(DeviceUnreachable):
            transport.run(["sleep", "5"], 20)

        assert transport.run(["echo", "back"], 20).stdout == "back\n"


# --- logging in -----------------------------------------------------------------------------------------------------


def test_a_refused_key_is_told_with_the_key(server: sshd.Server, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)

    failure = refused(server.device(key=str(other)))

    assert failure.id == "EP513" and str(other) in failure.message


def test_nothing_to_log_in_with_is_told(server: sshd.Server) -> None:
    failure = refused(server.device(key=None))

    assert failure.id == "EP514" and "no ssh agent" in failure.message


def test_a_locked_or_missing_key_is_told(server: sshd.Server, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True)

    failure = refused(server.device(key=str(locked)))
    assert failure.id == "EP515" and "passphrase" in failure.message
    failure = refused(server.device(key=str(tmp_path / "missing")))
    assert failure.id == "EP515" and "doesn't exist" in failure.message


def test_the_agent_is_asked(server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = subprocess.Popen(
        [need("ssh-agent", "apt install openssh-client"), "-D", "-a", str(tmp_path / "agent")],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (tmp_path / "agent").exists():
            time.sleep(0.05)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        subprocess.run(["ssh-add", "-q", str(server.key)], check=True)

        assert transports.connect(server.device(key=None)).run(["echo", "in"], 20).stdout == "in\n"
    finally:
        agent.terminate()
        agent.wait()


def test_a_password_comes_from_the_environment_and_shows_nowhere(
    server: sshd.Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from edgepack import log

    monkeypatch.setenv("BOARD_PASSWORD", "swordfish-11")
    log.configure(verbose=True)
    try:
        failure = refused(server.device(key=None, password_env="BOARD_PASSWORD"))
    finally:
        log.configure()

    said = capfd.readouterr()
    assert failure.id == "EP513" and "a password" in failure.message
    assert "swordfish" not in failure.message + failure.hint + said.out + said.err
    monkeypatch.delenv("BOARD_PASSWORD")
    with pytest.raises(UsageError, match="BOARD_PASSWORD"):
        transports.connect(server.device(key=None, password_env="BOARD_PASSWORD")).run(["true"], 5)


def test_a_login_that_stalls_is_told(server: sshd.Server) -> None:
    with proxy(("127.0.0.1", server.port)) as (port, faults):
        fetch_key(server.device(port=port))
        handshake = faults.down
    with proxy(("127.0.0.1", server.port), Faults(stall_down=handshake + 20)) as (port, _):
        assert refused(server.device(port=port, connect_timeout=2.0)).id == "EP516"


# --- host keys ------------------------------------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused_and_never_stored(server: sshd.Server, tmp_path: Path) -> None:
    empty = tmp_path / "known"
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(server.folder / "host_key.pub")], capture_output=True, text=True, check=True
    )

    failure = refused(server.device(known_hosts=str(empty)))

    assert failure.id == "EP510" and shown.stdout.split()[1] in failure.message
    assert "devices trust board" in failure.hint
    assert not empty.exists() and not trust.own_file().exists()


def test_a_changed_host_key_is_fatal_and_both_fingerprints_are_shown(server: sshd.Server, tmp_path: Path) -> None:
    known = tmp_path / "known"
    other = (server.folder / "user_key.pub").read_text().split()
    known.write_text(f"# a comment\n[127.0.0.1]:{server.port} {other[0]} {other[1]}\n")

    failure = refused(server.device(known_hosts=str(known)))

    assert failure.id == "EP511"
    for file in ("host_key.pub", "user_key.pub"):
        shown = subprocess.run(
            ["ssh-keygen", "-lf", str(server.folder / file)], capture_output=True, text=True, check=True
        )
        assert shown.stdout.split()[1] in failure.message
    assert f"{known} line 2" in failure.message


def test_a_revoked_host_key_is_refused(server: sshd.Server, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text("@revoked " + server.known_hosts.read_text().splitlines()[0] + "\n")

    assert refused(server.device(known_hosts=str(known))).id == "EP512"


def test_hashed_names_of_openssh_are_understood(server: sshd.Server, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(server.known_hosts.read_text().splitlines()[0] + "\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()

    assert transports.connect(server.device(known_hosts=str(known))).run(["true"], 20).returncode == 0


def test_the_users_own_known_hosts_counts_and_is_never_written(server: sshd.Server) -> None:
    users = Path("~/.ssh/known_hosts").expanduser()
    users.parent.mkdir()
    users.write_text(server.known_hosts.read_text())
    before = users.stat().st_mtime_ns

    assert transports.connect(server.device(known_hosts=None)).run(["true"], 20).returncode == 0
    assert users.stat().st_mtime_ns == before


# --- ~/.ssh/config --------------------------------------------------------------------------------------------------


def test_the_users_ssh_config_is_honoured_with_its_includes(server: sshd.Server) -> None:
    folder = Path("~/.ssh").expanduser()
    (folder / "conf.d").mkdir(parents=True)
    (folder / "config").write_text("Include conf.d/*\nHost other\n  User nobody\n")
    (folder / "conf.d" / "board").write_text(
        f"Host the-board\n  HostName 127.0.0.1\n  Port {server.port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {server.key}\n  IdentitiesOnly yes\n"
    )
    device = replace(server.device(key=None, ssh_config=None), address="the-board")

    assert transports.connect(device).run(["echo", "in"], 20).stdout == "in\n"


def test_a_jump_host_is_gone_through_and_checked_too(server: sshd.Server, tmp_path: Path) -> None:
    (tmp_path / "jump").mkdir()
    with sshd.running(tmp_path / "jump", "AllowTcpForwarding yes\n") as jump:
        (jump.folder / "authorized_keys").write_text((server.folder / "user_key.pub").read_text())
        folder = Path("~/.ssh").expanduser()
        folder.mkdir()
        (folder / "id_ed25519").write_bytes(server.key.read_bytes())
        (folder / "id_ed25519").chmod(0o600)
        via = f"{jump.user}@127.0.0.1:{jump.port}"
        device = server.device(proxy_jump=via)

        failure = refused(device)  # nobody trusts the jump host yet
        assert failure.id == "EP510" and str(jump.port) in failure.message

        with server.known_hosts.open("a") as file:
            file.write(jump.known_hosts.read_text())
        transport = transports.connect(device)
        assert "SSH_CONNECTION" in transport.run(["env"], 20).stdout
        assert str(jump.port) not in transport.run(["sh", "-c", "echo $SSH_CONNECTION"], 20).stdout.split()
        transport.close()

        unreachable = server.device(port=sshd.free_port(), proxy_jump=via)
        assert refused(unreachable).id == "EP517"


def test_a_proxy_command_is_not_run(server: sshd.Server, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host *\n  ProxyCommand touch {tmp_path}/ran\n")

    with pytest.raises(UsageError, match="ProxyCommand"):
        transports.connect(server.device(ssh_config=str(config))).run(["true"], 5)
    assert not (tmp_path / "ran").exists()


def test_closing_leaves_no_socket_behind(server: sshd.Server) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        transport = transports.connect(server.device())
        transport.run(["true"], 20)
        transport.close()
    with socket.create_connection(("127.0.0.1", server.port)):
        pass
    time.sleep(0.5)

    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1

"""The adb transport against the real adbd of a newer Debian and Debian's adb, both in a network namespace of their own.

States that no loopback adbd can be in (unauthorized, offline) are told by a stand-in for the adb *server*, which
answers the questions that come before any program is started.
"""

import contextlib
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack import process, transports
from edgepack.errors import DeviceFailed, DeviceUnreachable, ToolMissing
from edgepack.interfaces import Transport
from edgepack.probe import probe
from edgepack.types import Device
from tests import adbd, sshd
from tests.conftest import missing, need
from tests.faults import Faults, proxy
from tests.integration.test_ssh import NASTY


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    need("adb", "apt install adb")
    need("unshare", "apt install util-linux")
    need("ip", "apt install iproute2")
    files = adbd.fetch()
    if isinstance(files, str):
        missing(files)
    assert isinstance(files, Path)
    with adbd.running(files, tmp_path_factory.mktemp("adbd")) as running:
        yield running


@pytest.fixture()
def link(server: tuple[str, Path]) -> Iterator[Transport]:
    with proxy(server[1]) as (port, _):
        yield transports.connect(device(server[0], port))


def device(serial: str, port: int, **options: object) -> Device:
    return Device(
        name="phone", target="host", transport="adb", address=serial, options={"server_port": port, **options}
    )


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


def test_a_file_goes_there_and_back_and_is_gone_on_with(link: Transport, tmp_path: Path) -> None:
    source, remote, back = tmp_path / "source", tmp_path / "a remote 'file'", tmp_path / "back"
    for size in (0, 1, 65536, 3_000_001):
        source.write_bytes(random.Random(size).randbytes(size))
        link.push(source, str(remote))
        link.pull(str(remote), back)
        assert source.read_bytes() == remote.read_bytes() == back.read_bytes()

    remote.write_bytes(source.read_bytes()[:200_000] + b"left by a broken writer")
    link.push(source, str(remote), offset=200_000)
    assert remote.read_bytes() == source.read_bytes()


def test_a_device_that_takes_no_file_says_why(link: Transport, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(100_000))

    with pytest.raises(DeviceFailed) as failure:
        link.push(source, "/dev/full")
    assert failure.value.id == "EP620"
    with pytest.raises(DeviceFailed) as failure:
        link.pull("/nonexistent/file", tmp_path / "here")
    assert failure.value.id == "EP623"


def test_the_probe_works_over_adb(server: tuple[str, Path]) -> None:
    with proxy(server[1]) as (port, _):
        entry = device(server[0], port)
        found = probe(transports.connect(entry), entry)

    assert found.machine and found.libc == "glibc" and found.free_bytes > 0


def test_a_link_cut_at_any_byte_leaves_a_prefix_that_is_gone_on_with(server: tuple[str, Path], tmp_path: Path) -> None:
    source, remote = tmp_path / "source", tmp_path / "remote"
    content = random.Random(7).randbytes(6 << 20)
    source.write_bytes(content)
    for part in (0.001, 0.3, 0.8):
        with proxy(server[1]) as (port, faults):
            transport = transports.connect(device(server[0], port))
            transport.run(["true"], 20)
            faults.cut_up = faults.up + int(part * len(content)) + 2000
            with pytest.raises(DeviceUnreachable) as failure:
                transport.push(source, str(remote))
            assert failure.value.id == "EP520"

            there = int(transport.run(["stat", "-c", "%s", str(remote)], 20).stdout)
            assert remote.read_bytes()[:there] == content[:there]
            transport.push(source, str(remote), offset=there)
            assert remote.read_bytes() == content
            assert faults.up <= len(content) + (1 << 20)


def test_a_device_that_hangs_is_noticed(server: tuple[str, Path]) -> None:
    with proxy(server[1]) as (port, faults):
        transport = transports.connect(device(server[0], port, silence_timeout=1.0, connect_timeout=1.0))
        transport.run(["true"], 20)
        threading.Timer(0.3, setattr, (faults, "stalled", True)).start()
        started = time.monotonic()
        with pytest.raises(DeviceUnreachable) as failure:
            transport.run(["sleep", "50"], 60)

    assert failure.value.id in ("EP521", "EP530")
    assert time.monotonic() - started < 20


def test_several_devices_without_a_serial_are_named(server: tuple[str, Path]) -> None:
    with proxy(server[1]) as (port, _):
        for serial in (server[0], server[0].replace("127.0.0.1", "localhost")):  # one adbd, two devices to adb
            transports.connect(device(serial, port)).run(["true"], 20)
        with pytest.raises(DeviceUnreachable) as failure:
            transports.connect(device("", port)).run(["true"], 20)

    assert failure.value.id == "EP533" and server[0] in failure.value.message


def test_a_serial_that_is_not_attached_is_told_with_those_that_are(server: tuple[str, Path]) -> None:
    with proxy(server[1]) as (port, _):
        transports.connect(device(server[0], port)).run(["true"], 20)
        with pytest.raises(DeviceUnreachable) as failure:
            transports.connect(device("R58M123ABC", port)).run(["true"], 20)

    assert failure.value.id == "EP532" and server[0] in failure.value.message


def test_a_network_device_that_refuses_is_told(server: tuple[str, Path]) -> None:
    with proxy(server[1]) as (port, _), pytest.raises(DeviceUnreachable) as failure:
        transports.connect(device("127.0.0.1:1", port)).run(["true"], 20)

    assert failure.value.id == "EP538"


# --- a stand-in for the adb server ----------------------------------------------------------------------------------


@contextlib.contextmanager
def server_that_sees(devices: str, features: str = "shell_v2") -> Iterator[int]:
    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if not (head := client.recv(4)):
                return
            question = client.recv(int(head, 16)).decode()
            text = devices if question == "host:devices" else features
            client.sendall(b"OKAY" + f"{len(text):04x}{text}".encode())

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("devices", "serial", "id", "words"),
    [
        ("", "", "EP531", "no device"),
        ("ABC\tunauthorized\n", "ABC", "EP534", "not allowed this computer"),
        ("ABC\toffline\n", "ABC", "EP535", "offline"),
        ("ABC\trecovery\n", "", "EP536", "'recovery'"),
        ("ABC\tdevice\nDEF\tdevice\n", "", "EP533", "ABC, DEF"),
    ],
)
def test_every_state_is_another_sentence(devices: str, serial: str, id: str, words: str) -> None:
    with server_that_sees(devices) as port, pytest.raises(DeviceUnreachable, match=words) as failure:
        transports.connect(device(serial, port)).run(["true"], 20)

    assert failure.value.id == id


def test_a_device_without_exit_codes_is_refused() -> None:
    with server_that_sees("ABC\tdevice\n", "cmd") as port, pytest.raises(DeviceUnreachable, match="too old") as failure:
        transports.connect(device("ABC", port)).run(["true"], 20)

    assert failure.value.id == "EP537"


def test_a_server_that_says_nothing_is_told_within_the_time_limit() -> None:
    with proxy(("127.0.0.1", 1), Faults(greeting=b"")) as (port, _):
        started = time.monotonic()
        with pytest.raises(DeviceUnreachable) as failure:
            transports.connect(device("ABC", port, connect_timeout=1.0)).run(["true"], 20)

    assert failure.value.id == "EP530"
    assert time.monotonic() - started < 20


def test_a_machine_without_adb_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import adbutils

    def nowhere() -> str:
        raise adbutils.AdbError("no adb")

    monkeypatch.setattr(adbutils, "adb_path", nowhere)
    with pytest.raises(ToolMissing, match="no adb"):
        transports.connect(device("ABC", sshd.free_port())).run(["true"], 20)


def test_a_server_is_started_where_none_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("adb", "apt install adb")
    monkeypatch.setenv("HOME", str(tmp_path))
    port = sshd.free_port()
    try:
        with pytest.raises(DeviceUnreachable) as failure:
            transports.connect(device("R58M123ABC", port)).run(["true"], 20)
        assert failure.value.id in ("EP531", "EP532")
    finally:
        process.run([shutil.which("adb") or "adb", "-P", str(port), "kill-server"])

"""Installing by ssh: a real sshd on loopback, a link with faults, and an emulated aarch64 board behind it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import config, emulator
from edgepack.device import DeviceSession
from edgepack.errors import DeviceFailed
from tests import sshd
from tests.conftest import missing, need
from tests.devices import active, check_no_orphans, compile_harness, make_bundle
from tests.faults import Faults, proxy

MEGABYTE = 1 << 20
# The kernel's recognition of an aarch64 program, and what starts it; the registration ends with its namespace.
BINFMT = (
    r":aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{qemu}:F"
)
BOARD = r"""#!/bin/sh
# Every command of this ssh server: in a namespace where aarch64 programs run and the machine says that it is one.
exec unshare --user --map-root-user --mount sh -c '
  mount -t binfmt_misc none /proc/sys/fs/binfmt_misc || exit 125
  cat "{folder}/binfmt" >/proc/sys/fs/binfmt_misc/register || exit 125
  mount --bind "{folder}/cpuinfo" /proc/cpuinfo || exit 125
  PATH="{folder}/tools:$PATH"; export PATH
  exec sh -c "$SSH_ORIGINAL_COMMAND"'
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cc", "apt install gcc libc6-dev")
    return compile_harness(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def test_a_deploy_by_ssh_and_an_unchanged_one_within_20_kb(server: sshd.Server, harness: Path, tmp_path: Path) -> None:
    files = {f"variants/null-fp32/{i}.bin": os.urandom(50_000) for i in range(60)}
    files["variants/null-fp32/large.bin"] = os.urandom(3 * MEGABYTE)
    bundle = make_bundle(tmp_path / "b.edgepack", harness, files=files)
    root = tmp_path / "device"
    with proxy(("127.0.0.1", server.port)) as (port, faults):
        device = replace(server.device(port=port), root=str(root))
        with DeviceSession.open(device) as session:
            assert session.deploy(bundle).status == "installed"
        assert active(root).manifest == bundle.manifest
        check_no_orphans(root)
        before = faults.up + faults.down
        with DeviceSession.open(device) as session:
            assert session.deploy(bundle).status == "unchanged"
        assert faults.up + faults.down - before <= 20_000, faults.up + faults.down - before


@pytest.mark.parametrize("cut", [60_000, 1_500_000, 3_000_000])
def test_a_link_that_is_cut_at_any_byte_costs_at_most_a_megabyte(
    server: sshd.Server, harness: Path, tmp_path: Path, cut: int
) -> None:
    files = {f"variants/null-fp32/{i}.bin": os.urandom(100_000) for i in range(10)}
    files["variants/null-fp32/large.bin"] = os.urandom(4 * MEGABYTE)
    bundle = make_bundle(tmp_path / "b.edgepack", harness, files=files)
    size = sum(item["size"] for item in bundle.manifest["files"])
    root = tmp_path / "device"
    with proxy(("127.0.0.1", server.port), Faults(cut_up=cut)) as (port, faults):

        def mend(*_: object) -> None:
            faults.cut_up = None

        with DeviceSession.open(replace(server.device(port=port), root=str(root))) as session:
            begin, calls = session.steps.begin, []

            def begin_again(*args, **how):
                if calls:
                    mend()
                calls.append(1)
                return begin(*args, **how)

            session.steps.begin = begin_again  # type: ignore[method-assign]
            assert session.deploy(bundle).status == "installed"
        assert len(calls) == 2 and faults.up <= size + MEGABYTE + 100_000, faults.up
    assert active(root).manifest == bundle.manifest
    check_no_orphans(root)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    """An sshd whose commands run on an emulated aarch64 machine with a Cortex-A53."""
    folder = tmp_path_factory.mktemp("board")
    qemu = need("qemu-aarch64-static", "apt install qemu-user-static")
    need("unshare", "apt install util-linux")
    target = replace(config.load_target("linux-aarch64"), emulator_cpu="cortex-a53")
    (folder / "cpuinfo").write_text(emulator._cpuinfo(target))
    (folder / "binfmt").write_text(BINFMT.format(qemu=qemu))
    (folder / "tools").mkdir()
    (folder / "tools" / "uname").write_text('#!/bin/sh\n[ "$1" = -m ] && exec echo aarch64\nexec /bin/uname "$@"\n')
    (folder / "command").write_text(BOARD.format(folder=folder))
    for script in (folder / "tools" / "uname", folder / "command"):
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    env = {**os.environ, "SSH_ORIGINAL_COMMAND": "true"}
    tried = subprocess.run([folder / "command"], env=env, capture_output=True, text=True)
    if tried.returncode != 0:
        missing(f"no namespace with a binfmt_misc of its own (needs Linux 6.7): {tried.stderr.strip()}")
    with sshd.running(folder, f"ForceCommand {folder}/command\n") as running:
        yield running


def test_an_emulated_aarch64_board_gets_proves_and_activates_what_was_cross_compiled(
    board: sshd.Server, harness: Path, tmp_path: Path
) -> None:
    compiler = need("aarch64-linux-gnu-gcc", "apt install gcc-aarch64-linux-gnu")
    foreign = compile_harness(tmp_path, compiler, "-static")
    root = tmp_path / "device"
    device = replace(board.device(), root=str(root))
    good = make_bundle(tmp_path / "1.edgepack", foreign, target="linux-aarch64")
    bad = make_bundle(tmp_path / "2.edgepack", foreign, version="2", does="crash", target="linux-aarch64")
    wrong = make_bundle(tmp_path / "3.edgepack", harness)
    with DeviceSession.open(device) as session:
        assert session.probe.machine == "aarch64" and "atomics" not in session.probe.cpu_features
        assert dict(session.deploy(good).self_tests)["null-fp32"].passed
        with pytest.raises(DeviceFailed, match="SIGABRT"):
            session.deploy(bad)
        with pytest.raises(DeviceFailed, match="built for x86_64"):
            session.deploy(wrong)

    assert active(root).manifest == good.manifest
    check_no_orphans(root)


def test_litert_is_refused_by_a_board_without_lse(board: sshd.Server, tmp_path: Path) -> None:
    from edgepack import preflight
    from edgepack.shipment import ship

    foreign = compile_harness(tmp_path, need("aarch64-linux-gnu-gcc", "apt install gcc-aarch64-linux-gnu"), "-static")
    bundle = make_bundle(tmp_path / "b.edgepack", foreign, target="linux-aarch64")
    bundle.manifest["variants"][0]["engine"] = "tflite"
    with DeviceSession.open(replace(board.device(), root=str(tmp_path / "device"))) as session:
        with pytest.raises(DeviceFailed, match="tflite needs the CPU feature atomics"):
            preflight.check(ship(bundle), session.probe, "board")

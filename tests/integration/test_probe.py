"""The probe's script in the shells that devices have, on recorded /proc and /sys trees."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgepack import transports
from edgepack.probe import parse, probe
from edgepack.transports.remote import script
from edgepack.types import Device, Probe
from tests.conftest import need

SHELLS = [("dash",), ("bash", "--posix"), ("busybox", "sh"), ("mksh",)]
CPUINFO = """\
processor\t: {index}
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm atomics
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x2
CPU part\t: {part}
CPU revision\t: 0

"""


@pytest.fixture()
def board(tmp_path: Path) -> Path:
    """A recorded board: two A55 and two A76, one thermal zone without a name."""
    files = {"proc/meminfo": "MemTotal:        3970000 kB\nMemFree:  100 kB\n"}
    files["proc/cpuinfo"] = "".join(CPUINFO.format(index=i, part="0xd05" if i < 2 else "0xd0b") for i in range(4))
    for i in range(4):
        cpu = f"sys/devices/system/cpu/cpu{i}/cpufreq"
        files[f"{cpu}/cpuinfo_max_freq"] = "1800000\n" if i < 2 else "2400000\n"
        files[f"{cpu}/scaling_governor"] = "schedutil\n"
    files["sys/class/thermal/thermal_zone0/type"] = "soc thermal\n"
    files["sys/class/thermal/thermal_zone0/temp"] = "41500\n"
    files["sys/class/thermal/thermal_zone1/temp"] = "-100\n"
    files["dev/hailo0"] = ""
    files["lib/aarch64-linux-gnu/libstdc++.so.6.0.29"] = ""
    for name, content in files.items():
        path = tmp_path / "board" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "board/sys/devices/system/cpu/cpuidle").mkdir()
    (tmp_path / "board/lib/aarch64-linux-gnu/libstdc++.so.6").symlink_to("libstdc++.so.6.0.29")
    return tmp_path / "board"


def ask(shell: tuple[str, ...], root: str, prefix: str = "") -> Probe:
    program = need(shell[0], f"apt install {shell[0]}")
    done = subprocess.run(
        [program, *shell[1:], "-c", script("probe"), "edgepack", root, prefix],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    answer = re.sub(r"^machine .*", "machine aarch64", done.stdout, flags=re.M) if prefix else done.stdout
    return parse(answer, "board")


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_every_shell_tells_the_same_of_a_recorded_board(shell: tuple[str, ...], board: Path, tmp_path: Path) -> None:
    found = ask(shell, str(tmp_path / "not" / "yet" / "there"), str(board))

    assert found.clusters == (("cortex-a55", 2), ("cortex-a76", 2))
    assert found.cpus == ((0, 1800000, "schedutil"), (1, 1800000, "schedutil"),
                          (2, 2400000, "schedutil"), (3, 2400000, "schedutil"))  # fmt: skip
    assert found.cpu_features == ("asimd", "atomics", "evtstrm", "fp")
    assert found.temperatures == (("soc thermal", 41500), ("", -100))
    assert (found.memory_mb, found.npu) == (3876, "hailo0")
    assert found.writable and not found.noexec and found.free_bytes > 0
    assert {path.name for path in tmp_path.iterdir()} == {"board"}  # nothing is left behind


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_a_machine_with_nothing_to_read_is_still_a_machine(shell: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()

    found = ask(shell, ".edgepack", str(tmp_path / "bare"))

    assert found.machine and found.kernel and found.clock > 0
    assert (found.cpus, found.clusters, found.cpu_features, found.temperatures) == ((), (), (), ())


def test_a_folder_that_takes_no_program_is_told(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", str(tmp_path)]).returncode:
        pytest.skip("only root can mount a noexec folder")
    try:
        assert ask(("dash",), str(tmp_path / "edgepack")).noexec
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        assert not ask(("dash",), str(tmp_path / "edgepack")).writable
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_this_machine_is_told_as_the_profile_host_tells_it() -> None:
    from edgepack.config import load_target

    device = Device(name="here", target="host", transport="local")
    found, host = probe(transports.connect(device), device), load_target("host")

    assert (found.libc, found.libc_version, found.memory_mb) == (host.libc, host.libc_version, host.memory_mb)
    assert found.cpu_features == tuple(sorted(host.cpu_features))
    assert ("sha256sum" in found.tools) == bool(shutil.which("sha256sum"))

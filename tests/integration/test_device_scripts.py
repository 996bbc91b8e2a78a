"""The scripts that transports run on devices, in the shells that devices have."""

import subprocess
import time
from pathlib import Path

import pytest

from edgepack.transports.remote import RUN, script
from tests.conftest import need

SHELLS = [("dash",), ("bash", "--posix"), ("busybox", "sh")]


def beating(file: Path) -> bool:
    before = file.stat().st_size
    time.sleep(0.4)
    return file.stat().st_size > before


@pytest.mark.parametrize("own_group", [True, False], ids=["a group of its own", "the server's group"])
@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_a_program_is_killed_with_all_that_it_started_and_nothing_else(
    shell: tuple[str, ...], own_group: bool, tmp_path: Path
) -> None:
    argv = [need(shell[0], f"apt install {shell[0]}"), *shell[1:], "-c"]
    beat, bystander = tmp_path / "beat", subprocess.Popen(["sleep", "60"])
    program = f"( (while :; do echo x >>{beat}; sleep 0.1; done) & sleep 60) & sleep 60"
    running = subprocess.Popen(
        [*argv, RUN, "edgepack", *argv, program], stderr=subprocess.PIPE, start_new_session=own_group
    )
    assert running.stderr is not None
    said = running.stderr.readline().split()
    assert said == [b"edgepack-pid", str(running.pid).encode()]
    while not beat.exists():
        time.sleep(0.05)

    subprocess.run([*argv, script("kill"), "edgepack", str(running.pid)], check=True)

    assert running.wait(5) == -9
    assert not beating(beat)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_killing_what_has_ended_is_no_error(shell: tuple[str, ...]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    argv = [need(shell[0], f"apt install {shell[0]}"), *shell[1:], "-c", script("kill"), "edgepack", str(ended.pid)]

    assert subprocess.run(argv, capture_output=True).stderr == b""


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_a_pushed_file_keeps_its_first_bytes_and_loses_the_rest(shell: tuple[str, ...], tmp_path: Path) -> None:
    argv = [need(shell[0], f"apt install {shell[0]}"), *shell[1:], "-c", script("push"), "edgepack"]
    file = tmp_path / "a file"

    for offset, given, wanted in ((0, b"abcdef", b"abcdef"), (6, b"gh", b"abcdefgh"), (3, b"xyz!", b"abcxyz!")):
        done = subprocess.run([*argv, str(file), str(offset)], input=given, capture_output=True, check=True)
        assert file.read_bytes() == wanted and done.stdout.split() == [str(len(wanted)).encode()]
    assert subprocess.run([*argv, str(file), "99"], input=b"z", capture_output=True).returncode == 65
    assert file.read_bytes() == b"abcxyz!"

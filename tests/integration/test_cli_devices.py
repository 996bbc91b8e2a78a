"""`edgepack devices` as a user calls it, against a real sshd."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepack.config import load_target
from tests import sshd

EDGEPACK = [sys.executable, "-c", "from edgepack.cli import main; main()", "devices"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as running:
        yield running


class Shell:
    """A user with a home and a current folder of their own."""

    def __init__(self, home: Path, server: sshd.Server) -> None:
        self.home, self.server = home, server
        changed = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "EDGEPACK_CACHE": str(home / "cache")}
        self.environment = {k: v for k, v in os.environ.items() if k != "SSH_AUTH_SOCK"} | changed

    def call(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        argv = [*EDGEPACK, *words]
        return subprocess.run(argv, cwd=self.home, env=self.environment, capture_output=True, text=True, **options)

    def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        done = self.call(*words, "--json", stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def answer(self, text: str, *words: str) -> tuple[int, str]:
        """Call it on a terminal and type `text`."""
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            [*EDGEPACK, *words], cwd=self.home, env=self.environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        os.write(ours, text.encode())
        said = b""
        try:
            while block := os.read(ours, 4096):
                said += block
        except OSError:  # the terminal's end
            pass
        os.close(ours)
        return child.wait(30), said.decode()

    @property
    def known_hosts(self) -> Path:
        return self.home / "config" / "edgepack" / "known_hosts"

    @property
    def url(self) -> str:
        return f"ssh://{self.server.user}@127.0.0.1:{self.server.port}"

    @property
    def fingerprint(self) -> str:
        argv = ["ssh-keygen", "-lf", str(self.server.folder / "host_key.pub")]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[1]

    def add(self, *words: str) -> dict[str, Any]:
        return self.json("add", self.url, "--name", "board", "--option", f"key={self.server.key}", *words)


@pytest.fixture()
def shell(tmp_path: Path, server: sshd.Server) -> Shell:
    return Shell(tmp_path, server)


def test_this_machine_is_listed_and_probed_without_any_setup(shell: Shell) -> None:
    assert [device["name"] for device in shell.json()["devices"]] == ["local"]
    assert shell.json("list")["command"] == "devices list"
    assert shell.json("probe", "local")["machine"] == os.uname().machine


def test_a_device_is_added_probed_and_written_as_a_profile(shell: Shell) -> None:
    added = shell.add("--fingerprint", shell.fingerprint, "--tag", "lab")
    assert added["target"].startswith("linux-") and added["tags"] == ["lab"]
    assert [device["name"] for device in shell.json("list")["devices"]] == ["local", "board"]

    found = shell.json("probe", "board", "--write")

    assert found["profile"] == "board.toml"
    assert load_target(shell.home / "board.toml").libc_version == found["libc_version"]
    again = shell.json("probe", "board", "--write", code=2)
    assert again["error"]["id"] == "EP253"


def test_nobody_to_confirm_a_host_key_is_an_error_that_says_what_to_type(shell: Shell) -> None:
    shell.add("--target", "rk3588")

    error = shell.json("trust", "board", code=2)["error"]

    assert error["id"] == "EP255" and f"--fingerprint {shell.fingerprint}" in error["hint"]
    assert not shell.known_hosts.exists()
    assert shell.json("probe", "board", code=5)["error"]["id"] == "EP510"


def test_a_wrong_fingerprint_stores_nothing(shell: Shell) -> None:
    shell.add("--target", "rk3588")

    error = shell.json("trust", "board", "--fingerprint", "SHA256:" + "A" * 43, code=5)["error"]

    assert error["id"] == "EP511" and not shell.known_hosts.exists()


def test_a_user_is_asked_and_no_means_no(shell: Shell) -> None:
    shell.add("--target", "rk3588")

    code, said = shell.answer("n\n", "trust", "board")
    assert code == 5 and shell.fingerprint in said and not shell.known_hosts.exists()

    code, said = shell.answer("y\n", "trust", "board")
    assert code == 0 and "is trusted" in said
    assert shell.json("probe", "board")["device"] == "board"
    assert shell.json("trust", "board")["new"] is False  # no question any more


def test_a_changed_key_is_replaced_only_when_one_says_so(shell: Shell) -> None:
    shell.add("--target", "rk3588")
    other = " ".join((shell.server.folder / "user_key.pub").read_text().split()[:2])
    shell.known_hosts.write_text(f"[127.0.0.1]:{shell.server.port} {other}\n")

    for words in (("probe", "board"), ("trust", "board"), ("trust", "board", "--fingerprint", shell.fingerprint)):
        assert shell.json(*words, code=5)["error"]["id"] == "EP511"

    assert shell.json("trust", "board", "--fingerprint", shell.fingerprint, "--replace")["new"] is True
    assert shell.json("probe", "board")["device"] == "board"


@pytest.mark.parametrize(
    ("words", "code", "id"),
    [
        (["probe", "bord"], 2, "EP250"),
        (["trust", "local"], 2, "EP254"),
        (["add", "board"], 2, "EP251"),
        (["add", "ssh://-oX=y@b", "--target", "rk3588"], 2, "EP251"),
        (["add", "ssh://b", "--name", "a/b", "--target", "rk3588"], 2, "EP251"),
        (["add", "ssh://b", "--target", "rk3589"], 2, "EP202"),
        (["add", "ssh://b", "--target", "rk3588", "--option", "kee=x"], 2, "EP251"),
        (["add", "ssh://b", "--name", "local", "--target", "rk3588"], 2, "EP250"),
        (["add", "ssh://no-such-host.invalid"], 5, "EP502"),
    ],
)
def test_wrong_words_are_told(shell: Shell, words: list[str], code: int, id: str) -> None:
    assert shell.json(*words, code=code)["error"]["id"] == id
    assert not (shell.home / "config").exists()


def test_the_command_line_starts_without_the_heavy_libraries(shell: Shell) -> None:
    words = "import sys, edgepack.cli; print([m for m in ('paramiko', 'adbutils', 'numpy') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", words], capture_output=True, text=True).stdout == "[]\n"

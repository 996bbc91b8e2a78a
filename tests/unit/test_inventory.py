"""devices.toml is read strictly, and the nearest file says what a name means."""

from pathlib import Path

import pytest

from edgepack import inventory
from edgepack.errors import ConfigError, UsageError
from edgepack.types import Device


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def write(text: str) -> Path:
    path = Path("devices.toml").absolute()
    path.write_text(text)
    return path


def test_this_machine_is_always_there() -> None:
    assert inventory.find("local") == Device(name="local", target="host", transport="local")


def test_an_entry_with_everything() -> None:
    write("""
[devices."rack.1"]
target = "rk3588"
transport = "ssh"
address = "me@10.0.0.7:2222"
root = "/data/edgepack"
tags = ["lab", "arm", "lab"]
options.key = "~/.ssh/lab"
options.connect_timeout = 2.5
""")

    device = inventory.find("rack.1")

    assert (device.target, device.address, device.root) == ("rk3588", "me@10.0.0.7:2222", "/data/edgepack")
    assert device.tags == ("lab", "arm")
    assert device.options == {"key": "~/.ssh/lab", "connect_timeout": 2.5}


def test_the_nearest_file_wins_and_profiles_are_seen_from_the_file() -> None:
    inventory.user_file().parent.mkdir(parents=True)
    inventory.user_file().write_text(
        '[devices.a]\ntarget = "mine.toml"\ntransport = "local"\n[devices.b]\ntarget = "rk3588"\ntransport = "local"\n'
    )
    write('[devices.b]\ntarget = "rk3566"\ntransport = "local"\n')

    assert inventory.find("b").target == "rk3566"
    assert inventory.find("a").target == str(inventory.user_file().parent / "mine.toml")
    assert len(inventory.files()) == 3


ENTRY = '[devices.board]\ntarget = "rk3588"\ntransport = "ssh"\naddress = "me@board"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[devices.board]\ntarget = "t"\ntransport = "ssh"\nadress = "x"\n', ":4: unknown key 'adress'.*'address'"),
        ("[device.board]\n", ":1: unknown key 'device'.*'devices'"),
        ('[devices.board]\ntarget = "t"\ntransport = "shh"\n', ":3: unknown transport 'shh'.*'ssh'"),
        ('[devices.board]\ntransport = "ssh"\naddress = "b"\n', ":1: the device board has no target"),
        (ENTRY + 'options.kee = "x"\n', ":5: unknown key 'kee'.*'key'"),
        (ENTRY + "options.connect_timeout = true\n", ":5: connect_timeout = True should be a number"),
        (ENTRY + 'root = "../up"\n', ":5: root = '../up'"),
        (ENTRY + 'root = "/"\n', ":5: root = '/'"),
        (ENTRY + 'root = "a b; rm"\n', ":5: root"),
        (ENTRY + 'tags = ["a b"]\n', ":5: 'a b' is no good tag"),
        (ENTRY.replace("me@board", "-oProxyCommand=x"), ":4: .*no ssh address"),
        (ENTRY.replace("me@board", "me@bo ard"), ":4: .*no ssh address"),
        (ENTRY.replace("me@board", "me@board:99999"), ":4: .*no ssh address"),
        (ENTRY.replace("me@board", "$(id)@board"), ":4: .*no ssh address"),
        (ENTRY.replace('"ssh"', '"adb"').replace("me@board", "-d"), ":4: .*no adb serial"),
        ('[devices."a/b"]\ntarget = "t"\ntransport = "local"\n', ":1: 'a/b' is no good name"),
        ("devices = 3\n", ":1: devices = 3 should be a table"),
        ("[devices]\nboard = 3\n", ":2: devices.board = 3 should be a table"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_nearest_name(text: str, words: str) -> None:
    path = write(text)

    with pytest.raises(ConfigError, match=words) as failure:
        inventory.devices()

    assert failure.value.message.startswith(f"{path}:")


def test_an_unknown_name_or_tag_offers_the_nearest() -> None:
    write(ENTRY + 'tags = ["lab"]\n')

    with pytest.raises(UsageError, match="Did you mean 'board'") as failure:
        inventory.find("bord")
    assert failure.value.id == "EP250"
    with pytest.raises(UsageError, match="Did you mean 'lab'"):
        inventory.select(tags=("lap",))
    assert [device.name for device in inventory.select(("local", "board"), ("lab",))] == ["local", "board"]


def test_what_is_added_is_read_back_and_what_was_there_stays() -> None:
    path = write("# our boards\n" + ENTRY)
    new = Device(
        name="b.2", target="rk3566", transport="ssh", address="[fe80::1]:22", root="/x", tags=("a",),
        options={"key": 'a "b" \\ c', "connect_timeout": 3},
    )  # fmt: skip

    inventory.add(new, path)

    assert inventory.find("b.2") == new
    assert path.read_text().startswith("# our boards\n" + ENTRY)
    with pytest.raises(UsageError, match="already"):
        inventory.add(new, path)
    with pytest.raises(ConfigError):
        inventory.add(Device(name="c", target="t", transport="ssh", address="no address at all"), path)
    assert "devices.c" not in path.read_text()

"""A converter that misbehaves is killed by a limit and named; nothing of it stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgepack import converter
from edgepack.errors import ToolFailed

HEADER = (
    "import json, os, pathlib, subprocess, sys, time\nrequest = json.loads(pathlib.Path(sys.argv[1]).read_text())\n"
)
DONE = "pathlib.Path(request['out'], 'result.json').write_text(json.dumps({'ok': True}))\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(converter, "FOLDER", tmp_path)
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work" / "out").mkdir(parents=True)

    def call(body: str, seconds: float = 20) -> dict[str, object]:
        (tmp_path / "bad.py").write_text(HEADER + body)
        return converter.convert(
            "bad", {"x": 1}, tmp_path / "work" / "out", seconds=seconds, python=Path(sys.executable)
        )

    return call


def test_a_good_script_gives_its_result_and_leaves_only_its_files(run, tmp_path: Path) -> None:
    assert run("pathlib.Path(request['out'], 'model.bin').write_text('x')\n" + DONE) == {"ok": True}
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "work" / "out").iterdir()] == ["model.bin"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise SystemExit('the graph has a loop')\n", "the graph has a loop"),
        ("os.kill(os.getpid(), 11)\n", "SIGSEGV"),
        ("time.sleep(60)\n", "time limit of 2 s"),
        ("pass\n", "without writing a result"),
        ("x = bytearray(1 << 50)\n" + DONE, "memory limit"),
    ],
    ids=["fails", "crashes", "hangs", "lies", "eats memory"],
)
def test_a_bad_script_is_named_with_the_reason_and_a_way_to_repeat_it(run, body: str, says: str) -> None:
    with pytest.raises(ToolFailed) as error:
        run(body, seconds=2 if "sleep" in body else 20)

    assert "converter bad" in error.value.message and says in error.value.message
    assert "bad.py" in error.value.hint and "request.json" in error.value.hint
    assert error.value.log is not None and error.value.log.is_file()


def test_what_a_script_leaves_running_is_killed_with_it(run, tmp_path: Path) -> None:
    marker = f"sleep 4{tmp_path.stat().st_ino % 10000}"
    run(f"subprocess.Popen({marker.split()!r})\n" + DONE)

    assert subprocess.run(["pgrep", "-f", marker], capture_output=True, text=True).stdout == ""


def test_a_script_has_a_home_of_its_own(run, tmp_path: Path) -> None:
    run("pathlib.Path.home().joinpath('litter').write_text('x')\n" + DONE)

    assert not (Path.home() / "litter").exists()


def test_a_script_has_no_network_where_the_system_can_cut_it_off(run) -> None:
    if not converter.network_cut_off():
        pytest.skip("this system gives no network namespace (unshare)")
    with pytest.raises(ToolFailed, match="Network is unreachable"):
        run("import socket\nsocket.create_connection(('192.0.2.1', 80), 3)\n")

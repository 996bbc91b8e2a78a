"""What becomes of a child's own children."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgepack import process

STARTS_ANOTHER = """
import pathlib, subprocess, sys, time
pathlib.Path(sys.argv[1]).write_text(str(subprocess.Popen(["sleep", "60"], process_group=0).pid))
time.sleep(60)
"""


def test_the_time_limit_ends_also_a_process_that_left_the_childs_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(process.TimedOut):
        process.run([sys.executable, "-c", STARTS_ANOTHER, note], limits=process.Limits(seconds=2))
    assert int(note.read_text()) not in [living for living, _ in process._sessions()]


def test_a_child_that_ends_in_time_gives_its_output_and_its_code(tmp_path: Path) -> None:
    done = process.run([sys.executable, "-c", "print(1); raise SystemExit(3)"])
    assert (done.stdout, done.returncode) == ("1\n", 3)

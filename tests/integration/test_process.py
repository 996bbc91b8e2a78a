"""What becomes of a child's own children."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgepack import process

STARTS_ANOTHER = """
import subprocess, time
print(subprocess.Popen(["sleep", "60"], process_group=0).pid, flush=True)
time.sleep(60)
"""


def test_the_time_limit_ends_also_a_process_that_left_the_childs_group(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(process.TimedOut):
        process.run([sys.executable, "-c", STARTS_ANOTHER], limits=process.Limits(seconds=1), log_file=log)
    pid = int(log.read_text().splitlines()[1])
    assert pid not in [living for living, _ in process._sessions()]


def test_a_child_that_ends_in_time_gives_its_output_and_its_code(tmp_path: Path) -> None:
    done = process.run([sys.executable, "-c", "print(1); raise SystemExit(3)"])
    assert (done.stdout, done.returncode) == ("1\n", 3)

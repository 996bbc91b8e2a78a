# /// script
# requires-python = ">=3.11"
# dependencies = ["ziglang==0.17.0"]
# ///
"""Says where zig is: its PyPI package is a whole C++ cross compiler. The environment is the point of this script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ziglang


def main(request_file: Path) -> None:
    request = json.loads(request_file.read_text())
    program = Path(ziglang.__file__).parent / "zig"
    done = subprocess.run([program, "version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{program} doesn't run on this machine: {done.stderr.strip() or done.returncode}")
    result = {"zig": str(program), "version": done.stdout.strip()}
    Path(request["out"], "result.json").write_text(json.dumps(result))


main(Path(sys.argv[1]))

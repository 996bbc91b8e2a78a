"""Instructions per inference under qemu: a number that is the same on every machine and finds a regression of 1 %.

    python benchmarks/instructions.py FOLDER [--write]

FOLDER holds ``bin/edgepack-ENGINE``, ``lib/``, ``variants/ENGINE-fp32/`` and ``golden/0/`` for aarch64, as a bundle
does. Each harness runs its self-test on N and on 2N copies of the golden sample under Debian's dynamic qemu-user with
a plugin that counts; the difference by N is one inference with its conversions, free of start-up. Instructions are not
time: this finds what was added to the path, not what the caches make of it.

Without --write the counts are compared with ``instructions.json``, which also says what they depend on.
`tests/integration/test_instructions.py` makes the folder and runs this in CI; with EDGEPACK_RECORD=1 it writes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BASELINE = HERE / "instructions.json"
QEMU = "qemu-aarch64"
CPU = "cortex-a76"
RUNS = 6
BOUND = 0.01
ENGINES = ("onnxruntime", "tflite", "ncnn")
SECONDS = 600.0


class Unable(Exception):
    """Why nothing can be counted here, as a clause."""


def plugin(folder: Path) -> Path:
    """Compile the counting plugin. Raises `Unable` where qemu has no plugins or there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if shutil.which(QEMU) is None or compiler is None:
        raise Unable(f"{QEMU if compiler else 'gcc'} is not on PATH (apt install qemu-user gcc)")
    library = folder / "instructions.so"
    source = HERE / "instructions.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", source, "-o", library], check=True)
    if "plugin" not in subprocess.run([QEMU, "--help"], capture_output=True, text=True, check=False).stdout:
        raise Unable(f"{shutil.which(QEMU)} takes no plugins: use Debian's qemu-user, not qemu-user-static")
    return library


def circumstances() -> dict[str, str]:
    """What counts are only comparable within, besides the files themselves: emulator, its CPU and the compiler."""
    compiler = subprocess.run(["aarch64-linux-gnu-g++", "--version"], capture_output=True, text=True, check=True)
    emulator = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    return {
        "qemu": _version(emulator.stdout),
        "cpu": CPU,
        "compiler": f"aarch64-linux-gnu-g++ {_version(compiler.stdout)}",
    }


def _version(text: str) -> str:
    """The upstream version in a program's first line; Debian's patch level changes no generated code."""
    found = re.search(r"\d+\.\d+(\.\d+)?", re.sub(r"\(.*?\)", "", text.splitlines()[0]))
    return found[0] if found else text.splitlines()[0]


def digest(folder: Path) -> str:
    """Of a variant's files by name and size: an .ort file's tables come in another order on another installation."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
    return total.hexdigest()


def count(library: Path, folder: Path, engine: str, golden: Path, sysroot: str) -> int:
    """Instructions of one whole self-test."""
    out = library.with_name("count.txt")
    out.unlink(missing_ok=True)
    argv = [QEMU, "-cpu", CPU, "-L", sysroot, "-plugin", f"{library},out={out}", folder / "bin" / f"edgepack-{engine}"]
    argv += ["self-test", "--variant", folder / "variants" / f"{engine}-fp32", "--golden", golden, "--threads", "1"]
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, check=False, timeout=SECONDS, env=_environment()
    )
    if done.returncode != 0 or not out.is_file():
        raise Unable(f"the self-test of {engine} failed under {QEMU}: {done.stderr[-500:]}")
    return int(out.read_text())


def _environment() -> dict[str, str]:
    """Nothing that changes what the program does or how large its stack is."""
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}


def measure(folder: Path, sysroot: str) -> dict[str, Any]:
    """Instructions per inference of each engine in `folder`, and the digest of what was run."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        library = plugin(Path(scratch))
        for name, runs in (("once", RUNS), ("twice", 2 * RUNS)):
            for index in range(runs):
                shutil.copytree(folder / "golden" / "0", Path(scratch, name, str(index)))
        for engine in ENGINES:
            totals = [count(library, folder, engine, Path(scratch, name), sysroot) for name in ("once", "twice")]
            found[engine] = {
                "instructions": round((totals[1] - totals[0]) / RUNS),
                "model": digest(folder / "variants" / f"{engine}-fp32"),
                "version": _engine_version(folder, engine),
            }
    return found


def _engine_version(folder: Path, engine: str) -> str:
    text = (folder / "variants" / f"{engine}-fp32" / "variant.txt").read_text()
    found = re.search(r"^engine .*\bversion=(\S+)", text, re.M)
    return found[1] if found else ""


def document(folder: Path, sysroot: str) -> dict[str, Any]:
    """What is kept in ``instructions.json``."""
    return {"schema": 1, "circumstances": circumstances(), "engines": measure(folder, sysroot)}


def compare(base: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A sentence for each engine whose count left the bound, up or down, or can't be compared."""
    problems = []
    for engine, new in now["engines"].items():
        old = base["engines"].get(engine, {})
        if {k: old.get(k) for k in ("model", "version")} != {k: new[k] for k in ("model", "version")}:
            problems.append(f"{engine}: the baseline was recorded with another engine or other model files")
        elif abs(change := new["instructions"] / old["instructions"] - 1) > BOUND:
            problems.append(f"{engine}: {old['instructions']} -> {new['instructions']} instructions ({change:+.2%})")
    return problems


def different(base: dict[str, Any]) -> str:
    """In what the baseline's circumstances differ from those here; "" when they are the same."""
    here = circumstances()
    pairs = [(key, base["circumstances"].get(key), value) for key, value in here.items()]
    return "; ".join(f"{key} is {value}, the baseline's {old}" for key, old, value in pairs if old != value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sysroot", default="/usr/aarch64-linux-gnu", help="the target's libraries, for qemu's -L")
    parser.add_argument("--write", action="store_true", help="make this the baseline")
    chosen = parser.parse_args()
    try:
        now = document(chosen.folder, chosen.sysroot)
    except Unable as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    print(json.dumps(now, indent=1))
    if chosen.write:
        BASELINE.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    base = json.loads(BASELINE.read_text())
    problems = [text for text in [different(base), *compare(base, now)] if text]
    print("\n".join(problems) or "no engine changed by more than 1 %", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

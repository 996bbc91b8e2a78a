"""Converters through fork servers: what `edgepack.process.run` does for them, without a new Python for each run."""

from __future__ import annotations

import atexit
import json
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack import converter, process

SECONDS = 120.0  # per model and step; small models take well below one
MEMORY = 12 << 30
_Key = tuple[Path, Path]  # a script under one Python
_servers: dict[_Key, subprocess.Popen[str]] = {}
_lock = threading.Lock()
_locks: dict[_Key, threading.Lock] = {}
_preloaded: dict[str, Path] = {}
_seconds = SECONDS
_real_run = process.run


def install(seconds: float = SECONDS, preloaded: Mapping[str, Path] | None = None) -> None:
    """Let `converter.convert` use fork servers from now on, in this process, for at most `seconds` a step.

    `preloaded` names, for a script, a module that its server imports as well where its Python can.
    """
    global _seconds
    _seconds = seconds
    _preloaded.update(preloaded or {})
    process.run = _run  # type: ignore[assignment]


def call(script: Path, python: Path, request: Path, cwd: Path, log: Path, seconds: float | None = None) -> int | None:
    """Run `script`'s main in a fork; its exit code, or None when it was killed after `seconds`."""
    key = (script, python)
    seconds = seconds or _seconds
    with _lock:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        if key in _servers and _servers[key].poll() is not None:
            del _servers[key]
        server = _server(key)
        job = {"request": str(request), "cwd": str(cwd), "log": str(log), "seconds": seconds, "memory": MEMORY}
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        if not answer:
            del _servers[key]
            raise RuntimeError(f"the fork server of {script.name} died")
        code: int | None = json.loads(answer)["code"]
        return code


def _server(key: _Key) -> subprocess.Popen[str]:
    if key not in _servers:
        script, python = key
        here = Path(__file__).with_name("fork_server.py")
        env = converter._child_env(Path("/nonexistent"), python, 1)
        command = ["chrt", "-i", "0", str(python), "-s", str(here), str(script)]
        command += [str(_preloaded[script.stem])] if script.stem in _preloaded else []
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        _servers[key] = server
        atexit.register(server.kill)
    return _servers[key]


def _run(argv: Any, **rest: Any) -> Any:
    command = [str(word) for word in argv]
    script = Path(command[-2]) if len(command) > 2 else Path()
    if script.parent != converter.FOLDER or "log_file" not in rest:
        return _real_run(argv, **rest)
    log, cwd = Path(rest["log_file"]), Path(rest["cwd"])
    python = Path(command[command.index("-s") - 1])
    code = call(script.resolve(), python, Path(command[-1]), cwd, log)
    if code is None:
        raise process.TimedOut(_seconds, "")
    said = log.read_text("utf-8", "replace") if log.is_file() else ""
    return process.Completed(argv=tuple(command), returncode=code, stdout="", stderr=said, seconds=0.0)

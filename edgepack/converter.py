"""Runs one script of ``converters/`` in its own environment.

A converter is a PEP 723 script: its header names its Python and its pinned dependencies, and uv makes and
caches the environment. The script gets REQUEST.json and writes files and ``result.json`` to the request's
``out`` folder. It imports nothing of edgepack, so a broken dependency of a converter never breaks edgepack,
and a crash of a converter is a sentence instead of the end of the build.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import sysconfig
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack import log, process, resources
from edgepack.cache import sha256_file, sha256_text
from edgepack.errors import ToolFailed, ToolMissing

FOLDER = Path(__file__).parent / "converters"
SECONDS = 1800.0
# What Python, C++, the dynamic loader and the C library say when there is no more memory.
NO_MEMORY = ("MemoryError", "bad_alloc", "failed to map segment", "annot allocate memory")
_preparing: dict[str, threading.Lock] = {}
_guard = threading.Lock()


def convert(
    script: str,
    request: Mapping[str, Any],
    out: Path,
    *,
    seconds: float = SECONDS,
    python: Path | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Run ``converters/SCRIPT.py`` and return its ``result.json``.

    `request` is plain JSON; ``out`` (an existing folder) is added to it. The child works in a scratch folder
    that is removed on success and kept on failure. `python` runs the script under that interpreter instead of
    its own environment. Raises `ToolFailed` (crash, time or memory limit, no result) and `ToolMissing`.
    """
    path = FOLDER / f"{script}.py"
    scratch = out.parent / f"{out.name}.{script}"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "home").mkdir(parents=True)
    full = {**request, "out": str(out), "scratch": str(scratch)}
    request_file = scratch / "request.json"
    request_file.write_text(json.dumps(full, indent=1, default=str))
    interpreter = python if python is not None else environment(script)
    result_file = out / "result.json"
    result_file.unlink(missing_ok=True)
    try:
        done = process.run(
            [*_no_network(), interpreter, "-s", path, request_file],
            cwd=scratch,
            env=_child_env(scratch / "home", interpreter, threads),
            limits=process.Limits(seconds=seconds, memory=_memory_limit(), file_size=64 << 30),
            log_file=scratch / "log.txt",
        )
    except process.TimedOut as error:
        raise _failed(script, f"was killed after its time limit of {error.seconds:.0f} s", scratch) from None
    if done.returncode != 0:
        reason = _last_words(done.stderr) or process.describe_exit(done.returncode)
        if any(sign in done.stderr for sign in NO_MEMORY):
            reason = f"ran out of its memory limit of {_memory_limit() >> 20} MiB ({reason})"
        elif done.returncode < 0:
            reason = f"crashed with {process.describe_exit(done.returncode)}: {reason}"
        raise _failed(script, f"failed: {reason}", scratch)
    try:
        result: dict[str, Any] = json.loads(result_file.read_text())
    except (OSError, ValueError):
        raise _failed(script, "ended without writing a result, although it exited 0", scratch) from None
    result_file.unlink()
    shutil.rmtree(scratch, ignore_errors=True)
    return result


def digest(script: str) -> str:
    """SHA-256 of a converter script, its pins and the modules beside it that it imports: a change of any of them
    makes its steps run again."""
    found = [FOLDER / f"{script}.py"]
    for path in found:  # grows while it is walked
        imported = re.findall(r"^ *(?:from|import) (\w+)", path.read_text("utf-8"), re.M)
        beside = [FOLDER / f"{name}.py" for name in imported]
        found += [file for file in dict.fromkeys(beside) if file.is_file() and file not in found]
    return sha256_text("".join(map(sha256_file, found))) if len(found) > 1 else sha256_file(found[0])


def environment(script: str) -> Path:
    """The Python of the script's environment, made first when it isn't there. Raises `ToolMissing`."""
    path = (FOLDER / f"{script}.py").resolve()
    with _guard:
        lock = _preparing.setdefault(script, threading.Lock())
    with lock:
        return _prepare(path, digest(script))


def prepared(script: str) -> bool:
    """Whether the script's environment is there already."""
    return _remembered(digest(script)) is not None


def scripts() -> list[str]:
    """Every converter script's name."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if "# /// script" in p.read_text()[:4000])


def wanted_python(script: str) -> str:
    """The ``requires-python`` of the script's header."""
    found = re.search(r'^# requires-python = "([^"]+)"', (FOLDER / f"{script}.py").read_text(), re.M)
    return found.group(1) if found else ">=3.11"


def python_for(script: str) -> str | None:
    """An interpreter on this machine that satisfies the script's header, or None."""
    done = process.run(
        [uv(), "python", "find", "--no-project", "--system", wanted_python(script)],
        env=uv_env(),
        limits=process.Limits(seconds=60),
    )
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _prepare(path: Path, script_digest: str) -> Path:
    known = _remembered(script_digest)
    if known is not None:
        return known
    offline = process.run(_sync(path, "--offline"), env=uv_env(), limits=process.Limits(seconds=600))
    if offline.returncode != 0:
        with log.step(f"prepare the environment of {path.stem} (downloads its pinned packages once)"):
            online = process.run(_sync(path), env=uv_env(), limits=process.Limits(seconds=3600))
            if online.returncode != 0:
                raise ToolMissing(
                    f"The environment of the converter {path.stem} can't be made: {_last_words(online.stderr)}",
                    f"It needs Python {wanted_python(path.stem)} and its packages from the package index. "
                    "Install that Python (`uv python install 3.12`, or your system's), check the network, or "
                    "prepare ahead with `edgepack setup` (`--wheelhouse DIR` works without a network).",
                )
    found = _find(path)
    if found is None:
        raise ToolMissing(f"uv made no environment for {path}.", "Run `edgepack doctor`.")
    _remember(script_digest, found)
    return found


def _sync(path: Path, *more: str) -> list[str | Path]:
    return [uv(), "sync", "--quiet", "--script", path, *more]


def _note(script_digest: str) -> Path:
    return resources.cache_root() / "environments" / script_digest


def _remembered(script_digest: str) -> Path | None:
    """The interpreter of an environment that was made before, if it is still there."""
    with contextlib.suppress(OSError):
        known = Path(_note(script_digest).read_text())
        if (known.parent.parent / "pyvenv.cfg").is_file() and known.exists():
            return known
    return None


def _remember(script_digest: str, interpreter: Path) -> None:
    note = _note(script_digest)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(str(interpreter))


def _find(path: Path) -> Path | None:
    done = process.run([uv(), "python", "find", "--script", path], env=uv_env(), limits=process.Limits(seconds=60))
    found = Path(done.stdout.strip()) if done.returncode == 0 and done.stdout.strip() else None
    # Without an environment uv answers with a plain interpreter; an environment has a pyvenv.cfg.
    return found if found is not None and (found.parent.parent / "pyvenv.cfg").is_file() else None


@functools.cache
def uv() -> Path:
    """The uv that came with edgepack, or one on PATH. Raises `ToolMissing`."""
    beside = Path(sysconfig.get_path("scripts"), "uv")
    if beside.is_file():
        return beside
    found = shutil.which("uv")
    if found is None:
        raise ToolMissing("uv was not found.", "Install it: `pip install uv`.")
    return Path(found)


@functools.cache
def _uv_env() -> dict[str, str]:
    env = dict(os.environ)
    env.pop("VIRTUAL_ENV", None)
    env.setdefault("UV_NO_PROGRESS", "1")
    if "PIP_FIND_LINKS" in env:
        env.setdefault("UV_FIND_LINKS", env["PIP_FIND_LINKS"])
    # pyenv's shims answer "command not found" for versions that are not the global one.
    pyenv = Path(env.get("PYENV_ROOT") or Path.home() / ".pyenv")
    real = sorted(str(p) for p in pyenv.glob("versions/3.*/bin"))
    env["PATH"] = os.pathsep.join([*real, env.get("PATH", os.defpath)])
    return env


def uv_env() -> dict[str, str]:
    """The environment for calling uv: find-links as pip has them, every pyenv version on PATH."""
    return dict(_uv_env())


def _child_env(home: Path, interpreter: Path, threads: int) -> dict[str, str]:
    count = str(threads)
    return {
        "PATH": os.pathsep.join([str(interpreter.parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "ORT_DISABLE_TELEMETRY": "1",
        "SOURCE_DATE_EPOCH": "315532800",
    }


def network_cut_off() -> bool:
    """Whether converters run without a network here."""
    return bool(_no_network())


@functools.cache
def _no_network() -> tuple[str, ...]:
    """``unshare`` with an empty network namespace where the kernel lets us, else nothing."""
    for prefix in (("unshare", "--net", "--"), ("unshare", "--map-root-user", "--net", "--")):
        with contextlib.suppress(ToolMissing, process.TimedOut):
            if process.run([*prefix, "true"], limits=process.Limits(seconds=10)).returncode == 0:
                return prefix
    return ()


def _memory_limit() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = os.environ.get("EDGEPACK_CONVERTER_MEMORY_MB")
    return int(wanted) << 20 if wanted else max(8 << 30, total * 3 // 4)


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "warnings.warn(" not in line]
    return lines[-1][:600] if lines else ""


def _failed(script: str, what: str, scratch: Path) -> ToolFailed:
    kept = _keep(scratch)
    path = (FOLDER / f"{script}.py").resolve()
    again = shlex.join(["uv", "run", "--script", str(path), str(kept / "request.json")])
    hint = f"To repeat this step by hand: {again}"
    return ToolFailed(f"The converter {script} {what}.", hint, log=kept / "log.txt")


def _keep(scratch: Path) -> Path:
    """Move a failed converter's folder out of the cache's scratch space, replacing an older one."""
    kept = resources.cache_root() / "failed" / scratch.suffix.removeprefix(".")
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(str(scratch), kept)
    request = kept / "request.json"
    content = {**json.loads(request.read_text()), "scratch": str(kept), "out": str(kept / "out")}
    (kept / "out").mkdir(exist_ok=True)
    request.write_text(json.dumps(content, indent=1))
    return kept

"""Harnesses compiled for this machine with sanitizers, and run with limits."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from edgepack import config, ncnn_source, runtimes
from edgepack.this_machine import MACHINES
from tests.conftest import ROOT, missing

ASAN = "address,undefined"
TSAN = "thread"
LAYERS = ("Input", "Convolution", "Pooling", "InnerProduct")  # what tests.models.tiny_classifier becomes
LEAKS = Path(__file__).parent / "leaks.supp"
RACES = Path(__file__).parent / "races.supp"
# A crash is a report with a stack, not a bare signal; memory that a damaged file asks for is refused.
OPTIONS = {
    "ASAN_OPTIONS": "handle_abort=1:handle_sigill=1:handle_sigfpe=1:allocator_may_return_null=1:"
    "max_allocation_size_mb=2048:hard_rss_limit_mb=4096",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "LSAN_OPTIONS": f"suppressions={LEAKS}:print_suppressions=0",
    "TSAN_OPTIONS": f"halt_on_error=1:suppressions={RACES}:print_suppressions=0",
}


@dataclass(frozen=True)
class Ran:
    """A finished harness: exit code (negative: signal), JSON lines, stderr. `code` is None when it was killed."""

    code: int | None
    lines: list[dict[str, Any]]
    said: str

    @property
    def sanitizer(self) -> bool:
        """Whether one has found something; that it refused to allocate is the engine's to handle."""
        return re.search(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|: runtime error: ", self.said) is not None

    @property
    def last_words(self) -> str:
        return (self.said.strip().splitlines() or [""])[-1]


@dataclass
class Native:
    """`folder` holds the builds, `cache` is edgepack's (for the engines' libraries)."""

    folder: Path
    cache: Path
    built: dict[tuple[str, str], Path] = field(default_factory=dict)

    def library(self, engine: str) -> Path:
        """The engine's shared library for this machine, as the target profiles pin it."""
        with mock.patch.dict(os.environ, {"EDGEPACK_CACHE": str(self.cache)}):
            (found,) = runtimes.spec(engine, host(), ()).libraries.values()
        return found

    def program(self, engine: str, sanitize: str) -> Path:
        """``bin/edgepack-ENGINE`` with ``lib/`` beside it, as in a bundle."""
        if (engine, sanitize) not in self.built:
            self.built[engine, sanitize] = self._build(engine, sanitize)
        return self.built[engine, sanitize]

    def _build(self, engine: str, sanitize: str) -> Path:
        home = self.folder / f"{engine}-{sanitize.replace(',', '-') or 'plain'}"
        arguments = [f"-DEDGEPACK_BACKEND={engine}", f"-DEDGEPACK_SANITIZE={sanitize}", "-DEDGEPACK_TESTS=OFF"]
        arguments += ["-DCMAKE_BUILD_TYPE=" + ("Debug" if sanitize else "Release")]
        version = "1"
        if engine != "null":
            version = runtimes.pins()[engine]["version"]
        if engine == "ncnn":
            arguments += self.ncnn_arguments(home)
        elif engine != "null":
            (home / "lib").mkdir(parents=True, exist_ok=True)
            library = self.library(engine)
            (home / "lib" / library.name).unlink(missing_ok=True)
            (home / "lib" / library.name).symlink_to(library)
            arguments.append(f"-DEDGEPACK_ENGINE_LIBRARY={library.name}")
        arguments.append(f"-DEDGEPACK_ENGINE_VERSION={version}")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        done([shutil.which("cmake"), "-S", ROOT / "cpp_runtime", "-B", home / "build", *generator, *arguments])
        jobs = str(os.cpu_count() or 1)
        done([shutil.which("cmake"), "--build", home / "build", "--target", f"edgepack-{engine}", "--parallel", jobs])
        (home / "bin").mkdir(exist_ok=True)
        return Path(shutil.copy2(home / "build" / f"edgepack-{engine}", home / "bin"))

    def ncnn_arguments(self, home: Path) -> list[str]:
        """No more of ncnn than the test's model needs, and one set of instructions: all under a minute of compiling."""
        with mock.patch.dict(os.environ, {"EDGEPACK_CACHE": str(self.cache)}):
            source = ncnn_source.unpack(runtimes.source("ncnn"), home / "ncnn")
        off = [*ncnn_source._X86_NEVER, "AVX", "FMA", "F16C", "AVX2", "AVX512", "AVX512VNNI", "RUNTIME_CPU"]
        off += ["BF16", "INT8", "C_API", "PIXEL", "PIXEL_ROTATE", "PIXEL_AFFINE", "PIXEL_DRAWING", "PLATFORM_API"]
        layers = ncnn_source.layer_arguments([ncnn_source.LAYERS + ";".join(LAYERS)], source, host().arch)
        on = ["OPENMP", "SIMPLEOMP", "THREADS"]
        version = runtimes.pins()["ncnn"]["version"].rpartition(".")[2]
        return [
            f"-DNCNN_SOURCE_DIR={source}", f"-DNCNN_VERSION={version}", *layers,
            *(f"-DNCNN_{name}=ON" for name in on), *(f"-DNCNN_{name}=OFF" for name in off),
        ]  # fmt: skip


def host() -> Any:
    """The generic profile of this machine's architecture."""
    arch = MACHINES.get(platform.machine())
    if arch is None:
        missing(f"there is no profile for {platform.machine()}")
    return config.load_target(f"linux-{arch}")


def done(argv: Sequence[Any]) -> str:
    """Run a command that must succeed; gives its stdout."""
    ran = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    return ran.stdout


def run(program: Path, *words: Any, seconds: float = 60, env: Mapping[str, str] = {}, **more: Any) -> Ran:
    """Run a harness; `more` goes to subprocess.run."""
    argv = [str(word) for word in (program, *words)]
    more = {"stdout": subprocess.PIPE, **more}
    try:
        ran = subprocess.run(
            argv, stderr=subprocess.PIPE, check=False, timeout=seconds, env={**os.environ, **OPTIONS, **env}, **more
        )
    except subprocess.TimeoutExpired as error:
        return Ran(None, [], (error.stderr or b"").decode("utf-8", "replace"))
    lines = [json.loads(line) for line in (ran.stdout or b"").splitlines()]
    return Ran(ran.returncode, lines, ran.stderr.decode("utf-8", "replace"))

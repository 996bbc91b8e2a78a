"""Configures and builds cpp_runtime for one target and engine.

ncnn is compiled from its source with only the layers that the models need; the other engines' libraries are shipped
beside the harness, which loads them by name. The same inputs give the same bytes, wherever the build happens.
"""

from __future__ import annotations

import json
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepack import build_folder, elf, ncnn_source, plugins, process, runtimes
from edgepack.cache import digest_of, sha256_file, sha256_text, tree_digests
from edgepack.errors import OutOfSpace, ToolFailed, ToolMissing, Unsupported
from edgepack.resources import cache_root, data
from edgepack.types import Compiler, RuntimeSpec, Target

SECONDS = 3600.0
MINUTES_OF_CMAKE = 300.0
CORE = "libedgepack.a"
SOURCES = ("CMakeLists.txt", "backends", "cmake", "include", "src")  # what of cpp_runtime reaches a harness


def core_key(target: Target, compiler: Compiler) -> tuple[dict[str, str], dict[str, Any]]:
    """Everything that decides the bytes of `build_core`: input digests and parameters of its cache step."""
    inputs = {"cpp_runtime": _sources(), "compiler": compiler.digest, "code": plugins.module_digest(__name__)}
    return inputs, {"size": target.size, "static": compiler.static, "arch": target.arch}


def _sources() -> str:
    runtime = tree_digests(data("cpp_runtime"))
    return digest_of({name: d for name, d in runtime.items() if name.split("/")[0] in SOURCES})


def key(engine: str, spec: RuntimeSpec, target: Target, compiler: Compiler) -> tuple[dict[str, str], dict[str, Any]]:
    """Everything that decides a harness's bytes: input digests and parameters of its cache step."""
    inputs = {
        "cpp_runtime": _sources(),
        "compiler": compiler.digest,
        "runtime": spec.digest,
        "code": digest_of({m.__name__: plugins.module_digest(m.__name__) for m in (elf, ncnn_source, build_folder)})
        + plugins.module_digest(__name__),
    }
    params: dict[str, Any] = {
        "engine": engine,
        "version": spec.version,
        "arguments": list(spec.cmake_args),
        "needs": list(spec.cpu_features),
        "full": spec.full_size,
        "static": compiler.static,
        "arch": target.arch,
        # Not part of the bytes, but of whether they are accepted.
        "libc": [target.libc, target.libc_version, target.glibcxx],
        "cpu_features": list(target.cpu_features),
    }
    return inputs, params


def build_core(target: Target, compiler: Compiler, out: Path, jobs: int) -> None:
    """Write ``libedgepack.a`` to `out`: all of the harness that is the same for every engine."""
    _prepare(compiler)
    _compile_apart("edgepack", out / CORE, _core_arguments(target, compiler), compiler, jobs, out)


def build(
    engine: str,
    spec: RuntimeSpec,
    target: Target,
    compiler: Compiler,
    out: Path,
    jobs: int,
    core: Path | None = None,
) -> None:
    """Write ``bin/edgepack-ENGINE``, ``lib/``, ``licences/``, ``elf.json`` and ``size.json`` to `out`.

    `core` is the file that `build_core` made for this target and compiler; without it the program is the same bytes.
    ``elf.json`` holds the harness's `elf.Needs`, those of each shipped library under ``shipped``, and the CPU features
    that the code uses. Sizes are bytes. Raises `ToolMissing` (no CMake), `ToolFailed` (the compiler said no) and
    `Unsupported` (the program would need more than the target's profile promises).
    """
    _prepare(compiler)
    harness = out / "bin" / f"edgepack-{engine}"
    for name, files in (("bin", {}), ("lib", spec.libraries), ("licences", spec.licences)):
        (out / name).mkdir()
        for file, path in files.items():
            shutil.copyfile(path, out / name / file)
    if engine == "ncnn":  # compiled with it
        _make_with_ncnn(spec, target, compiler, harness, jobs)
    else:
        arguments = [*_arguments(spec, compiler), *spec.cmake_args]
        arguments += [f"-DEDGEPACK_CORE={core}"] if core is not None else []
        _compile_apart(harness.name, harness, arguments, compiler, jobs, out)
    harness.chmod(0o755)
    shipped = sorted((out / "lib").iterdir())
    if problems := [sentence for path in (harness, *shipped) for sentence in elf.violations(path, target)]:
        raise Unsupported(
            f"The harness of {engine} from {compiler.description} doesn't fit {target.name}: {'; '.join(problems)}.",
            f"If your device has more than the profile says, make a profile that extends {target.name}; "
            "else use a compiler for an older system (zig can choose the libc version).",
        )
    needs = elf.needs(harness).document()
    needs["shipped"] = {path.name: elf.needs(path).document() for path in shipped}
    needs["cpu_features"] = list(spec.cpu_features)
    _write(out / "elf.json", needs)
    sizes = {path.name: path.stat().st_size for path in shipped}
    own = harness.stat().st_size
    total = own + sum(sizes.values())
    full = spec.full_size + own if spec.full_size and sizes else spec.full_size
    _write(out / "size.json", {"harness": own, "libraries": sizes, "total": total, "full": full})


def _prepare(compiler: Compiler) -> None:
    if prepare := getattr(plugins.load("toolchains", compiler.toolchain), "prepare", None):
        prepare(compiler)


def _arguments(spec: RuntimeSpec, compiler: Compiler) -> list[str]:
    return [
        f"-DEDGEPACK_BACKEND={spec.backend}",
        f"-DEDGEPACK_ENGINE_VERSION={spec.version}",
        f"-DEDGEPACK_CPU_FEATURES={','.join(spec.cpu_features)}",
        *_common_arguments(compiler),
    ]


def _core_arguments(target: Target, compiler: Compiler) -> list[str]:
    return ["-DEDGEPACK_BACKEND=null", f"-DEDGEPACK_SIZE={target.size}", *_common_arguments(compiler)]


def _common_arguments(compiler: Compiler) -> list[str]:
    return [
        f"-DEDGEPACK_STATIC={'ON' if compiler.static else 'OFF'}",
        "-DEDGEPACK_TESTS=OFF",
        "-DCMAKE_BUILD_TYPE=Release",
        *compiler.cmake_args,
    ]


def _compile_apart(
    target: str, product: Path, arguments: Sequence[str], compiler: Compiler, jobs: int, out: Path
) -> None:
    """`_compile` in a folder beside `out` that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=out.parent, ignore_cleanup_errors=True) as scratch:
        _compile(target, product, data("cpp_runtime"), Path(scratch), arguments, compiler, jobs)


def _make_with_ncnn(spec: RuntimeSpec, target: Target, compiler: Compiler, harness: Path, jobs: int) -> None:
    """Compile ncnn and the harness in a folder that keeps ncnn's objects for the next model."""
    archive = runtimes.source("ncnn")
    arguments = [*_arguments(spec, compiler), f"-DNCNN_VERSION={spec.version.rpartition('.')[2]}"]
    shared = [*arguments, *ncnn_source.shared_arguments(spec.cmake_args)]
    key = sha256_text(json.dumps([compiler.digest, sha256_file(archive), _tools(), shared]))
    with build_folder.locked(key, data("cpp_runtime")) as folder:
        source = ncnn_source.unpack(archive, folder.root / "source")
        arguments += [f"-DNCNN_SOURCE_DIR={source}", *ncnn_source.layer_arguments(spec.cmake_args, source, target.arch)]
        if compiler.toolchain == "cmake_file":
            folder.empty()  # nobody knows which compiler the user's file means today
        used = folder.build.is_dir()
        try:
            _compile(harness.name, harness, folder.runtime, folder.root, arguments, compiler, jobs, [folder.lock])
        except ToolFailed:
            if not used:
                raise
            folder.empty()  # it may be the folder's fault: a compiler that moved, a damaged file of CMake's
            _compile(harness.name, harness, folder.runtime, folder.root, arguments, compiler, jobs, [folder.lock])
        folder.trust()


def _tools() -> list[str]:
    """The build tools, which a build folder remembers."""
    return [str(program("cmake")), str(program("ninja"))]


def program(name: str) -> str | None:
    """A build tool on PATH, or the one that was installed beside edgepack from the package index."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def _compile(
    target: str,
    product: Path,
    source: Path,
    folder: Path,
    arguments: Sequence[str],
    compiler: Compiler,
    jobs: int,
    lock: Sequence[int] = (),
) -> None:
    """Build CMake's `target` of `source` in ``folder/build`` and copy the file named like `product` there."""
    cmake, ninja = program("cmake"), program("ninja")
    if cmake is None:
        raise ToolMissing("CMake was not found.", "Install it: `pip install cmake ninja`, or your system's packages.")
    build = folder / "build"
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-G", "Unix Makefiles"]
    env = {**process.clean_environment(), **compiler.env}
    steps: tuple[tuple[list[str | Path], float], ...] = (
        ([cmake, "--no-warn-unused-cli", "-S", source, "-B", build, *generator, *arguments], MINUTES_OF_CMAKE),
        ([cmake, "--build", build, "--target", target, "--parallel", str(max(1, jobs))], SECONDS),
    )
    (build / product.name).unlink(missing_ok=True)
    logs: list[Path] = []
    for argv, seconds in steps:
        logs.append(folder / f"log{len(logs)}.txt")
        try:
            done = process.run(argv, env=env, limits=process.Limits(seconds=seconds), log_file=logs[-1], pass_fds=lock)
        except process.TimedOut as error:
            raise _failed(target, compiler, f"was killed after {error.seconds:.0f} s", logs) from None
        if done.returncode != 0:
            raise _failed(target, compiler, first_error(f"{done.stderr}\n{done.stdout}"), logs)
    shutil.copyfile(build / product.name, product)


def first_error(text: str) -> str:
    """The line of a compiler's or CMake's output that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith("CMake Error"):
            return " ".join([line, *lines[number + 1 : number + 3]])
        if re.search(r"\berror: |undefined reference|cannot find -l|\bKilled\b|No space left", line):
            return line
    return lines[-1] if lines else "it said nothing"


def _failed(target: str, compiler: Compiler, reason: str, logs: Sequence[Path]) -> Exception:
    engine = target.removeprefix("edgepack").lstrip("-")
    what = f"The harness of {engine}" if engine else "The runtime that the harnesses share"
    kept = cache_root() / "failed" / f"harness-{engine or 'core'}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("\n".join(path.read_text() for path in logs if path.is_file()))
    if "No space left on device" in kept.read_text():
        return OutOfSpace(
            f"The disk is full ({shutil.disk_usage(kept.parent).free >> 20} MiB free). {what} can't be compiled.",
            "Free about 300 MiB, or choose another folder with EDGEPACK_CACHE.",
        )
    hint = "The log holds every command. If the compiler ran out of memory, try again with --jobs 1."
    return ToolFailed(f"{what} didn't compile with {compiler.description}: {reason}", hint, log=kept)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

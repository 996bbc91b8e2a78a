"""Configures and builds cpp_runtime for one target and engine.

ncnn is compiled from its source with only the layers that the models need; the other engines' libraries are shipped
beside the harness, which loads them by name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgepack import elf, process
from edgepack.cache import digest_of, sha256_file, tree_digests
from edgepack.errors import ToolFailed, ToolMissing, Unsupported
from edgepack.resources import cache_root, data
from edgepack.runtimes import ncnn_source
from edgepack.types import Compiler, RuntimeSpec, Target

# Layers that ncnn makes by itself between the layers of a model.
IMPLICIT_LAYERS = (
    "Cast", "Clip", "Crop", "Dequantize", "Flatten", "Input", "Packing", "Padding", "Quantize", "Requantize",
    "Reshape", "Split",
)  # fmt: skip
# CPU feature of a profile -> ncnn's CMake options that compile kernels for it; all off where the profile lacks it.
ARM_KERNELS = {
    "asimdhp": ("NCNN_ARM82",),
    "asimddp": ("NCNN_ARM82DOT",),
    "asimdfhm": ("NCNN_ARM82FP16FML",),
    "bf16": ("NCNN_ARM84BF16",),
    "i8mm": ("NCNN_ARM84I8MM",),
    "sve": ("NCNN_ARM86SVE", "NCNN_ARM86SVE2", "NCNN_ARM86SVEBF16", "NCNN_ARM86SVEI8MM", "NCNN_ARM86SVEF32MM"),
}
X86_KERNELS = {"avx": ("NCNN_AVX",), "fma": ("NCNN_FMA",), "avx2": ("NCNN_AVX2",), "f16c": ("NCNN_F16C",)}
X86_OFF = ("AVX512", "AVX512VNNI", "AVX512BF16", "AVX512FP16", "AVXVNNI", "AVXVNNIINT8", "AVXNECONVERT", "XOP")
SECONDS = 3600.0


def key(engine: str, spec: RuntimeSpec, target: Target, compiler: Compiler) -> tuple[dict[str, str], dict[str, Any]]:
    """Everything that decides a harness's bytes: input digests and parameters of its cache step."""
    inputs = {
        "cpp_runtime": digest_of(tree_digests(data("cpp_runtime"))),
        "compiler": compiler.digest,
        "runtime": spec.digest,
        "code": sha256_file(Path(__file__)),
    }
    params: dict[str, Any] = {
        "engine": engine,
        "version": spec.version,
        "arch": target.arch,
        "static": compiler.static,
        "libc": [target.libc, target.libc_version, target.glibcxx],
        "layers": list(spec.cmake_args),
        "kernels": _kernel_options(target) if engine == "ncnn" else [],
    }
    return inputs, params


def build(engine: str, spec: RuntimeSpec, target: Target, compiler: Compiler, out: Path, jobs: int) -> None:
    """Write ``bin/edgepack-ENGINE``, ``lib/``, ``licences/`` and ``elf.json`` to `out`.

    Raises `ToolMissing` (no CMake), `ToolFailed` (the compiler said no) and `Unsupported` (the program would need
    more than the target's profile promises).
    """
    scratch = out.parent / "build"
    scratch.mkdir()
    args = [
        f"-DEDGEPACK_BACKEND={spec.backend}",
        f"-DEDGEPACK_ENGINE_VERSION={spec.version}",
        f"-DCMAKE_BUILD_TYPE={'Release'}",
        *(f"-DEDGEPACK_ENGINE_LIBRARY={name}" for name in spec.libraries),
        *(["-DEDGEPACK_STATIC=ON"] if compiler.static else []),
        *compiler.cmake_args,
    ]
    if engine == "ncnn":
        source = ncnn_source(scratch / "ncnn")
        args += [f"-DNCNN_SOURCE_DIR={source}", *ncnn_options(source, spec.cmake_args, target)]
        _keep_licence(source, out)
    program = _compile(engine, scratch, args, compiler, jobs)
    (out / "bin").mkdir()
    shutil.copyfile(program, out / "bin" / program.name)
    (out / "bin" / program.name).chmod(0o755)
    (out / "lib").mkdir()
    (out / "licences").mkdir(exist_ok=True)
    for name, path in spec.libraries.items():
        shutil.copyfile(path, out / "lib" / name)
    for name, path in spec.licences.items():
        shutil.copyfile(path, out / "licences" / name)
    problems = [
        p for path in (out / "bin" / program.name, *(out / "lib").iterdir()) for p in elf.violations(path, target)
    ]
    if problems:
        raise Unsupported("; ".join(problems), f"Extend {target.name} with what your device really has, or use ncnn.")
    (out / "elf.json").write_text(json.dumps(elf.needs(out / "bin" / program.name).document(), sort_keys=True))
    shutil.rmtree(scratch)


def ncnn_options(source: Path, layers: Iterable[str], target: Target) -> list[str]:
    """CMake options that build ncnn with only `layers` and what those make inside, for the target's CPU."""
    known = re.findall(r"^ncnn_add_layer\((\w+)", (source / "src" / "CMakeLists.txt").read_text(), re.M)
    wanted = layer_closure(source, {*layers, *IMPLICIT_LAYERS} & set(known), set(known))
    if target.arch == "x86_64":
        wanted = layer_closure(source, wanted | {"Gemm"}, set(known))  # Convolution_x86 links Gemm's int8 kernels
    return [
        "-DNCNN_VERSION=20261020",
        *(f"-DWITH_LAYER_{name.lower()}=OFF" for name in known if name not in wanted),
        *_kernel_options(target),
    ]


def layer_closure(source: Path, layers: set[str], known: set[str]) -> set[str]:
    """`layers` and every layer type that their sources make by ``LayerType::NAME``, and so on."""
    found: set[str] = set()
    left = set(layers)
    while left:
        name = left.pop()
        found.add(name)
        for path in (source / "src" / "layer").rglob(f"{name.lower()}*"):
            stem = path.stem.split("_")[0]
            if path.suffix in (".cpp", ".h") and stem == name.lower():
                used = set(re.findall(r"LayerType::(\w+)", path.read_text(errors="replace")))
                if "fused_activation.h" in path.read_text(errors="replace"):
                    used |= {"ReLU", "Clip", "Sigmoid", "Mish", "HardSwish"}
                left |= (used & known) - found
    return found


def _kernel_options(target: Target) -> list[str]:
    off = ["-DNCNN_BF16=OFF"] if "bf16" not in target.cpu_features else []
    options = ["-DNCNN_OPENMP=ON", "-DNCNN_SIMPLEOMP=ON", *off]
    table = {"aarch64": ARM_KERNELS, "x86_64": X86_KERNELS}.get(target.arch, {})
    for feature, names in table.items():
        state = "ON" if feature in target.cpu_features else "OFF"
        options += [f"-D{name}={state}" for name in names]
    if target.arch == "x86_64":
        options += [f"-DNCNN_{name}=OFF" for name in X86_OFF]
    return options


def _compile(engine: str, scratch: Path, args: list[str], compiler: Compiler, jobs: int) -> Path:
    cmake = shutil.which("cmake")
    if cmake is None:
        raise ToolMissing("CMake was not found.", "Install it: `apt install cmake ninja-build`.")
    build_dir = scratch / "out"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    env = {**process.clean_environment(), **compiler.env}
    log_file = scratch / "log.txt"
    for argv in (
        [cmake, "-S", data("cpp_runtime"), "-B", build_dir, *generator, *args],
        [cmake, "--build", build_dir, "--target", f"edgepack-{engine}", "--parallel", str(jobs)],
    ):
        done = process.run(argv, env=env, limits=process.Limits(seconds=SECONDS), log_file=log_file)
        if done.returncode != 0:
            kept = cache_root() / "failed" / f"harness-{engine}.log"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log_file, kept)
            lines = (done.stdout + done.stderr).splitlines()
            first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")
            raise ToolFailed(
                f"The harness of {engine} didn't compile with {compiler.description}: {first.strip()}",
                "See the log.",
                log=kept,
            )
    return build_dir / f"edgepack-{engine}"


def _keep_licence(source: Path, out: Path) -> None:
    (out / "licences").mkdir(exist_ok=True)
    for name in ("LICENSE.txt", "LICENSE"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / "licences" / f"ncnn-{name}")

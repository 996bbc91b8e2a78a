"""What ncnn's harness weighs and what it costs to compile it, for the layers of two real models.

    python benchmarks/runtime_build.py [--target rk3588] [--part sizes|times|full]... [--jobs 2]

sizes: EfficientNet-Lite0's layers as small and fast, static and dynamic, with and without INT8.
times: EfficientNet-Lite0 from an empty cache, then PP-OCRv4 cls, then other precisions; the same again from empty
caches, and whether the bytes agree.
musl: EfficientNet-Lite0 with zig for android-arm64, as one static program for any kernel.
full: the whole of ncnn, for the constants of engines/runtimes.toml.
CPU seconds are of all child processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgepack import config, harness, runtimes, toolchains
from edgepack.cache import sha256_file
from edgepack.resources import cache_root
from edgepack.toolchains.zig import Zig
from edgepack.types import Compiler, Precision, Target

# Artifact.layers of the two models (of `edgepack build`, all precisions).
LITE0 = ("BinaryOp", "Clip", "Convolution", "ConvolutionDepthWise", "InnerProduct", "Input", "Pooling", "Split")
CLS = (
    "BinaryOp", "Convolution", "ConvolutionDepthWise", "HardSigmoid", "HardSwish", "InnerProduct", "Input", "Pooling",
    "ReLU", "Reshape", "Softmax", "Split",
)  # fmt: skip
FLOAT, ALL = (Precision.FP32, Precision.FP16), tuple(Precision)
ROW = "{:<58}{:>9}{:>9}{:>12}  {}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="rk3588")
    parser.add_argument("--part", action="append", default=[], choices=["sizes", "times", "musl", "full"])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    target = config.load_target(options.target)
    runtimes.source("ncnn")  # fetched before anything is timed
    print(
        f"{target.name}, {toolchains.select(target, 'ncnn').description}, {os.cpu_count()} cores, --jobs {options.jobs}"
    )
    print(ROW.format("", "CPU s", "wall s", "bytes", f"load {os.getloadavg()[0]:.1f}"))
    for part in options.part or ["sizes", "times"]:
        {"sizes": sizes, "times": times, "musl": musl, "full": full}[part](target, options.jobs)


def sizes(target: Target, jobs: int) -> None:
    for size, static, precisions, what in (
        ("small", True, ALL, "small, static, fp32 fp16 int8"),
        ("fast", True, ALL, "fast, static, fp32 fp16 int8"),
        ("small", False, FLOAT, "small, dynamic, fp32 fp16"),
        ("small", True, FLOAT, "small, static, fp32 fp16"),
        ("fast", False, ALL, "fast, dynamic, fp32 fp16 int8"),
    ):
        with Empty() as cache:
            cache.make(replace(target, size=size, static=static), LITE0, precisions, f"Lite0: {what}", jobs)


def times(target: Target, jobs: int) -> None:
    for size in ("fast", "small"):
        chosen = replace(target, size=size)
        made: dict[str, str] = {}
        with Empty() as cache:
            made["Lite0"] = cache.make(chosen, LITE0, ALL, f"{size}: Lite0, empty cache", jobs)
            made["cls"] = cache.make(chosen, CLS, ALL, f"{size}: PP-OCR cls after it", jobs)
            made["float"] = cache.make(chosen, LITE0, FLOAT, f"{size}: Lite0 without int8 after them", jobs)
            again = cache.make(chosen, LITE0, ALL, f"{size}: Lite0 once more, harness not cached", jobs)
            print(f"    as the first time: {again == made['Lite0']}")
        for name, layers, precisions in (("cls", CLS, ALL), ("float", LITE0, FLOAT)):
            with Empty() as cache:
                digest = cache.make(chosen, layers, precisions, f"{size}: {name} alone, empty cache", jobs)
                print(f"    as with the others before: {digest == made[name]}")


def musl(target: Target, jobs: int) -> None:
    android = config.load_target("android-arm64")
    zig = Zig().locate(android, static=True)
    if zig is None:
        sys.exit("zig has no wheel for this machine")
    for size in ("small", "fast"):
        with Empty() as cache:
            chosen = replace(android, size=size)
            cache.make(chosen, LITE0, ALL, f"{size}: Lite0, zig, static musl, ARMv8.0", jobs, zig)
            cache.make(chosen, CLS, ALL, f"{size}: PP-OCR cls after it", jobs, zig)


def full(target: Target, jobs: int) -> None:
    for size in ("fast", "small"):
        with Empty() as cache:
            cache.make(replace(target, size=size), (), ALL, f"{size}: every layer, static, fp32 fp16 int8", jobs)


class Empty:
    """An empty cache with nothing but what was downloaded."""

    def __enter__(self) -> Empty:
        self.downloads = cache_root() / "downloads"
        self.before = os.environ.get("EDGEPACK_CACHE")
        self.folder = Path(tempfile.mkdtemp(prefix="edgepack-runtime-"))
        os.environ["EDGEPACK_CACHE"] = str(self.folder)
        (self.folder / "downloads").symlink_to(self.downloads)
        self.count = 0
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.folder)
        os.environ.pop("EDGEPACK_CACHE")
        if self.before is not None:
            os.environ["EDGEPACK_CACHE"] = self.before

    def make(
        self,
        target: Target,
        layers: Sequence[str],
        precisions: tuple[Precision, ...],
        what: str,
        jobs: int,
        compiler: Compiler | None = None,
    ) -> str:
        """Build one harness, print its row and return its digest."""
        spec = runtimes.spec("ncnn", target, tuple(layers), precisions)
        compiler = compiler or toolchains.select(target, "ncnn")
        self.count += 1
        out = self.folder / str(self.count)
        out.mkdir()
        before, started = spent(), time.monotonic()
        harness.build("ncnn", spec, target, compiler, out, jobs)
        seconds, wall = spent() - before, time.monotonic() - started
        program = out / "bin" / "edgepack-ncnn"
        digest = sha256_file(program)
        print(ROW.format(what, f"{seconds:.1f}", f"{wall:.1f}", f"{program.stat().st_size:,}", digest[:12]), flush=True)
        return digest


def spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())

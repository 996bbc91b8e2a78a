"""Our ncnn harness against upstream's benchncnn, on the same .param files with the same libncnn.a.

    python benchmarks/ncnn_upstream.py NCNN_TREE [--models squeezenet,mobilenet] [--blocks 10] [--scratch DIR]

NCNN_TREE is upstream's repository; `benchmark/` of it is all that is used (the library is the source that edgepack
pins). benchncnn is compiled here for comparison only, against the library that our harness was linked with, so that
compilers and kernels are the same; `--benchncnn FILE` takes a build of the user's own instead.

Weights are zero and inputs 0.01 on both sides, as benchncnn has it; our variant is fp16, because benchncnn allows half
precision. One thread. A block is upstream, ours, ours, upstream, each a process with its own warm-up and RUNS timed
runs; compared is the fastest run of each (benchncnn prints no median, and hundredths of a millisecond). The ratio is
the median over the blocks, with that of upstream's own two turns as the noise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import config, harness, ncnn_source, runtimes
from edgepack.resources import data
from edgepack.types import Precision

RUNS = 50
CLASSES = 1000
SIDES = {"squeezenet": 227, "mobilenet": 224, "mobilenet_v2": 224}
PRECISIONS = (Precision.FP32, Precision.FP16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--models", default="squeezenet,mobilenet")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--benchncnn", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "ncnn-upstream")
    chosen = parser.parse_args()
    models = chosen.models.split(",")
    if unknown := set(models) - set(SIDES):
        print(f"unknown models: {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}", file=sys.stderr)
        return 2
    params = {name: chosen.tree / "benchmark" / "models" / f"{name}.param" for name in models}
    if not all(path.is_file() for path in params.values()):
        params = {name: chosen.tree / "benchmark" / f"{name}.param" for name in models}  # where they were before 2026
    chosen.scratch.mkdir(parents=True, exist_ok=True)
    ours = build(chosen.scratch, [path.read_text() for path in params.values()])
    upstream = chosen.benchncnn or build_upstream(chosen.tree, chosen.scratch)
    results = []
    for name, path in params.items():
        variant = make_variant(chosen.scratch / name, path, SIDES[name], ours)
        result = {"model": name, **compare(upstream, ours, path, SIDES[name], variant, chosen.blocks)}
        print(json.dumps(result), flush=True)
        results.append(result)
    return 0 if all(r["ratio"] <= 1 + r["noise"] for r in results) else 1


def build(scratch: Path, params: list[str]) -> Path:
    """The harness with exactly the layers of these .param files, for this machine."""
    target = replace(config.load_target("host"), precisions=PRECISIONS)
    layers = {line.split()[0] for text in params for line in text.splitlines()[2:] if line.strip()}
    source = ncnn_source.unpack(runtimes.source("ncnn"), scratch / "source")
    arguments = ncnn_source.layer_arguments(ncnn_source.arguments(target, layers, PRECISIONS), source, target.arch)
    version = runtimes.pins()["ncnn"]["version"]
    cmake = str(harness.program("cmake"))
    configure = [cmake, "-S", data("cpp_runtime"), "-B", scratch / "build", "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DEDGEPACK_BACKEND=ncnn", f"-DEDGEPACK_ENGINE_VERSION={version}", f"-DNCNN_SOURCE_DIR={source}"]
    call([*configure, f"-DNCNN_VERSION={version.rpartition('.')[2]}", "-DEDGEPACK_TESTS=OFF", *arguments])
    call([cmake, "--build", scratch / "build", "--target", "edgepack-ncnn", "--parallel", str(os.cpu_count())])
    return scratch / "build" / "edgepack-ncnn"


def build_upstream(tree: Path, scratch: Path) -> Path:
    """benchncnn.cpp with our libncnn.a; the models that it has inside are left empty, param= is what is used."""
    source = tree / "benchmark" / "benchncnn.cpp"
    names = sorted(set(re.findall(r"\b\w+_param_data\b", source.read_text())) - {"model_param_data"})
    header = "".join(f'static const char {name}[] = "";\n' for name in names)
    (scratch / "benchncnn_param_data.h").write_text(header)
    includes = [next((scratch / "source").rglob("net.h")).parent, scratch / "build" / "ncnn" / "src", scratch]
    program = scratch / "benchncnn"
    library = next((scratch / "build").rglob("libncnn.a"))
    flags = ["-O3", "-fno-rtti", *(f"-I{path}" for path in includes)]  # the library has no RTTI
    call(["g++", *flags, source, library, "-pthread", "-o", program])
    return program


def make_variant(folder: Path, param: Path, side: int, program: Path) -> Path:
    """A bundle's variant of a .param with zero weights, and as its golden output what the harness itself gives."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "golden" / "0").mkdir(parents=True)
    shutil.copyfile(param, folder / "model.param")
    with (folder / "model.bin").open("wb") as weights:
        weights.truncate(256 << 20)  # zeros, and no blocks on the disk; ncnn reads as much as it needs
    shape = f"3,{side},{side}"
    last = param.read_text().strip().splitlines()[-1].split()
    out = last[4 + int(last[2])]
    (folder / "variant.txt").write_text(
        "edgepack-variant 1\nengine name=ncnn version=1 precision=fp16\nbound cosine=0.999\n"
        "file path=model.param\nfile path=model.bin\n"
        f"input name=hex:61 dtype=float32 shape={shape} engine_name=hex:{b'data'.hex()} engine_dtype=float32 "
        f"engine_shape={shape} perm=0,1,2\n"
        f"output name=hex:62 dtype=float32 shape={CLASSES} engine_name=hex:{out.encode().hex()} engine_dtype=float32 "
        f"engine_shape={CLASSES} perm=0\n"
    )
    golden = folder / "golden" / "0"
    np.save(golden / "in_0.npy", np.full((3, side, side), 0.01, np.float32))
    call([program, "run", "--variant", folder, "--inputs", golden, "--outputs", golden])
    return folder


def compare(upstream: Path, ours: Path, param: Path, side: int, variant: Path, blocks: int) -> dict[str, Any]:
    theirs = [upstream, RUNS, 1, 0, -1, 0, f"param={param}", f"shape=[{side},{side},3]"]
    mine = [ours, "bench", "--variant", variant, "--golden", variant / "golden", "--min-runs", RUNS]
    ratios, noise, fastest = [], [], {"upstream": 1e9, "ours": 1e9}
    for _ in range(blocks):
        first, a, b, second = (read(call(argv)) for argv in (theirs, mine, mine, theirs))
        ratios.append((a + b) / (first + second))
        noise.append(abs(first / second - 1))
        fastest = {
            "upstream": min(fastest["upstream"], first, second),
            "ours": min(fastest["ours"], a, b),
        }
    return {
        "ratio": round(statistics.median(ratios), 4),
        "noise": round(statistics.median(noise), 4),
        "blocks": blocks,
        "fastest_ms": {name: round(value, 3) for name, value in fastest.items()},
        "load": round(os.getloadavg()[0], 1),
    }


def read(text: str) -> float:
    """The fastest run in milliseconds, of benchncnn's line or of our samples."""
    if found := re.search(r"min =\s*([\d.]+)", text):
        return float(found[1])
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return min(line["ns"] for line in lines if line["type"] == "sample") / 1e6


def call(argv: list[Any]) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{argv[0]} failed: {done.stderr[-2000:]}{done.stdout[-1000:]}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())

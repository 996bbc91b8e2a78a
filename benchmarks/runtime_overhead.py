"""What the harness costs: one inference through edgepack.h against the engine's own API, called directly.

    .venv/bin/python benchmarks/runtime_overhead.py BUNDLE [BUNDLE...] [--scratch DIR] [--blocks 10] [--engine E]...

Each BUNDLE is one that edgepack built for this machine's architecture, with fp32 variants of a model with one input.
Three programs run the same model file with the same engine library, threads and input: the harness (`bench`), the
engine's C or C++ API (`direct/ENGINE.cpp`) and its Python API (`direct/engine.py`, from the wheel). Harness and direct
program are compiled here, ncnn's with one and the same libncnn.a.

A block is H D P P D H, each a process of its own with a warm-up and about a second of timed runs. A block's ratio is
that of the medians of its samples; given are the median ratio of all blocks and the interval between two order
statistics that holds the true median with the stated probability. The first value of the outputs is compared, so that
nobody is fast by computing something else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import config, harness, ncnn_source, runtimes

HERE = Path(__file__).parent
PINS = {"onnxruntime": "onnxruntime", "tflite": "ai-edge-litert", "ncnn": "ncnn"}
SIDES = ("harness", "direct", "python")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--scratch", type=Path, default=Path("overhead-scratch"))
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="timed runs of one process")
    parser.add_argument("--engine", action="append", choices=list(PINS), default=[])
    parser.add_argument("--ncnn-source", type=Path, help="an unpacked tree; default: the one that edgepack uses")
    options = parser.parse_args()
    os.environ.setdefault("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as the harness does
    scratch = options.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    results = []
    print(f"{os.cpu_count()} cores, load average at the start {load()}, 1 thread\n")
    print(f"{'model':<28} {'engine':<12} {'harness':>10} {'direct':>10} {'Python':>10}  harness/direct, harness/Python")
    for engine in options.engine or list(PINS):
        for bundle in options.bundles:
            case = Case.prepare(bundle.absolute(), engine, options, scratch)
            results.append(measure(case, options.blocks, options.seconds))
            print(row(results[-1]), flush=True)
    (scratch / "runtime_overhead.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nload average at the end {load()}; all figures: {scratch / 'runtime_overhead.json'}")


@dataclass(frozen=True)
class Case:
    """One model with one engine: three commands that end with WARMUP RUNS, and what is in the middle of them."""

    name: str
    engine: str
    commands: dict[str, Any]

    @staticmethod
    def prepare(bundle: Path, engine: str, options: argparse.Namespace, scratch: Path) -> Case:
        folder = bundle / "variants" / f"{engine}-fp32"
        records = [line.split(" ") for line in (folder / "variant.txt").read_text().splitlines()[1:]]
        fields = [(words[0], dict(word.split("=", 1) for word in words[1:])) for words in records]
        files = [folder / entry["path"] for kind, entry in fields if kind == "file"]
        (source,) = (entry for kind, entry in fields if kind == "input")
        output = next(entry for kind, entry in fields if kind == "output")
        assert source["engine_dtype"] == "float32", source
        shape = [int(size) for size in source["engine_shape"].split(",")]
        array = np.load(bundle / "golden" / "0" / "in_0.npy")
        array = array.transpose([int(axis) for axis in source["perm"].split(",")]).reshape(shape)
        raw = scratch / f"{bundle.stem}-{engine}.bin"
        raw.write_bytes(np.ascontiguousarray(array, np.float32).tobytes())
        names = [bytes.fromhex(entry["engine_name"].removeprefix("hex:")).decode() for entry in (source, output)]

        program, direct = compile_programs(engine, options.bundles, scratch, options.ncnn_source)
        library = [str(next((bundle / "lib").glob(f"lib{'onnx' if engine == 'onnxruntime' else 'LiteRt'}*")))]
        named = [names[0], ",".join(map(str, shape)), names[1]]
        rest = {"onnxruntime": [*library, *named], "tflite": library, "ncnn": [str(files[-1]), *named]}
        pins = f"{PINS[engine]}=={wheel_version(engine)}"
        python = ["uv", "run", "--quiet", "--no-project", "--with", pins, "--with", "numpy", "python"]
        golden = ["--golden", str(bundle / "golden")]
        link(bundle, program)
        return Case(
            name=bundle.stem,
            engine=engine,
            commands={
                "harness": [str(program), "bench", "--variant", str(folder), *golden, "--min-seconds", "0"],
                "direct": ([str(direct), str(files[0]), str(raw), "1"], rest[engine]),
                "python": ([*python, str(HERE / "direct" / "engine.py"), engine, str(files[0]), str(raw), "1"],
                           rest[engine]),
            },
        )  # fmt: skip

    def run(self, side: str, warmup: int, runs: int) -> tuple[list[int], str]:
        """Nanoseconds of every run, and the first output value where the program tells it."""
        if side == "harness":
            lines = call([*self.commands[side], "--warmup", str(warmup), "--min-runs", str(runs)])[0].splitlines()
            return [line["ns"] for line in map(json.loads, lines) if line["type"] == "sample"], ""
        head, tail = self.commands[side]
        out, said = call([*head, str(warmup), str(runs), *tail])
        return [int(line) for line in out.splitlines()], said.splitlines()[-1]


def measure(case: Case, blocks: int, seconds: float) -> dict[str, Any]:
    """Medians over all blocks in nanoseconds, ratios with their intervals, and every block's medians."""
    values = {side: case.run(side, 2, 20) for side in SIDES}  # also fills the page cache and makes environments
    one, two = (float(values[side][1]) for side in ("direct", "python"))
    assert math.isclose(one, two, rel_tol=1e-2, abs_tol=1e-4), (one, two)
    runs = max(10, round(seconds * 1e9 / statistics.median(values["direct"][0])))
    warmup = max(3, runs // 10)
    medians: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(blocks):
        samples: dict[str, list[int]] = {side: [] for side in SIDES}
        for side in (*SIDES, *reversed(SIDES)):
            samples[side] += case.run(side, warmup, runs)[0]
        for side in SIDES:
            medians[side].append(statistics.median(samples[side]))
    ratios = {
        side: interval([h / other for h, other in zip(medians["harness"], medians[side], strict=True)])
        for side in ("direct", "python")
    }
    middle = {side: statistics.median(medians[side]) for side in SIDES}
    return {"model": case.name, "engine": case.engine, "runs": runs, "blocks": medians, "ns": middle, "ratios": ratios}


def interval(values: list[float]) -> dict[str, float]:
    """The median and the narrowest symmetric pair of order statistics that holds it with at least 95 %."""
    ordered, count = sorted(values), len(values)
    below, probability = 0, 1 - 2 * 0.5**count
    for rank in range(count // 2):
        tail = sum(math.comb(count, k) for k in range(rank + 1)) / 2**count
        if 1 - 2 * tail >= 0.95:
            below, probability = rank, 1 - 2 * tail
    return {
        "median": statistics.median(ordered), "low": ordered[below], "high": ordered[-1 - below],
        "probability": probability,
    }  # fmt: skip


def row(result: dict[str, Any]) -> str:
    ms = " ".join(f"{result['ns'][side] / 1e6:>7.3f} ms" for side in SIDES)
    ratios = ", ".join(
        f"{ratio['median']:.4f} ({ratio['low']:.4f} to {ratio['high']:.4f})" for ratio in result["ratios"].values()
    )
    return f"{result['model']:<28} {result['engine']:<12} {ms}  {ratios}"


def compile_programs(engine: str, bundles: list[Path], scratch: Path, ncnn: Path | None) -> tuple[Path, Path]:
    """The harness and the direct program, compiled once per scratch folder. ncnn gets the layers of all bundles."""
    build = scratch / f"build-{engine}"
    arguments = []
    extra: list[str] = ["-ldl"]
    if engine == "ncnn":
        target = config.load_target("host")  # the wheel picks this CPU's instructions too
        layers = {
            line.split()[0]
            for bundle in bundles
            for param in (bundle / "variants").glob("ncnn-*/*.param")
            for line in param.read_text().splitlines()[2:]
        }
        if ncnn is None:
            ncnn = scratch / "ncnn"
            if not ncnn.exists():
                ncnn_source.unpack(runtimes.source(engine), ncnn)
            ncnn = next(path.parent for path in ncnn.rglob("LICENSE.txt"))
        wanted = ncnn_source.layer_arguments(ncnn_source.arguments(target, layers), ncnn, target.arch)
        version = wheel_version(engine)
        arguments = [f"-DNCNN_SOURCE_DIR={ncnn}", f"-DNCNN_VERSION={version.rpartition('.')[2]}", *wanted]
        objects = build / "ncnn" / "src"
        extra = [f"-I{ncnn / 'src'}", f"-I{objects}", str(objects / "libncnn.a"), "-lpthread"]
    cmake, ninja = harness.program("cmake"), harness.program("ninja")
    call([cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", HERE.parent / "cpp_runtime", "-B", build,
          "-DCMAKE_BUILD_TYPE=Release", f"-DEDGEPACK_BACKEND={engine}", "-DEDGEPACK_TESTS=OFF",
          f"-DEDGEPACK_ENGINE_VERSION={wheel_version(engine)}", *arguments])  # fmt: skip
    call([cmake, "--build", build, "--target", f"edgepack-{engine}"])
    direct = build / "direct"
    call(["g++", "-std=c++17", "-O3", HERE / "direct" / f"{engine}.cpp", "-o", direct, *extra])
    (build / "bin").mkdir(exist_ok=True)
    program = build / "bin" / f"edgepack-{engine}"
    program.unlink(missing_ok=True)
    os.link(build / program.name, program)
    return program, direct


def link(bundle: Path, program: Path) -> None:
    """The bundle's libraries where the harness looks for them."""
    folder = program.parent.parent / "lib"
    folder.unlink(missing_ok=True)
    folder.symlink_to(bundle / "lib")


def wheel_version(engine: str) -> str:
    """The version that the bundles carry."""
    return str(runtimes.pins()[engine]["version"])


def call(argv: list[Any]) -> tuple[str, str]:
    words = [str(word) for word in argv]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(words)}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout, done.stderr


def load() -> str:
    return " ".join(f"{each:.2f}" for each in os.getloadavg())


if __name__ == "__main__":
    main()

"""How long `edgepack build` takes, side by side with the same tools called by hand, and what it needs.

    python benchmarks/build_speed.py FOLDER_OF_PREPARE_MODELS [--scratch DIR] [--runs 3] [--part PART]...

Parts: cold (against by hand), again (unchanged, other calibration, other target), start (`--help`), memory. Each
part prints its figures and the load average; alternating runs and medians, because other work on the machine comes
and goes. What "cold" leaves out is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import by_hand

from edgepack import converter

EDGEPACK = Path(sys.executable).parent / "edgepack"
ENGINES = ("onnxruntime", "tflite", "ncnn")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("speed-scratch"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--target", default="rk3588")
    parser.add_argument("--other-target", default="raspberrypi4")
    parser.add_argument("--part", action="append", default=[], choices=["cold", "again", "start", "memory"])
    options = parser.parse_args()
    parts = options.part or ["cold", "again", "start", "memory"]
    options.scratch = options.scratch.absolute()
    options.scratch.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # both sides import compiled modules from the second start on
    bench = Bench(options)
    print(f"{os.cpu_count()} cores, load average at the start {load()}")
    if "cold" in parts or "again" in parts:
        bench.template()
    for part in parts:
        getattr(bench, part)()


def cpu_seconds() -> float:
    """CPU time of all children that have ended: steadier than the clock when other work comes and goes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load() -> str:
    return " ".join(f"{each:.2f}" for each in os.getloadavg())


class Bench:
    """EfficientNet-Lite0 with three engines and three precisions: 64 calibration crops, 16 verification crops."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.scratch = options, options.scratch
        entries = json.loads((options.folder / "models.json").read_text())
        self.entry = next(e for e in entries if e["name"] == "EfficientNet-Lite0")
        args = list(self.entry["args"])
        verify = Path(args[args.index("--samples") + 1])
        few = self.scratch / "verification"
        shutil.rmtree(few, ignore_errors=True)
        few.mkdir()
        crops = sorted(verify.glob("*.png"))
        for path in crops[:: len(crops) // 16][:16]:
            shutil.copyfile(path, few / path.name)
        args[args.index("--samples") + 1] = str(few)
        self.args = args
        self.calibration = Path(args[args.index("--calib") + 1])
        self.prepared = self.scratch / "template"

    def build(self, cache: Path, *more: str, target: str | None = None) -> tuple[float, list[str], dict[str, Any]]:
        """(seconds, titles of the steps that ran, JSON)."""
        command = [
            EDGEPACK, "build", self.entry["source"], "--target", target or self.options.target, *self.args, *more,
            "-o", cache / "out", "--json",
        ]  # fmt: skip
        env = {**os.environ, "EDGEPACK_CACHE": str(cache)}
        cache.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        done = subprocess.run(command, cwd=self.entry["cwd"], env=env, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        (cache / "talk.txt").write_text(done.stderr)
        if done.returncode != 0:
            raise SystemExit(f"edgepack failed ({done.returncode}):\n{done.stderr[-3000:]}")
        ran = re.findall(r"^  ok  (.+?)  ([\d.]+) s$", done.stderr, re.M)
        return seconds, [f"{title} {spent} s" for title, spent in ran], json.loads(done.stdout)

    def template(self) -> None:
        """A cache that has everything; what a cold run may have is copied from it."""
        seconds, ran, document = self.build(self.prepared)
        built = [o["variant"] for o in document["outcomes"] if o["status"] == "built"]
        print(f"Template cache: {seconds:.0f} s, {len(ran)} steps ran; built: {', '.join(built)}")

    def cold_cache(self, path: Path) -> Path:
        """A new cache with the environments, the downloads and ncnn's compiled harness, and nothing else."""
        shutil.rmtree(path, ignore_errors=True)
        ignore = shutil.ignore_patterns("steps", "builds", "failed", "out", "talk.txt")
        shutil.copytree(self.prepared, path, ignore=ignore, symlinks=True)
        for note in (self.prepared / "steps").glob("*/*/entry.json"):
            if (note.parent / "files" / "bin" / "edgepack-ncnn").is_file():
                kept = path / note.parent.relative_to(self.prepared)
                shutil.copytree(note.parent, kept, symlinks=True)
        os.sync()
        return path

    def environments(self) -> dict[str, Path]:
        """The three environments of the tools, made once; not timed."""
        found = {}
        for name, (version, packages) in by_hand.ENVIRONMENTS.items():
            folder = self.scratch / "by-hand" / name
            if not (folder / "ready").is_file():
                env, uv = converter.uv_env(), converter.uv()
                subprocess.run([uv, "venv", "--quiet", "--clear", "--python", version, folder], check=True, env=env)
                install = [uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", *packages]
                subprocess.run(install, check=True, env=env)
                (folder / "ready").touch()
            found[name] = folder / "bin" / "python"
        return found

    def by_hand(self, python: dict[str, Path], number: int) -> dict[str, float]:
        """Seconds of each step, one after another."""
        folder = self.scratch / f"hand-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        weights = Path(self.args[self.args.index("--weights") + 1])
        taken = {}
        for name, command in by_hand.steps(python, Path(self.entry["cwd"]), weights, self.calibration):
            tools = f"{Path(str(command[0])).parent}:{os.environ['PATH']}"
            started = time.monotonic()
            with (folder / "talk.txt").open("a") as talk:
                done = subprocess.run(
                    [str(c) for c in command], cwd=folder, env={**os.environ, "PATH": tools}, stdout=talk, stderr=talk,
                    check=False,
                )  # fmt: skip
            taken[name] = time.monotonic() - started
            if done.returncode != 0:
                raise SystemExit(f"by hand: {name} failed, see {folder / 'talk.txt'}")
        return taken

    def cold(self) -> None:
        python = self.environments()
        hands, ours = [], []
        self.by_hand(python, 0)  # both sides once untimed: their files are then in the disk cache
        for number in range(1, self.options.runs + 1):
            spent = [cpu_seconds()]
            hands.append(self.by_hand(python, number))
            spent.append(cpu_seconds())
            cache = self.cold_cache(self.scratch / f"cold-{number}")
            seconds, ran, _ = self.build(cache)
            spent.append(cpu_seconds())
            ours.append(seconds)
            print(
                f"run {number}: by hand {sum(hands[-1].values()):.1f} s ({spent[1] - spent[0]:.1f} s of CPU), "
                f"edgepack {seconds:.1f} s ({spent[2] - spent[1]:.1f} s of CPU), load {load()}"
            )
            if number == self.options.runs:
                print("  steps of edgepack: " + "; ".join(ran))
        for name in hands[0]:
            print(f"  by hand, {name}: {statistics.median(h[name] for h in hands):.1f} s")
        theirs, mine = statistics.median(sum(h.values()) for h in hands), statistics.median(ours)
        ratio = f"ratio {mine / theirs:.2f} (wanted: at most 0.80)"
        print(f"median: by hand {theirs:.1f} s, edgepack {mine:.1f} s, {ratio}")

    def again(self) -> None:
        cache = self.prepared
        times = [self.build(cache)[0] for _ in range(max(5, self.options.runs))]
        print(f"unchanged: median {statistics.median(times):.2f} s of {[round(t, 2) for t in times]}, load {load()}")
        other = self.scratch / "other-calibration"
        shutil.rmtree(other, ignore_errors=True)
        other.mkdir()
        for path in sorted(self.calibration.glob("*.png"))[:48]:
            shutil.copyfile(path, other / path.name)
        saved = list(self.args)
        self.args[self.args.index("--calib") + 1] = str(other)
        seconds, ran, _ = self.build(cache)
        self.args = saved
        print(f"calibration changed: {seconds:.1f} s; ran: " + "; ".join(ran))
        seconds, ran, _ = self.build(cache, target=self.options.other_target)
        print(f"target changed to {self.options.other_target}: {seconds:.1f} s; ran: " + "; ".join(ran))

    def start(self) -> None:
        report = self.scratch / "start.json"
        python = Path(sys.executable)
        command = [
            "hyperfine", "-N", "--warmup", "3", "--runs", "20", "--style", "none", "--export-json", report,
            f"{EDGEPACK} --help", f"{python} -c 'import click'",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ours, click = (r["median"] for r in json.loads(report.read_text())["results"])
        print(
            f"edgepack --help {ours * 1e3:.0f} ms, import click {click * 1e3:.0f} ms, ratio {ours / click:.2f} "
            f"(wanted: at most 2.5), load {load()}"
        )

    def memory(self) -> None:
        """Peak of edgepack's own process (not its children) while it builds a 100 MB model."""
        folder = self.scratch / "large"
        folder.mkdir(exist_ok=True)
        python = self.environments()["tools"]
        subprocess.run([python, "-c", LARGE, folder], check=True)
        command = [
            EDGEPACK, "build", folder / "large.onnx", "--target", self.options.target, "-o", folder / "out",
            "--calib", folder / "calib.npz", "--json",
        ]  # fmt: skip
        cache = self.cold_cache(folder / "cache") if self.prepared.is_dir() else folder / "cache"
        env = {**os.environ, "EDGEPACK_CACHE": str(cache)}
        with (folder / "talk.txt").open("w") as talk, (folder / "out.json").open("w") as out:
            process = subprocess.Popen(command, env=env, stdout=out, stderr=talk)
            peak = 0
            while process.poll() is None:
                peak = max(peak, high_water(process.pid))
                time.sleep(0.02)
        outcomes = json.loads((folder / "out.json").read_text()).get("outcomes", [])
        listed = ", ".join(f"{o['variant']} {o['status']}" for o in outcomes)
        size = (folder / "large.onnx").stat().st_size
        print(f"peak memory of edgepack's own process, {size / 1e6:.0f} MB model: {peak / 1024:.0f} MiB; {listed}")


def high_water(pid: int) -> int:
    """VmHWM in KiB: the kernel's own peak of one process."""
    try:
        return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])
    except (OSError, IndexError):
        return 0


LARGE = """
import sys
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
random = np.random.default_rng(0)
nodes, weights, last = [], [], "x"
for k in range(4):
    w = (random.standard_normal((2560, 2560)) / 40).astype(np.float32)
    weights += [numpy_helper.from_array(w, f"w{k}"), numpy_helper.from_array(np.zeros(2560, np.float32), f"b{k}")]
    nodes.append(helper.make_node("Gemm", [last, f"w{k}", f"b{k}"], [f"h{k}"]))
    nodes.append(helper.make_node("Relu", [f"h{k}"], [f"r{k}"]))
    last = f"r{k}"
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2560])
graph = helper.make_graph(nodes, "large", [value("x")], [value(last)], weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.save(model, sys.argv[1] + "/large.onnx")
np.savez(sys.argv[1] + "/calib.npz", x=random.standard_normal((48, 1, 2560)).astype(np.float32))
"""

if __name__ == "__main__":
    main()

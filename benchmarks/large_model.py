"""Peak memory and time of import, simplify and reference outputs for large models, beside the bare tools.

    python benchmarks/large_model.py --scratch DIR [--mb 300] [--report docs/large_models.md]

Three models: a row of MatMul; the same with opset 11 and transposed weights (the importer lifts it and runs both, the
simplifier folds every weight); a row of Conv with BatchNormalization. And one of many nodes. Bare tools are
`onnx.load`, shape inference (with opset 11 also the version converter) and `onnx.save`; onnxsim alone;
and ONNX Runtime on the file. Figures: seconds, and peak resident memory in multiples of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import converter

MAKE = """
import sys, numpy as np, onnx
from onnx import helper, numpy_helper, TensorProto as T
path, kind, mb = sys.argv[1], sys.argv[2], int(sys.argv[3])
r, node = np.random.default_rng(0), helper.make_node
w, n, shape, opset = [], [], [1, 2048], 17
if kind == "nodes":
    last = 100_000
    w = [numpy_helper.from_array(r.random(4, np.float32), f"w{i}") for i in range(1000)]
    for i in range(last):
        op = ("Add", "Relu", "Mul")[i % 3]
        n.append(node(op, [f"t{i}"] + ([f"w{i % 1000}"] if op != "Relu" else []), [f"t{i + 1}"], name=f"n{i}"))
    shape = [1, 4]
else:
    last = mb // 16
    for i in range(last):
        values = r.standard_normal((2048, 2048), np.float32) / 45
        if kind == "convolutions":
            shape = [1, 2048, 4, 4]
            w.append(numpy_helper.from_array(values.reshape(2048, 2048, 1, 1), f"w{i}"))
            w += [numpy_helper.from_array(r.random(2048, np.float32) + 0.5, f"{k}{i}") for k in "abmv"]
            n.append(node("Conv", [f"t{i}", f"w{i}"], [f"c{i}"]))
            n.append(node("BatchNormalization", [f"c{i}", *(f"{k}{i}" for k in "abmv")], [f"t{i + 1}"]))
            continue
        w.append(numpy_helper.from_array(values, f"w{i}"))
        if kind == "old":
            opset = 11
            n.append(node("Transpose", [f"w{i}"], [f"u{i}"], perm=[1, 0]))
        n.append(node("MatMul", [f"t{i}", f"{'u' if kind == 'old' else 'w'}{i}"], [f"t{i + 1}"]))
given = ["N", "M"] if kind == "old" else shape
v = [helper.make_tensor_value_info(name, T.FLOAT, s) for name, s in (("t0", shape), (f"t{last}", given))]
g = helper.make_graph(n, "g", v[:1], v[1:], w)
onnx.save(helper.make_model(g, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
"""
LOAD = """
import sys, onnx, onnx.version_converter
model = onnx.load(sys.argv[1])
if model.opset_import[0].version < 13:
    model = onnx.version_converter.convert_version(model, 17)
onnx.save(onnx.shape_inference.infer_shapes(model), sys.argv[2])
"""
SIMPLIFY = """
import sys, onnx, onnxsim
model, ok = onnxsim.simplify(onnx.load(sys.argv[1]), check_n=0)
onnx.save(model, sys.argv[2])
"""
RUN = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {"t0": np.load(sys.argv[2])[0]})
"""
KINDS = {
    "products": "a row of MatMul",
    "old": "opset 11, transposed weights",
    "convolutions": "Conv with BatchNormalization",
    "nodes": "100,000 nodes",
}
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--mb", type=int, default=300)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    folder = options.scratch.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind, words in KINDS.items():
        rows += [[words, *row] for row in one(folder, kind, options.mb)]
        print("\n".join(" | ".join(row) for row in rows[-3:]))
    if options.report:
        options.report.write_text(page(rows))


def one(folder: Path, kind: str, mb: int) -> list[list[str]]:
    """A row for each step: what, seconds and memory of edgepack and of the bare tool."""
    importing, simplifying = converter.environment("import_onnx"), converter.environment("simplify_onnx")
    running = converter.environment("run_onnxruntime")
    model, out, samples = folder / f"{kind}.onnx", folder / kind, folder / f"{kind}-samples"
    for path in (out, samples):
        path.mkdir(exist_ok=True)
    measured([importing, "-c", MAKE, model, kind, str(mb)])
    size = model.stat().st_size
    shape = {"convolutions": (1, 2048, 4, 4), "nodes": (1, 4)}.get(kind, (1, 2048))
    np.save(samples / "0.npy", np.random.default_rng(0).random((1, *shape), np.float32))
    last = f"t{100_000 if kind == 'nodes' else mb // 16}"
    run = {"files": [str(model)], "inputs": ["t0"], "outputs": [last], "samples": str(samples), "optimize": False}
    source = {"model": str(model), "name": model.name, "shapes": {}}
    imported = out / "model.onnx"
    steps: dict[str, tuple[Path, dict[str, Any], list[Any]]] = {
        "import_onnx": (importing, source, [LOAD, model, out / "bare"]),
        "run_onnxruntime": (running, run, [RUN, model, samples / "0.npy"]),
        "simplify_onnx": (simplifying, {"model": str(imported)}, [SIMPLIFY, imported, out / "bare"]),
    }
    rows = []
    for script, (python, request, bare) in steps.items():
        made = out / "simplified" if script == "simplify_onnx" else out
        made.mkdir(exist_ok=True)
        file = folder / f"{script}.json"
        file.write_text(json.dumps({**request, "out": str(made), "scratch": str(made)}))
        ours = best([python, converter.FOLDER / f"{script}.py", file])
        theirs = best([python, "-c", *bare])
        figures = [f"{ours[0]:.1f}", f"{theirs[0]:.1f}", f"{ours[1] / 1e6:.0f}", f"{theirs[1] / 1e6:.0f}"]
        ratio = f"{ours[1] / size:.2f}" if kind != "nodes" else "-"
        rows.append([script, *figures, ratio])
    shutil.rmtree(out)
    model.unlink()
    return rows


def page(rows: list[list[str]]) -> str:
    """The page."""
    head = ["model", "step", "s", "s bare", "peak MB", "peak MB bare", "x the file"]
    lines = ["# Large models", "", "Written by `benchmarks/large_model.py --report`; its head says what is measured. "]
    lines[-1] += f"The shortest time of {REPEATS}; load of the machine meanwhile: {os.getloadavg()[1]:.1f}."
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def best(command: list[Any]) -> tuple[float, int]:
    """The shortest of some runs, and the highest peak."""
    runs = [measured(command) for _ in range(REPEATS)]
    return min(seconds for seconds, _ in runs), max(peak for _, peak in runs)


def measured(command: list[Any]) -> tuple[float, int]:
    """Seconds, and peak resident bytes, of one program."""
    started = time.monotonic()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"exit {status}: {command[:2]}")
    return time.monotonic() - started, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()

"""Peak memory and time of import and simplify for a large model, beside the bare tools (onnx.load + save; onnxsim).

    python benchmarks/large_model.py --scratch DIR [--mb 300]

Prints one line for each: seconds, peak resident memory in MB and in multiples of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

from edgepack import converter

MAKE = """
import sys, numpy as np, onnx
from onnx import helper, numpy_helper, TensorProto as T
path, layers = sys.argv[1], int(sys.argv[2])
r = np.random.default_rng(0)
w = [numpy_helper.from_array(r.standard_normal((2048, 2048), np.float32), f"w{i}") for i in range(layers)]
n = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(layers)]
v = [helper.make_tensor_value_info(name, T.FLOAT, [1, 2048]) for name in ("t0", f"t{layers}")]
g = helper.make_graph(n, "g", v[:1], v[1:], w)
onnx.save(helper.make_model(g, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
"""
LOAD = "import sys, onnx; onnx.save(onnx.shape_inference.infer_shapes(onnx.load(sys.argv[1])), sys.argv[2])"
SIMPLIFY = """
import sys, onnx, onnxsim
model, ok = onnxsim.simplify(onnx.load(sys.argv[1]), check_n=0)
onnx.save(model, sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--mb", type=int, default=300)
    options = parser.parse_args()
    folder = options.scratch.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    model, out = folder / "large.onnx", folder / "out"
    out.mkdir(exist_ok=True)
    importing, simplifying = converter.environment("import_onnx"), converter.environment("simplify_onnx")
    measured([importing, "-c", MAKE, model, str(options.mb // 16)])
    size = model.stat().st_size
    requests = {
        "import_onnx": {"model": str(model), "name": "large.onnx", "shapes": {}, "dtypes": {}},
        "simplify_onnx": {"model": str(model)},
    }
    commands = {"onnx: load, infer, save": [importing, "-c", LOAD, model, out / "bare.onnx"]}
    commands["onnxsim alone"] = [simplifying, "-c", SIMPLIFY, model, out / "bare.onnx"]
    for script, request in requests.items():
        file = folder / f"{script}.json"
        file.write_text(json.dumps({**request, "out": str(out), "scratch": str(folder)}))
        python = importing if script == "import_onnx" else simplifying
        commands[f"edgepack {script}"] = [python, converter.FOLDER / f"{script}.py", file]
    for name, command in commands.items():
        seconds, peak = measured(command)
        print(f"{name:<26} {seconds:6.1f} s {peak / 1e6:8.0f} MB  {peak / size:5.2f} x the file")


def measured(command: list[object]) -> tuple[float, int]:
    """Seconds, and peak resident bytes, of one program."""
    started = time.monotonic()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"exit {status}: {command[:2]}")
    return time.monotonic() - started, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()

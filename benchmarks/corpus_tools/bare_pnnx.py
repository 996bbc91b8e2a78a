"""pnnx alone, with float32 weights, on a file; ncnn runs what it wrote on the same inputs.

Request: ``model``, ``inputs`` ({name: .npy}), ``out``, ``ncnn`` (a Python that has ncnn). Which axis is the batch is
read from the Python that pnnx writes.
"""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

WORDS = {"float32": "f32", "float16": "f16", "float64": "f64", "int32": "i32", "int64": "i64", "int16": "i16"}
WORDS |= {"int8": "i8", "uint8": "u8", "bool": "bool"}
RUN = """
import json, sys
import ncnn, numpy as np
net = ncnn.Net()
if net.load_param("model.ncnn.param") or net.load_model("model.ncnn.bin"):
    sys.exit(1)
job = json.load(open("run.json"))
ex = net.create_extractor()
for i in range(job["inputs"]):
    ex.input(f"in{i}", ncnn.Mat(np.load(f"in{i}.npy")).clone())
for i in range(job["outputs"]):
    code, mat = ex.extract(f"out{i}")
    if code:
        sys.exit(2)
    np.save(job["out"] + f"/{i}.npy", np.array(mat))
"""


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    Path("model.onnx").write_bytes(Path(request["model"]).read_bytes())
    arrays = [np.load(path) for path in request["inputs"].values()]
    shapes = ",".join(f"[{','.join(map(str, a.shape))}]{WORDS.get(a.dtype.name, 'f32')}" for a in arrays)
    program = Path(find_spec("pnnx").origin).parent / "pnnx"
    done = subprocess.run([program, "model.onnx", f"inputshape={shapes}", "fp16=0"], capture_output=True)
    if done.returncode:
        raise SystemExit(f"pnnx exit {done.returncode}")
    text = Path("model_ncnn.py").read_text()
    for index, array in enumerate(arrays):
        found = re.search(rf"\(in{index}\.numpy\(\), batch_index=(\d+)\)", text)
        axis = int(found.group(1)) if found else 233
        array = array.squeeze(axis) if axis < array.ndim and array.shape[axis] == 1 else array
        kept = np.int32 if array.dtype.kind in "iu" and "Embed" in Path("model.ncnn.param").read_text() else np.float32
        np.save(f"in{index}.npy", np.ascontiguousarray(array.astype(kept)))
    outputs = request["outputs"]
    Path("run.json").write_text(json.dumps({"inputs": len(arrays), "outputs": outputs, "out": request["out"]}))
    ran = subprocess.run([request["ncnn"], "-I", "-c", RUN], capture_output=True)
    if ran.returncode:
        raise SystemExit(f"ncnn exit {ran.returncode}")


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnx==1.23.2",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
# ]
# ///
"""Store a model's float32 weights as float16; arithmetic, inputs and outputs stay float32.

Request: ``model`` (ONNX file). Writes ``model.onnx``: each large weight is a float16 constant followed by a Cast,
which ONNX Runtime folds away when it loads the model. A weight stays in float32 where float16 can't hold it: values
beyond 65504, or so small that they would round to nothing.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 256  # values; below this the Cast costs more than it saves
WORST = 2.0**-10  # relative error of a whole tensor; float16 rounding alone makes 2**-12 at most on average


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    model = onnx.load(request["model"])
    graph = model.graph
    hoist_constants(graph)
    names = {i.name for i in graph.initializer} | {n for node in graph.node for n in (*node.input, *node.output)}
    fixed = {value.name for value in (*graph.input, *graph.output)}  # an initializer may be a default input
    casts, halved, kept = [], 0, 0
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST or tensor.name in fixed:
            continue
        full = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if not faithful(full, half):
            kept += 1
            continue
        name, stored = tensor.name, f"{tensor.name}_fp16"
        while stored in names:
            stored += "_"
        names.add(stored)
        tensor.CopyFrom(numpy_helper.from_array(half, stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{stored}_widen", to=TensorProto.FLOAT))
        halved += 1
    if not halved:
        raise SystemExit("nothing to store as float16: the model has no float32 weight of 256 values or more")
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    out = Path(request["out"])
    onnx.save(model, out / "model.onnx")
    (out / "result.json").write_text(json.dumps({"halved": halved, "kept": kept}))


def hoist_constants(graph: onnx.GraphProto) -> None:
    """Turn large Constant nodes into initializers, so that there is one kind of weight."""
    rest = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is not None and value.data_type == TensorProto.FLOAT and np.prod(value.dims) >= SMALLEST:
            value.name = node.output[0]
            graph.initializer.append(value)
        else:
            rest.append(node)
    del graph.node[:]
    graph.node.extend(rest)


def faithful(full: np.ndarray, half: np.ndarray) -> bool:
    """Whether float16 holds the tensor: nothing overflows and the error is that of rounding."""
    if not np.isfinite(half).all():
        return False
    error = np.linalg.norm(half.astype(np.float64) - full)
    return bool(error <= WORST * np.linalg.norm(full.astype(np.float64)))


if __name__ == "__main__":
    main()

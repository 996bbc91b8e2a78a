"""Which operators each engine computes in integers at INT8: the lists `int8` and `moves` of edgepack/operators.toml.

    python benchmarks/int8_operators.py --scratch DIR [--engine NAME]...

One model with a branch for each operator: a convolution, the operator, and (where its output is four floats axes) a
convolution, so that what is before and after it is in integers. It is quantized as a build does it, and the result is
read: an operator is in integers when nothing in its branch reads float32 but what makes integers of the input.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from corpus_tools import forks

from edgepack import artifact as artifacts
from edgepack import converter, plugins
from edgepack.types import Calibration, Int8Options, Model, Precision, TensorSpec

FAST = Int8Options(effort="fast")  # all in integers, however near the outputs are
ENGINES = ("onnxruntime", "tflite", "ncnn")
SIDE, CHANNELS, SAMPLES = 8, 8, 16
ALONE = ("Abs", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "Mish", "Neg",
         "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "GlobalAveragePool", "GlobalMaxPool",
         "Flatten", "LeakyRelu", "Softmax", "LogSoftmax")  # fmt: skip
TWO = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Concat")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "InstanceNormalization", "Softmax")  # asked of ncnn
READ_TFLITE = """
import json, sys
from ai_edge_litert.interpreter import Interpreter
made = Interpreter(sys.argv[1])
types = {d["index"]: d["dtype"].__name__ for d in made.get_tensor_details()}
ops = [{"op": o["op_name"], "in": [[int(t), types.get(int(t), "?")] for t in o["inputs"] if t >= 0],
        "out": [int(t) for t in o["outputs"]]} for o in made._get_ops_details()]
print(json.dumps({"ops": ops, "outputs": {d["name"]: int(d["index"]) for d in made.get_output_details()}}))
"""
READ_ONNX = """
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.optimized_model_filepath = sys.argv[2]
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--engine", action="append", default=[], choices=ENGINES)
    options = parser.parse_args()
    forks.install()
    for name in options.engine or ENGINES:
        work = options.scratch / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        found = measure(name, work)
        print(f"[{name}]\nint8 = {json.dumps(sorted(k for k, v in found.items() if v))}")
        print(f"# in float32: {json.dumps(sorted(k for k, v in found.items() if not v))}", flush=True)


def measure(name: str, work: Path) -> dict[str, bool]:
    """Operator -> whether the engine computes it in integers; an operator that it can't do at all is left out."""
    found: dict[str, bool] = {}
    engine = plugins.load("engines", name)
    todo = [[b] for b in branches() if b[0] in WEIGHTED] if name == "ncnn" else [list(branches())]
    while todo:  # a model that fails is cut in two, down to the operator that makes it fail
        group = todo.pop()
        folder = work / str(len(list(work.iterdir())))
        try:
            found |= in_integers(engine, group, folder)
        except Exception as error:
            if len(group) == 1:
                print(f"# {name} has no {group[0][0]}: {' '.join(str(error).split())[:100]}", flush=True)
            else:
                todo += [group[: len(group) // 2], group[len(group) // 2 :]]
    return found


def branches() -> list[tuple[str, list[onnx.NodeProto]]]:
    """Each operator with a node that reads ``a`` (and ``b``) and makes ``y``."""
    made = [(op, [helper.make_node(op, ["a"], ["y"])]) for op in ALONE]
    made += [(op, [helper.make_node(op, ["a", "b"], ["y"], **({"axis": 1} if op == "Concat" else {}))]) for op in TWO]
    above = helper.make_node("Clip", ["a", "one", "six"], ["c"])
    made += [(op, [above, helper.make_node(op, ["c"], ["y"])]) for op in ("Log", "Sqrt")]
    made += [("Pow", [above, helper.make_node("Pow", ["c", "two"], ["y"])])]
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    node = helper.make_node
    made += [
        ("AveragePool", [node("AveragePool", ["a"], ["y"], **pool)]),
        ("MaxPool", [node("MaxPool", ["a"], ["y"], **pool)]),
        ("Clip", [node("Clip", ["a", "zero", "six"], ["y"])]),
        ("Conv", [node("Conv", ["a", "kernel"], ["y"])]),
        ("ConvTranspose", [node("ConvTranspose", ["a", "kernel"], ["y"])]),
        ("Gemm", [node("Flatten", ["a"], ["f"]), node("Gemm", ["f", "matrix"], ["y"])]),
        ("MatMul", [node("Flatten", ["a"], ["f"]), node("MatMul", ["f", "matrix"], ["y"])]),
        ("PRelu", [node("PRelu", ["a", "slope"], ["y"])]),
        ("BatchNormalization", [node("BatchNormalization", ["a", "ones", "ones", "ones", "ones"], ["y"])]),
        ("InstanceNormalization", [node("InstanceNormalization", ["a", "ones", "ones"], ["y"])]),
        ("LayerNormalization", [node("LayerNormalization", ["a", "ones"], ["y"], axis=-1)]),
        ("ReduceMean", [node("ReduceMean", ["a", "places"], ["y"], keepdims=1)]),
        ("ReduceMax", [node("ReduceMax", ["a", "places"], ["y"], keepdims=1)]),
        ("ReduceSum", [node("ReduceSum", ["a", "places"], ["y"], keepdims=1)]),
        ("ArgMax", [node("ArgMax", ["a"], ["y"], axis=1)]),
        ("Resize", [node("Resize", ["a", "", "sizes"], ["y"], mode="nearest")]),
        ("Reshape", [node("Reshape", ["a", "shape"], ["y"])]),
        ("Transpose", [node("Transpose", ["a"], ["y"], perm=[0, 2, 1, 3])]),
        ("Slice", [node("Slice", ["a", "places0", "places", "places"], ["y"])]),
        ("Split", [node("Split", ["a"], ["y", "rest"], axis=1, num_outputs=2)]),
        ("Pad", [node("Pad", ["a", "pads"], ["y"])]),
        ("Tile", [node("Tile", ["a", "times"], ["y"])]),
        ("Expand", [node("Expand", ["a", "twice"], ["y"])]),
        ("Gather", [node("Gather", ["a", "places0"], ["y"], axis=1)]),
        ("DepthToSpace", [node("DepthToSpace", ["a"], ["y"], blocksize=2)]),
        ("SpaceToDepth", [node("SpaceToDepth", ["a"], ["y"], blocksize=2)]),
        ("Where", [node("Greater", ["a", "six"], ["m"]), node("Where", ["m", "a", "b"], ["y"])]),
        ("Squeeze", [node("Squeeze", ["a", "first"], ["y"])]),
        ("Unsqueeze", [node("Unsqueeze", ["a", "first"], ["y"])]),
    ]  # fmt: skip
    return made


def constants() -> dict[str, np.ndarray]:
    """What the operators read beside values."""
    random = np.random.default_rng(0)
    numbers = {"zero": 0, "one": 1, "two": 2, "six": 6}
    lists = {
        "places": [2, 3],
        "places0": [1, 2],
        "shape": [1, CHANNELS, SIDE * 2, SIDE // 2],
        "pads": [0, 0, 1, 1, 0, 0, 1, 1],
        "times": [1, 1, 2, 2],
        "first": [0],
        "twice": [2, CHANNELS, SIDE, SIDE],
    }
    return {
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
        **{name: np.array(value, np.int64) for name, value in lists.items()},
        "slope": np.full((CHANNELS, 1, 1), 0.2, np.float32),
        "ones": np.ones(CHANNELS, np.float32),
        "sizes": np.array([1, 1, 2, 2], np.float32),
        "kernel": random.normal(0, 0.2, (CHANNELS, CHANNELS, 1, 1)).astype(np.float32),
        "matrix": random.normal(0, 0.1, (CHANNELS * SIDE * SIDE, 16)).astype(np.float32),
    }


def model_of(group: list[tuple[str, list[onnx.NodeProto]]], path: Path) -> Model:
    random = np.random.default_rng(1)
    held, nodes, outputs = {**constants()}, [], []

    def conv(source: str, target: str, channels: int) -> onnx.NodeProto:
        held[f"w_{target}"] = random.normal(0, 0.3, (CHANNELS, channels, 1, 1)).astype(np.float32)
        return helper.make_node("Conv", [source, f"w_{target}"], [target], name=f"n_{target}")

    for op, made in group:
        nodes += [conv("x", f"{op}_a", CHANNELS), conv("x", f"{op}_b", CHANNELS)]
        for index, node in enumerate(made):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{op}_{index}"
            copy.input[:] = [n if n in held or not n else f"{op}_{n}" for n in node.input]
            copy.output[:] = [f"{op}_{n}" for n in node.output]
            nodes.append(copy)
    shape = [1, CHANNELS, SIDE, SIDE]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    draft = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=f"{op}_y") for op, _ in group], weights)
    opsets = [helper.make_opsetid("", 20)]
    known = onnx.shape_inference.infer_shapes(helper.make_model(draft, opset_imports=opsets, ir_version=9))
    for value, (op, _) in zip(known.graph.output, group, strict=True):
        kind = value.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT and len(sizes) == 4:
            nodes.append(conv(value.name, f"{op}_z", sizes[1]))
            outputs.append((f"{op}_z", TensorProto.FLOAT, [1, CHANNELS, *sizes[2:]]))
        else:
            outputs.append((value.name, kind.elem_type, sizes))
    read = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items() if name in read]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info(*o) for o in outputs], weights)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)

    def spec(name: str, kind: int, sizes: list[int]) -> TensorSpec:
        return TensorSpec(name=name, dtype=helper.tensor_dtype_to_np_dtype(kind).name, shape=tuple(sizes))

    return Model(
        path=path,
        digest=str(path),
        opset=opsets[0].version,
        inputs=(spec("x", TensorProto.FLOAT, shape),),
        outputs=tuple(spec(*output) for output in outputs),
        operators=tuple(sorted({node.op_type for node in nodes})),
    )


def in_integers(engine: Any, group: list[tuple[str, list[onnx.NodeProto]]], work: Path) -> dict[str, bool]:
    work.mkdir()
    model = model_of(group, work / "model.onnx")
    samples = work / "samples"
    samples.mkdir()
    x = np.random.default_rng(2).standard_normal((SAMPLES, 1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    np.save(samples / "0.npy", x)
    base, made = work / "fp32", work / "int8"
    base.mkdir()
    made.mkdir()
    engine.export(model, Precision.FP32, None, None, base)
    start = base if engine.base(Precision.INT8) is not None else None
    engine.export(model, Precision.INT8, Calibration(path=samples, digest="x", count=SAMPLES), start, made, FAST)
    found = artifacts.read(made)
    if engine.name == "ncnn":
        return ncnn_layers(group, model, found)
    file = made / found.files[0]
    if engine.name == "tflite":
        said = subprocess.run(
            [converter.environment("run_tflite"), "-c", READ_TFLITE, file], capture_output=True, check=True, text=True
        )
        content = json.loads(said.stdout.splitlines()[-1])
        nodes = [
            {
                "op": o["op"],
                "in": [t for t, _ in o["in"]],
                "float": any(kind == "float32" for _, kind in o["in"]),
                "out": o["out"],
            }
            for o in content["ops"]
            if o["op"] != "DELEGATE"
        ]
        ends = [content["outputs"][binding.name] for binding in found.outputs]
    else:
        optimized = work / "optimized.onnx"
        python = converter.environment("run_onnxruntime")
        subprocess.run([python, "-c", READ_ONNX, file, optimized], check=True, capture_output=True)
        nodes, ends = onnx_nodes(optimized), [binding.name for binding in found.outputs]
    return {op: all_integers(end, nodes) for op, end in zip((s.name[:-2] for s in model.outputs), ends, strict=True)}


def onnx_nodes(path: Path) -> list[dict[str, Any]]:
    """The nodes of an optimised file, each with whether it reads float32."""
    graph = onnx.load(path).graph
    float_ = {value.name for value in graph.input}
    float_ |= {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT and t.dims and np.prod(t.dims) > 1}
    nodes = []
    for node in graph.node:
        reads = any(name in float_ for name in node.input[:2])
        nodes.append({"op": node.op_type, "in": list(node.input), "float": reads, "out": list(node.output)})
        if node.op_type == "DequantizeLinear" or (reads and node.op_type not in ("QuantizeLinear", "ArgMax")):
            float_.update(node.output)
    return nodes


def all_integers(end: Any, nodes: list[dict[str, Any]]) -> bool:
    """Whether nothing on the way to an output reads float32, but what makes integers of it (or hands them out)."""
    makers = {name: node for node in nodes for name in node["out"]}
    todo, seen = [end], set()
    while todo:
        node = makers.get(todo.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node["float"] and node["op"] not in ("QuantizeLinear", "QUANTIZE"):
            return False
        todo += node["in"]
    return True


def ncnn_layers(group: list[tuple[str, list[onnx.NodeProto]]], model: Model, found: Any) -> dict[str, bool]:
    """By the number of layers in integers: the convolutions around the operator are, and then itself."""
    if len(group) > 1:
        raise ValueError("one operator at a time")
    ((op, nodes),) = group
    around = 1 + any("b" in node.input for node in nodes) + model.outputs[0].name.endswith("_z")
    return {op: len(found.facts["quantized"]) > around}


if __name__ == "__main__":
    sys.exit(main())

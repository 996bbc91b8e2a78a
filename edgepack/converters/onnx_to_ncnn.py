# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "pnnx==20261020",
#     "onnx==1.23.2",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
# ]
#
# [tool.uv]
# override-dependencies = ["torch ; sys_platform == 'never'"]
# ///
"""Convert ONNX to ncnn's ``model.ncnn.param`` and ``model.ncnn.bin``, with pnnx or node by node.

Request: ``model`` (ONNX file, fixed shapes), ``way``: "pnnx" (after the repairs of `ncnn_forms`), "plain" (pnnx on the
model as it is) or "direct" (`ncnn_direct`; its ``result.json`` has the ``input_shapes``). Weights stay float32. pnnx's
wheel wants torch, but its program reads ONNX without it. The program gets a copy in which every tensor and node has a
plain name: its text format is cut at white space, and names come from the model. Exit 0 means little: the caller must
load and run the result. ``result.json`` says per input and output which axis pnnx took for the batch (null: none).
"""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference

sys.path.insert(0, str(Path(__file__).parent))
import ncnn_direct
from expand import expanded, with_plain_constants
from float_of_qdq import without_pairs
from ncnn_forms import FORMS
from onnx_graph import Graph

TYPES = {
    onnx.TensorProto.FLOAT: "f32",
    onnx.TensorProto.FLOAT16: "f16",
    onnx.TensorProto.DOUBLE: "f64",
    onnx.TensorProto.INT32: "i32",
    onnx.TensorProto.INT64: "i64",
    onnx.TensorProto.INT16: "i16",
    onnx.TensorProto.INT8: "i8",
    onnx.TensorProto.UINT8: "u8",
    onnx.TensorProto.BOOL: "bool",
}
DULL = ("#", "FLOPS", "memory OPS", "model inputshape", *"┌├│└")
MOVES = ("Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
NO_AXIS = 233  # pnnx's own mark for "no batch axis"


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        model = onnx.load(request["model"])
    except Exception as error:
        raise SystemExit(f"this is not a readable ONNX file: {str(error).splitlines()[0][:300]}") from error
    without_pairs(model)
    if request.get("way", "pnnx") == "direct":
        by_node(model, Path(request["out"]))
        return
    model = onnx.shape_inference.infer_shapes(model)
    if request.get("way", "pnnx") != "plain" and not any(
        a.HasField("g") for node in model.graph.node for a in node.attribute
    ):
        model = repair(with_plain_constants(expanded(model)))
    without_casts_at_the_surface(model.graph)
    sums_as_means(model)
    inputs, outputs = plain(model)
    onnx.save(model, "model.onnx")
    log = run_pnnx(",".join(inputs))
    param, weights = Path("model.ncnn.param"), Path("model.ncnn.bin")
    if not param.is_file() or not weights.is_file():
        raise SystemExit(f"pnnx exited 0 but wrote no ncnn model: {last_words(log)}")
    generated = Path("model_ncnn.py").read_text()
    result = {
        "input_axes": [axis(generated, rf"\(in{i}\.numpy\(\), batch_index=(\d+)\)") for i in range(len(inputs))],
        "output_axes": [axis(generated, rf"\(out{i}\.numpy\(batch_index=(\d+)\)\)") for i in range(outputs)],
        "complaints": complaints(log),
    }
    out = Path(request["out"])
    (out / param.name).write_bytes(param.read_bytes())
    (out / weights.name).write_bytes(weights.read_bytes())
    (out / "result.json").write_text(json.dumps(result))


def by_node(model: onnx.ModelProto, out: Path) -> None:
    """Write every node's own layers, without pnnx."""
    written = ncnn_direct.write(model)
    (out / "model.ncnn.param").write_text(written.param)
    (out / "model.ncnn.bin").write_bytes(written.weights)
    (out / "result.json").write_text(json.dumps({"input_shapes": written.shapes, "complaints": []}))


def repair(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every repair in turn; each sees the shapes that the ones before it left."""
    for form in FORMS:
        graph = Graph(model)
        form(graph)
        model = graph.write(model)
    return model


def without_casts_at_the_surface(graph: onnx.GraphProto) -> None:
    """Make inputs that are only ever cast to float32 float inputs, and outputs that are cast from it float outputs.

    pnnx keeps such casts as layers that ncnn doesn't have; the caller casts in the same way (C's rules) instead.
    Between an input and its casts there may be operators that only move numbers about.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    surface = {value.name for value in graph.output}
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    for value in graph.input:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            continue
        moved, casts = [value.name], []
        only_casts = value.name in readers
        for name in moved:  # grows while it is walked
            for reader in readers.get(name, []):
                if reader.op_type in MOVES and reader.input[0] == name and list(reader.input).count(name) == 1:
                    moved += reader.output
                elif _to_float(reader):
                    casts.append(reader)
                else:
                    only_casts = False
        made = {name for cast in casts for name in cast.output}
        if not only_casts or not casts or (made | set(moved)) & surface:
            continue
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        for cast in casts:
            before, after = cast.input[0], cast.output[0]
            for reader in readers.pop(after, []):
                reader.input[:] = [before if name == after else name for name in reader.input]
                readers[before].append(reader)
            readers[before].remove(cast)
            graph.node.remove(cast)
        for info in graph.value_info:
            if info.name in moved:
                info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        types |= dict.fromkeys(moved, onnx.TensorProto.FLOAT)
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        cast = makers.get(value.name)
        if cast is None or cast.op_type != "Cast" or value.name in readers:
            continue
        before = cast.input[0]
        only_reader = len(readers[before]) == 1 and before not in surface and before in makers
        if only_reader and types.get(before) == onnx.TensorProto.FLOAT:
            maker = makers[before]
            maker.output[:] = [value.name if name == before else name for name in maker.output]
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            graph.node.remove(cast)


def sums_as_means(model: onnx.ModelProto) -> None:
    """Write ReduceSum over one axis as a mean times a count: pnnx 20261020 loses a single axis given as an input."""
    graph = model.graph
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if not 13 <= opset < 18:  # before, the axes are an attribute; after, the mean's are an input as well
        return
    values = {tensor.name: tensor for tensor in graph.initializer}
    values |= {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.input)}
    nodes = list(graph.node)
    for position, node in reversed(list(enumerate(nodes))):
        axes = values.get(node.input[1]) if node.op_type == "ReduceSum" and len(node.input) > 1 else None
        shape = shapes.get(node.input[0], []) if axes is not None else []
        if axes is None or not shape or list(axes.dims) != [1]:
            continue
        axis = int(onnx.numpy_helper.to_array(axes)[0])
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        mean, count, result = f"{node.output[0]}/mean", f"{node.output[0]}/count", node.output[0]
        one = np.full([1] * (len(shape) if keep else max(len(shape) - 1, 0)), shape[axis], np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(one, count))
        nodes[position : position + 1] = [
            onnx.helper.make_node("ReduceMean", [node.input[0]], [mean], axes=[axis], keepdims=keep),
            onnx.helper.make_node("Mul", [mean, count], [result]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _to_float(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == onnx.TensorProto.FLOAT for a in node.attribute)


def plain(model: onnx.ModelProto) -> tuple[list[str], int]:
    """Give tensors and nodes plain names, in place. Returns pnnx's words for the inputs, and how many outputs."""
    graph = model.graph
    names: dict[str, str] = {"": ""}

    def rename(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}")

    constant = {initializer.name for initializer in graph.initializer}
    real = [value for value in graph.input if value.name not in constant]
    del graph.input[:]
    graph.input.extend(real)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = rename(value.name)
    for index, node in enumerate(graph.node):
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise SystemExit(f"pnnx can't convert {node.op_type}: ncnn has no control flow")
        node.name = f"n{index}"
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    del graph.quantization_annotation[:]
    for value in graph.input:  # pnnx has no word for a tensor without axes; a single number is the same bytes
        if not value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim.add().dim_value = 1
    return [_word(value) for value in graph.input], len(graph.output)


def _word(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if tensor.elem_type not in TYPES:
        raise SystemExit(f"ncnn has no input of type {onnx.TensorProto.DataType.Name(tensor.elem_type)}")
    shape = [dim.dim_value for dim in tensor.shape.dim]
    return f"[{','.join(map(str, shape))}]{TYPES[tensor.elem_type]}"


def run_pnnx(shapes: str) -> str:
    """Run the program in the current folder; returns what it said. Exits with a sentence when it fails."""
    spec = find_spec("pnnx")
    assert spec is not None and spec.origin is not None
    # The wheel's Python wrapper hides a crash behind exit code 245.
    program = Path(spec.origin).parent / "pnnx"
    done = subprocess.run(
        [program, "model.onnx", f"inputshape={shapes}", "fp16=0"],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        # pnnx tries the model on inputs that it never sets: as indices, what happens to be in memory crashes it. This
        # has glibc fill new memory with the inverse of 255.
        env={**os.environ, "MALLOC_PERTURB_": "255"},
    )
    log = (done.stdout + done.stderr).decode("utf-8", "replace")
    sys.stderr.write(log)
    if done.returncode:
        if done.returncode < 0:
            raise SystemExit(f"pnnx can't convert this model: it crashed with {_signal(done.returncode)} {stage(log)}")
        raise SystemExit(f"pnnx can't convert this model (exit {done.returncode} {stage(log)}): {last_words(log)}")
    return log


def _signal(returncode: int) -> str:
    return signal.Signals(-returncode).name


def stage(log: str) -> str:
    """The last of pnnx's passes that it announced."""
    found = re.findall(r"^#+ (\S+)", log, re.M)
    return f"in {found[-1]}" if found else "before its first pass"


def last_words(log: str) -> str:
    """The last line that is not a heading or a count."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith(DULL)]
    return lines[-1][:300] if lines else "it said nothing"


def complaints(log: str) -> list[str]:
    """Lines in which pnnx says that it left something out, at most 20."""
    wanted = ("ignore ", "unsupported", "not supported", "no adapt", "fallback", "exceeds")
    lines = [line.strip() for line in log.splitlines()]
    return list(dict.fromkeys(line[:300] for line in lines if any(word in line for word in wanted)))[:20]


def axis(generated: str, pattern: str) -> int | None:
    """The batch axis that pnnx's generated Python gives one tensor."""
    found = re.search(pattern, generated)
    return int(found.group(1)) if found and int(found.group(1)) != NO_AXIS else None


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnx==1.23.2",
#     "onnxruntime==1.31.1",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "flatbuffers==25.12.19",
#     "typing-extensions==4.16.0",
# ]
# ///
"""Bring an ONNX file into the form that every later step relies on: one file, fixed shapes, opset 13 or newer.

Request: ``model`` (ONNX file; its external data, already checked by the caller, lie beside it), ``shapes``
({input name: sizes}) and ``dtypes`` ({input name: numpy name}) from the command line, ``name`` (what to call the
file in messages). Writes ``model.onnx`` and ``model.json`` (opset, inputs, outputs, operators). ``result.json``
holds ``notes`` for the user, or ``error`` (kind, id, message, hint) where the model or the command line is refused.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference
from google.protobuf.message import DecodeError

sys.path.insert(0, str(Path(__file__).parent))
import onnx_file
from onnx_checks import MOST, check_nodes, check_sizes, check_weights, put_in_order
from onnx_opset import ENOUGH, check_opset, lift
from onnx_surface import drop_initializers_from_inputs, fill_empty_inputs, fix_inputs, resolve_outputs
from onnx_value import axes, fixed, spec
from onnx_walk import STANDARD, every_graph, every_node, one_line, operator
from surface import Refused

ONE_FILE = 2 << 30  # protobuf's limit


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        result: dict[str, Any] = {"notes": careful(request, out)}
    except Refused as error:
        result = {"error": error.entry}
    (out / "result.json").write_text(json.dumps(result))


def careful(request: dict[str, Any], out: Path) -> list[str]:
    try:
        return run(request, out)
    except UnicodeDecodeError as error:  # from any string of the model, by onnx's own C++ at any later point
        raise Refused(
            f"{request['name']} is damaged: a name in it is not UTF-8 ({one_line(error)}).",
            "Copy or download it again, and compare its size with the original's.",
            "EP303",
        ) from error


def run(request: dict[str, Any], out: Path) -> list[str]:
    name: str = request["name"]
    notes: list[str] = []
    model = load(Path(request["model"]), name)
    os.chdir(Path(request["model"]).parent)  # where everything looks for the weights that stay in their files
    opset = check_opset(model, name, notes)
    put_in_order(model, name, notes)
    check_nodes(model, name)
    check_sizes(model, name)
    check_weights(model, name)
    fill_sparse(model, name)
    drop_initializers_from_inputs(model)
    fill_empty_inputs(model)
    fix_inputs(model, request["shapes"], request.get("dtypes") or {})
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if opset < ENOUGH:
        model = lift(model, opset, notes)
    model = infer(model)
    resolve_outputs(model)
    drop_talk(model)
    save(model, out, name)
    (out / "model.json").write_text(json.dumps(describe(model), indent=1, sort_keys=True))
    return notes


def load(path: Path, name: str) -> onnx.ModelProto:
    try:
        model = onnx_file.read(path)
    except DecodeError as error:
        raise Refused(
            f"{name} is not a whole ONNX model: {one_line(error)}. It is cut off or damaged.",
            "Copy or download it again, and compare its size with the original's.",
            "EP303",
        ) from error
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise Refused(
            f"{name} can't be loaded: {one_line(error)}.",
            "Save the model again in one file: onnx.save(onnx.load(FILE), NEW_FILE).",
            "EP304",
        ) from error
    return model


def fill_sparse(model: onnx.ModelProto, name: str) -> None:
    """Sparse weights as usual ones: no engine has them, and few tools do."""
    graph = model.graph
    for sparse in graph.sparse_initializer:
        held = sparse.values.name
        if math.prod(sparse.dims) > MOST:
            raise Refused(
                f"{name}: the sparse tensor {held!r} has the sizes {list(sparse.dims)}, more than a device's memory.",
                "Export the model with smaller tensors.",
                "EP305",
            )
        values, places = (onnx.numpy_helper.to_array(tensor) for tensor in (sparse.values, sparse.indices))
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        try:
            dense[np.unravel_index(places, dense.shape) if places.ndim == 1 else tuple(places.T)] = values
        except (IndexError, ValueError) as error:
            raise Refused(
                f"{name}: the places of the sparse tensor {held!r} are not in it: {one_line(error)}.",
                "The file is damaged: copy or download it again.",
                "EP303",
            ) from error
        graph.initializer.append(onnx.numpy_helper.from_array(dense, held))
    del graph.sparse_initializer[:]


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes of everything between, from the fixed inputs; symbolic leftovers of the exporter are dropped first."""
    kept = [v for v in model.graph.value_info if fixed(axes(v))]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for value in model.graph.output:
        if value.type.WhichOneof("value") == "tensor_type" and not fixed(axes(value)):
            value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return model  # what a kernel produces is asked of onnxruntime below


def drop_talk(model: onnx.ModelProto) -> None:
    """Remove what exporters write for people: it holds stack traces with paths, and changes from run to run."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in every_graph(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            item.doc_string = ""
            del item.metadata_props[:]
        for node in graph.node:
            for attribute in node.attribute:
                attribute.doc_string = ""


def save(model: onnx.ModelProto, out: Path, name: str) -> None:
    if onnx_file.size(model) >= ONE_FILE:
        raise Refused(
            f"{name} is larger than 2 GiB, more than one ONNX file can hold.",
            "edgepack is for models that fit an edge device; quantize or shrink it first.",
            "EP313",
        )
    onnx_file.write(model, Path.cwd(), out / "model.onnx")


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    opset = max(entry.version for entry in model.opset_import if entry.domain in STANDARD)
    return {
        "opset": opset,
        "inputs": [spec(value, "input") for value in model.graph.input],
        "outputs": [spec(value, "output") for value in model.graph.output],
        "operators": sorted({operator(node) for node in every_node(model)}),
    }


if __name__ == "__main__":
    main()

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

import difflib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnxruntime
from google.protobuf.message import DecodeError

sys.path.insert(0, str(Path(__file__).parent))
from node_order import Cycle, sort_nodes
from surface import Refused, usage

OLDEST = 7  # the version converter lifts from here
ENOUGH = 13  # per-channel quantization and axes-as-inputs begin here; newer than this is kept as it is
LIFTED = 17  # what every engine's converter reads
NEWEST = 26  # onnxruntime 1.31.1 (checked by a test); opsets it doesn't know it runs by chance or not at all
IR_VERSION = 10  # the container's version; every tool here reads it, and newer ones add nothing that is used
ONE_FILE = 2 << 30  # protobuf's limit
LARGE = 1 << 20  # bytes; shapes and axes are smaller
STANDARD = ("", "ai.onnx")
RUNNABLE = (*STANDARD, "ai.onnx.ml", "com.microsoft")  # domains that onnxruntime has kernels for
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES = (*DTYPES, "float16", "float32", "float64")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN")


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
    opset = check_opset(model, name, notes)
    put_in_order(model, name, notes)
    check_nodes(model, name)
    check_weights(model, name)
    drop_initializers_from_inputs(model)
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
        model = onnx.load(path)
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


def check_opset(model: onnx.ModelProto, name: str, notes: list[str]) -> int:
    """The version of the standard operators. Refuses what is missing, too old or too new, before the checker does.

    A newer model whose operators all mean what they meant at the newest known opset is stamped as that.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)
    if not model.graph.node and not model.graph.output:
        raise Refused(
            f"{name} holds no graph: it is cut off or was never finished.", "Export the model again.", "EP303"
        )
    if opset == 0:
        raise Refused(
            f"{name} doesn't say which opset it uses: it is cut off or damaged.", "Export the model again.", "EP303"
        )
    newest = min(NEWEST, onnx.defs.onnx_opset_version())
    changed = changed_since(newest, model, opset) if newest < opset <= onnx.defs.onnx_opset_version() else []
    if newest < opset <= onnx.defs.onnx_opset_version() and not changed:
        for entry in (*model.opset_import, *(entry for f in model.functions for entry in f.opset_import)):
            if entry.domain in STANDARD:
                entry.version = min(entry.version, newest)
        notes.append(f"The model says opset {opset}; its operators are the same at opset {newest}, and it is taken so.")
        return newest
    if opset > newest or opset < OLDEST:
        relation = "newer" if opset > newest else "older"
        raise Refused(
            f"{name} uses opset {opset}, which is {relation} than what edgepack's tools know ({OLDEST} to {newest})"
            + (f": it has {', '.join(changed[:5])} in a form that is new." if changed else "."),
            f"Export the model again with opset {LIFTED} "
            f"(torch.onnx.export(..., opset_version={LIFTED}); tf2onnx --opset {LIFTED}).",
            "EP307",
        )
    return opset


def changed_since(known: int, model: onnx.ModelProto, opset: int) -> list[str]:
    """Standard operators of the model whose definition at `opset` is newer than `known`, sorted."""
    found = set()
    for node in every_node(model):
        if node.domain in STANDARD:
            try:
                if onnx.defs.get_schema(node.op_type, opset, "").since_version > known:
                    found.add(node.op_type)
            except onnx.defs.SchemaError:
                found.add(node.op_type)
    return sorted(found)


def put_in_order(model: onnx.ModelProto, name: str, notes: list[str]) -> None:
    try:
        if sort_nodes(model.graph):
            notes.append("The nodes weren't in the order in which they can run; they were sorted.")
    except Cycle as error:
        raise Refused(
            f"{name} is not a valid ONNX model: {error}.",
            "It was damaged, or written by a tool with a bug. Export the model again.",
            "EP303",
        ) from error


def check_nodes(model: onnx.ModelProto, name: str) -> None:
    """Refuse operators that nothing here can run, then let onnx's checker look at the rest."""
    known = {(function.domain, function.name) for function in model.functions}
    for node in every_node(model):
        if node.domain not in RUNNABLE and (node.domain, node.op_type) not in known:
            raise Refused(
                f"{name} uses the operator {node.op_type} of the domain {node.domain!r} (node {label(node)}): "
                "that is a custom operator, and no engine here knows it.",
                "Export the model with standard ONNX operators, or cut the graph before that node.",
                "EP308",
            )
    # The checker wants a shape for every input and output, which runtimes don't, and here is found out later.
    shapeless = [v for v in (*model.graph.input, *model.graph.output) if v.type.HasField("tensor_type")]
    shapeless = [v for v in shapeless if not v.type.tensor_type.HasField("shape")]
    for value in shapeless:
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise Refused(
            f"{name} is not a valid ONNX model: {one_line(error)}.",
            "It was damaged, or written by a tool with a bug. Export the model again.",
            "EP303",
        ) from error
    for value in shapeless:
        value.type.tensor_type.ClearField("shape")


def check_weights(model: onnx.ModelProto, name: str) -> None:
    """Refuse NaN in any array, and infinities where they can only be broken weights (masks may hold -inf)."""
    weights = {taken for node in every_node(model) if node.op_type in WEIGHTED for taken in node.input}
    for tensor_name, tensor in every_tensor(model):
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        except KeyError:
            continue
        if dtype.kind != "f":
            continue
        try:
            array = onnx.numpy_helper.to_array(tensor)
        except ValueError as error:
            raise Refused(
                f"{name}: the numbers of the tensor {tensor_name!r} don't fill its shape: {one_line(error)}.",
                "The file is damaged: copy or download it again.",
                "EP303",
            ) from error
        is_weight = tensor_name in weights
        for what, count in (("NaN", np.isnan(array).sum()), ("infinite", np.isinf(array).sum())):
            # A lone NaN is a constant that some exporters write on purpose, and never a weight.
            wrong = count and (is_weight or (what == "NaN" and array.size > 1))
            if wrong:
                raise Refused(
                    f"{name}: the tensor {tensor_name!r} has {count} {what} value{'s' if count > 1 else ''} "
                    f"of {array.size}. The training run diverged or the file is damaged.",
                    "Use an earlier checkpoint, and export it again.",
                    "EP306",
                )


def drop_initializers_from_inputs(model: onnx.ModelProto) -> None:
    """Weights are no inputs. Containers below version 4 had to list them there."""
    model.ir_version = min(max(model.ir_version, 8), IR_VERSION)
    held = {tensor.name for tensor in model.graph.initializer}
    held |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    kept = [value for value in model.graph.input if value.name not in held]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def fix_inputs(model: onnx.ModelProto, shapes: dict[str, list[int]], dtypes: dict[str, str]) -> None:
    """Give every input the sizes from the command line, and refuse every input that still has an open axis."""
    inputs = {value.name: value for value in model.graph.input}
    for given in (*shapes, *dtypes):
        if given not in inputs:
            near = difflib.get_close_matches(given, inputs, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(f"{name} {shown(axes(value))}" for name, value in inputs.items()) or "none"
            raise usage(f"The model has no input {given!r}.{guess}", f"Its inputs: {listed}.")
    open_inputs = []
    for name, value in inputs.items():
        dtype = dtype_of(value, "input")
        if dtypes.get(name, dtype) != dtype:
            raise usage(
                f"--input says that {name!r} is {dtypes[name]}, but the model says {dtype}.",
                f"Leave the dtype out: an ONNX model knows its own. Or write {name}=...:{dtype}.",
            )
        found = axes(value)
        sizes = shapes.get(name)
        if sizes is not None:
            check_shape(name, found, sizes)
            set_shape(value, sizes)
        elif found is None or any(not isinstance(axis, int) or axis < 1 for axis in found):
            open_inputs.append((name, found, dtype))
    if open_inputs:
        said = "; ".join(
            f"input {name!r} has " + (f"dynamic axes {shown(found)}" if found is not None else "no shape at all")
            for name, found, _ in open_inputs
        )
        flags = " ".join("--input " + quoted(f"{name}={example(found)}") for name, found, _ in open_inputs)
        raise Refused(
            f"{said}: edgepack builds for fixed sizes.",
            f"Say which, for example: add {flags}",
            "EP305",
        )


def check_shape(name: str, found: list[int | str] | None, sizes: list[int]) -> None:
    if found is None:
        return
    given = "x".join(map(str, sizes))
    if len(found) != len(sizes):
        raise usage(
            f"--input gives {name!r} {len(sizes)} axes ({given}), but the model's has {len(found)}: {shown(found)}.",
            f"For example: --input {quoted(f'{name}={example(found)}')}",
        )
    for axis, size in zip(found, sizes, strict=True):
        if isinstance(axis, int) and axis > 0 and axis != size:
            raise usage(
                f"--input gives {name!r} the shape {given}, but the model fixes it to {shown(found)}.",
                "Only axes that the model leaves open can be chosen.",
            )


def lift(model: onnx.ModelProto, opset: int, notes: list[str]) -> onnx.ModelProto:
    """The model at opset 17, or 13; as it is when the version converter fails or changes what it computes."""
    why = ""
    for wanted in (LIFTED, ENOUGH):
        try:
            lifted = onnx.version_converter.convert_version(model, wanted)
            onnx.checker.check_model(lifted)
            difference = compare(model, lifted)
        except Exception as error:  # the converter raises whatever its C++ adapters do
            why = why or one_line(error)
            continue
        if not difference:
            return lifted
        why = why or difference
    notes.append(f"The model stays at opset {opset}: lifting it to {LIFTED} failed ({why}).")
    return model


def compare(model: onnx.ModelProto, lifted: onnx.ModelProto) -> str:
    """Run both on the same numbers; says what differs, or nothing."""
    feeds = example_inputs(model, seed=1)
    before, after = run_once(model, feeds), run_once(lifted, feeds)
    for value, one, two in zip(model.graph.output, before, after, strict=True):
        if one.shape != two.shape:
            return f"its output {value.name!r} changed its shape"
        # Lifting only renames and rearranges: anything above rounding is a wrong adapter.
        if not np.allclose(one, two, rtol=1e-3, atol=1e-3 * float(np.abs(one).max(initial=0) or 1), equal_nan=True):
            return f"its output {value.name!r} changed its values"
    return ""


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes of everything between, from the fixed inputs; symbolic leftovers of the exporter are dropped first."""
    kept = [v for v in model.graph.value_info if fixed(axes(v))]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for value in model.graph.output:
        if value.type.WhichOneof("value") == "tensor_type" and not fixed(axes(value)):
            value.type.tensor_type.ClearField("shape")
    # Inference makes several copies of a model, and never looks into large weights: they are set aside meanwhile.
    weights = {t.name: t.raw_data for t in model.graph.initializer if len(t.raw_data) > LARGE}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("raw_data")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model  # what a kernel produces is asked of onnxruntime below
    for tensor in inferred.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = weights.pop(tensor.name)
    return inferred


def resolve_outputs(model: onnx.ModelProto) -> None:
    """Every output gets fixed sizes: by inference, else from what onnxruntime really produces."""
    for value in model.graph.output:
        dtype_of(value, "output")
    if not model.graph.output or not model.graph.input:
        raise Refused("The model has no inputs or no outputs.", "Export a model that computes something.", "EP303")
    if all(fixed(axes(value)) for value in model.graph.output):
        return
    first = run_once(model, example_inputs(model, seed=None))
    second = run_once(model, example_inputs(model, seed=1))
    for value, one, two in zip(model.graph.output, first, second, strict=True):
        if one.shape != two.shape or 0 in one.shape:
            raise Refused(
                f"The size of the output {value.name!r} depends on the data ({shown(list(one.shape))} for zeros, "
                f"{shown(list(two.shape))} for noise): edgepack builds for fixed sizes.",
                "Cut the model before the operator that makes it (often NonMaxSuppression or NonZero), "
                "and do that part in your program.",
                "EP305",
            )
        set_shape(value, list(one.shape))


def run_once(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return [np.asarray(array) for array in session.run(None, feeds)]
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise Refused(
            f"onnxruntime can't run this model with the sizes given: {one_line(error)}.",
            "Check --input against what the model was trained for.",
            "EP305",
        ) from error


def example_inputs(model: onnx.ModelProto, seed: int | None) -> dict[str, np.ndarray]:
    """Zeros, or noise in [0, 1); whole numbers stay small, since they are often indices."""
    feeds = {}
    generator = np.random.default_rng(seed)
    for value in model.graph.input:
        dtype = np.dtype(dtype_of(value, "input"))
        noise = generator.random(axes(value)) if seed is not None else np.zeros(axes(value))
        feeds[value.name] = np.asarray(noise * 2 if dtype.kind in "iub" else noise, dtype)
    return feeds


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
    if model.ByteSize() >= ONE_FILE:
        raise Refused(
            f"{name} is larger than 2 GiB, more than one ONNX file can hold.",
            "edgepack is for models that fit an edge device; quantize or shrink it first.",
            "EP313",
        )
    (out / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    opset = max(entry.version for entry in model.opset_import if entry.domain in STANDARD)
    return {
        "opset": opset,
        "inputs": [spec(value, "input") for value in model.graph.input],
        "outputs": [spec(value, "output") for value in model.graph.output],
        "operators": sorted({operator(node) for node in every_node(model)}),
    }


def spec(value: onnx.ValueInfoProto, what: str) -> dict[str, Any]:
    return {"name": value.name, "dtype": dtype_of(value, what), "shape": axes(value)}


def operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def dtype_of(value: onnx.ValueInfoProto, what: str) -> str:
    kind = value.type.WhichOneof("value") or "nothing known"
    dtype = ""
    if kind == "tensor_type":
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
        except KeyError:
            dtype = "of no known type"
        if dtype in DTYPES:
            return dtype
        kind = f"tensor of {'strings' if dtype == 'object' else dtype}"
    raise Refused(
        f"The {what} {value.name!r} is a {kind.removesuffix('_type')}: edgepack handles tensors of numbers (bool, "
        "integers of 8 to 64 bits, float16, float32, float64).",
        "Export the model without it (for scikit-learn: options={'zipmap': False}), or with float32 there.",
        "EP310",
    )


def axes(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """Sizes; a name (or ``?``) where the size is open; None where even the rank is."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim]


def fixed(found: list[int | str] | None) -> bool:
    return found is not None and all(isinstance(axis, int) and axis > 0 for axis in found)


def set_shape(value: onnx.ValueInfoProto, sizes: list[int]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()
    for size in sizes:
        shape.dim.add().dim_value = size


def shown(found: list[int | str] | None) -> str:
    return "(no shape)" if found is None else "[" + ", ".join(map(str, found)) + "]"


def example(found: list[int | str] | None) -> str:
    """Sizes that somebody might mean: batch 1, pictures of 224, sequences of 128."""
    if found is None:
        return "1x3x224x224"
    usual = 224 if len(found) == 4 else 128
    guess = [1 if i == 0 else 3 if (i == 1 and len(found) == 4) else usual for i in range(len(found))]
    sizes = [axis if isinstance(axis, int) and axis > 0 else guess[i] for i, axis in enumerate(found)]
    return "x".join(map(str, sizes))


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        yield from graphs_of(node)


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from every_graph(inner)


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in every_graph(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node
        for node in function.node:
            for graph in graphs_of(node):
                yield from graph.node


def every_tensor(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initializers and the values of Constant nodes, under the names that nodes use for them."""
    for graph in every_graph(model.graph):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        yield from ((sparse.values.name, sparse.values) for sparse in graph.sparse_initializer)
    for node in every_node(model):
        if node.op_type == "Constant" and node.domain in STANDARD:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield node.output[0], attribute.t
                elif attribute.HasField("sparse_tensor"):
                    yield node.output[0], attribute.sparse_tensor.values


def quoted(text: str) -> str:
    """One word for a shell; bash's $'...' where a name holds characters that can't be typed."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = (c if c.isprintable() and c not in "\\'" else f"\\U{ord(c):08x}" for c in text)
    return "$'" + "".join(escaped) + "'"


def label(node: onnx.NodeProto) -> str:
    return repr(node.name) if node.name else f"that makes {node.output[0]!r}" if node.output else "without a name"


def one_line(error: Exception) -> str:
    """A foreign message on one line: of onnxruntime's nested ones only the innermost."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.rpartition("Status Message: ")[2]
    return text[:300].rstrip(" .") + ("..." if len(text) > 300 else "")


if __name__ == "__main__":
    main()

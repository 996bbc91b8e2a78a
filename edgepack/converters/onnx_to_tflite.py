# /// script
# requires-python = "==3.12.*"
# dependencies = ["onnx2tf==2.6.9", "onnxoptimizer==0.4.2", "sympy==1.14.0"]
# ///
"""Convert an ONNX model to a float32 .tflite with onnx2tf (flatbuffer_direct, no TensorFlow), and find its layout.

Request: ``model`` (ONNX file, fixed shapes). Writes ``model.tflite``; the result's ``inputs`` and ``outputs`` (in the
source's order) hold each tensor's engine name, dtype, shape and ``perm``: engine = transpose(source, perm).
``layers``: the names that nodes and their first outputs have in the file -> the first outputs' names in the source.
Of a quantized model (QDQ) the float model inside is converted; ``scales`` are then its scales by the names in the file
(`qdq_pairs`). With ``keep_pairs`` they are left to onnx2tf.

onnx2tf 2.6.9 pins its own dependencies exactly; the header adds the rest. Known habits, and what is done:
- it rewrites its input file: it gets a copy;
- its onnxsim step breaks some models, its renaming rewrites the file: both are off (``-nuo -nuonag``);
- it stumbles over unusual names: every tensor and node of the copy is renamed;
- it makes a custom operator of a convolution whose weights are computed, or are a Constant: the first are folded
  where they are a ConstantOfShape, the second become initializers;
- a shape that it can't infer makes it guard against empty batches, with code that LiteRT refuses: every shape is
  inferred first;
- it has no form for groups in a convolution over one axis: that gets a second axis of one;
- it makes BATCH_MATMUL of a MatMul with constant weights, which LiteRT can't run in INT8 (it gives zeros) nor
  pack ahead: such a MatMul becomes a Gemm, and that FULLY_CONNECTED;
- it makes RELU_0_TO_1 of HardSigmoid, which XNNPACK doesn't have: RELU6 does the same;
- it writes Where with unlike shapes as arithmetic, which lets NaN and infinities through: they become alike;
- it may move channels last, by rules of its own: inputs are told to keep their shape (``-kat``, a Transpose goes
  inside where it needs one), and outputs are compared with ONNX Runtime's to see what was done;
- it makes custom operators of what it doesn't know: those that ONNX defines by others are written out (`expand`);
- its recurrent layers become operators that remember the last run: they are written out, and a file whose second answer
  to the same question differs is refused;
- it may exit 0 with a file that nothing loads: the file is loaded and run here.
"""

import json
import sys
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx2tf
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

sys.path.insert(0, str(Path(__file__).parent))
from expand import expanded, with_plain_constants
from float_of_qdq import without_pairs
from qdq_pairs import Pairs, found_again, pairs_of
from tflite_forms import with_forms, with_weights
from unrolled import unrolled

IR_VERSION = 10  # the newest that every pinned package here reads
NEAR = 1e-4  # of the outputs' own size: less than this from ONNX Runtime's is right


class Attempt(NamedTuple):
    """One way to convert a model."""

    expand: bool  # write operators out that ONNX defines by others
    as_it_likes: bool  # let onnx2tf simplify, and lay inputs out by its own rules


# Most models come out right at once. Of the others some do in another way: the nearest to ONNX Runtime is taken.
ATTEMPTS = (Attempt(True, False), Attempt(False, False), Attempt(True, True))


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out, scratch = Path(request["out"]), Path(request["scratch"])
    found = first = None
    for number, attempt in enumerate(ATTEMPTS):
        folder = scratch / str(number)
        folder.mkdir()
        try:
            made = attempted(Path(request["model"]), attempt, folder, request.get("keep_pairs", False))
        except SystemExit as error:
            first = first or error
            continue
        if found is None or made["distance"] < found["distance"]:
            found = made
        if found["distance"] <= NEAR:
            break
    if found is None:
        raise first
    (out / "model.tflite").write_bytes(found.pop("file").read_bytes())
    (out / "result.json").write_text(json.dumps({**found, "onnx2tf": onnx2tf.__version__}))


def attempted(source: Path, attempt: Attempt, folder: Path, keep_pairs: bool) -> dict:
    """One conversion, and how it came out: ``file``, ``inputs``, ``outputs``, ``layers``, ``scales``, ``distance``."""
    model = onnx.load(source)
    sources = {name for node in model.graph.node for name in node.output}
    pairs = Pairs({}, [])
    if not keep_pairs:
        pairs = pairs_of(model)
        without_pairs(model, "LiteRT", upper=False)
    if pairs.activations or pairs.weights:  # the outputs without them are compared with
        source = folder / "float.onnx"
        onnx.save(model, source)
    model = with_weights(unrolled(with_plain_constants(expanded(model) if attempt.expand else model)))
    layers, names = rename(model)
    layers = {new: old for new, old in layers.items() if old in sources}
    model.ir_version = min(model.ir_version, IR_VERSION)
    model = with_forms(model)
    copy = folder / "model.onnx"
    onnx.save(model, copy)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    given, kept = copy, [value.name for value in inputs]
    if attempt.as_it_likes:  # its simplifier may spoil what it is given
        given, kept = folder / "given.onnx", []
        onnx.save(model, given)
    made = convert(given, kept, folder / "made", simplify=attempt.as_it_likes)
    facts = describe(source, made, inputs, [value.name for value in model.graph.output])
    scales = found_again(pairs, names, copy, made) if pairs.activations or pairs.weights else None
    return {**facts, "file": made, "layers": layers, "scales": scales}


def convert(source: Path, inputs: list[str], folder: Path, *, simplify: bool) -> Path:
    try:
        onnx2tf.convert(
            input_onnx_file_path=str(source),
            output_folder_path=str(folder),
            not_use_onnxsim=not simplify,
            not_use_opname_auto_generate=True,
            keep_shape_absolutely_input_names=inputs or None,
            non_verbose=True,
        )
    except (Exception, SystemExit) as error:
        raise SystemExit(f"onnx2tf can't convert this model: {one_line(error)}") from error
    made = folder / f"{source.stem}_float32.tflite"
    if not made.is_file():
        raise SystemExit("onnx2tf ended without an error, but wrote no float32 file")
    return made


def rename(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, str]]:
    """Names that no tool stumbles over: inputs i0, i1..., outputs o0, o1..., the rest t0, t1...

    The new names of nodes and of their first outputs -> the first outputs' names before; and every tensor's old name ->
    its new one.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    names = {name: f"i{index}" for index, name in enumerate(inputs)}
    finals = []
    for index, value in enumerate(graph.output):
        if value.name in names or value.name in constants:  # an input or a constant handed through, or twice
            finals.append((value.name, f"o{index}"))
        else:
            names[value.name] = f"o{index}"
    before = [node.output[0] for node in graph.node]
    rename_graph(graph, names)
    layers = {
        new: old for node, old in zip(graph.node, before, strict=True) for new in (node.name, node.output[0]) if new
    }
    for value, index in zip(graph.output, range(len(graph.output)), strict=True):
        value.name = f"o{index}"
    for old, new in finals:
        graph.node.append(onnx.helper.make_node("Identity", [names[old]], [new], name=f"n_{new}"))
    model.metadata_props.clear()
    return layers, names


def rename_graph(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    def new(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}") if name else ""

    for value in (*graph.input, *graph.output):
        value.name = new(value.name)
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    del graph.value_info[:]
    for index, node in enumerate(graph.node):
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        node.name = f"n{index}_{len(names)}"
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                rename_graph(inner, names)


def describe(source: Path, made: Path, inputs: list, outputs: list[str]) -> dict[str, Any]:
    """How each source tensor appears in the file, and how far off outputs are, by a run of both on made-up inputs."""
    first = None
    for probe in (noise, ones):  # zeros may be divisors or sizes
        try:
            feed = {value.name: probe(value, index) for index, value in enumerate(inputs)}
            return described(source, made, feed, outputs)
        except SystemExit as error:
            first = first or error
    raise first


def described(source: Path, made: Path, feed: dict[str, np.ndarray], outputs: list[str]) -> dict[str, Any]:
    try:
        interpreter = Interpreter(str(made), num_threads=1)
        interpreter.allocate_tensors()
    except Exception as error:
        raise SystemExit(f"what onnx2tf wrote cannot be loaded by LiteRT: {one_line(error)}") from error
    there = {detail["name"]: detail for detail in interpreter.get_input_details()}
    bound_inputs = []
    for name, value in feed.items():
        if name not in there:
            raise SystemExit("onnx2tf dropped an input of the model (its outputs may not depend on it)")
        detail = there[name]
        shape = tuple(int(d) for d in detail["shape"])
        perm = next(iter(orders(value.shape, shape)), tuple(range(value.ndim)))
        bound_inputs.append(entry(detail, perm))
        interpreter.set_tensor(
            detail["index"], np.ascontiguousarray(value.transpose(perm).astype(detail["dtype"])).reshape(shape)
        )
    try:
        interpreter.invoke()
        first = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
        interpreter.invoke()
    except Exception as error:
        raise SystemExit(f"what onnx2tf wrote cannot be run by LiteRT: {one_line(error)}") from error
    for detail, value in zip(interpreter.get_output_details(), first, strict=True):
        if not np.array_equal(value, interpreter.get_tensor(detail["index"]), equal_nan=value.dtype.kind == "f"):
            raise SystemExit("what onnx2tf wrote remembers its last run: it answers the same input differently")
    try:
        wanted = computed(source, list(feed.values()))
    except Exception as error:
        raise SystemExit(f"ONNX Runtime can't run the model on made-up inputs: {one_line(error)}") from error
    details = interpreter.get_output_details()
    named = {detail["name"]: detail for detail in details}
    if len(details) != len(outputs):
        raise SystemExit(f"onnx2tf wrote {len(details)} outputs, the model has {len(outputs)}")
    bound_outputs, worst = [], 0.0
    for index, (name, value) in enumerate(zip(outputs, wanted, strict=True)):
        detail = named.get(name, details[index])
        got = interpreter.get_tensor(detail["index"])
        if got.size != value.size:
            raise SystemExit(f"output {index} has shape {got.shape} in what onnx2tf wrote, in the model {value.shape}")
        fits = list(orders(value.shape, got.shape)) or [tuple(range(value.ndim))]
        best = min(fits, key=lambda perm: distance(value.transpose(perm).reshape(got.shape), got))
        bound_outputs.append(entry(detail, best))
        worst = max(worst, distance(value.transpose(best).reshape(got.shape), got))
    return {"inputs": bound_inputs, "outputs": bound_outputs, "distance": worst}


def orders(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every order of axes that turns one shape into the other, the plain ones (as is, channels last) first."""
    axes = tuple(range(len(source)))
    if len(source) > 6 or sorted(source) != sorted(target):
        return []
    plain = [axes, axes[:1] + axes[2:] + axes[1:2]] if len(axes) > 2 else [axes]
    every = [*plain, *(p for p in permutations(axes) if p not in plain)]
    return [perm for perm in every if tuple(source[axis] for axis in perm) == tuple(target)]


def computed(source: Path, values: list[np.ndarray]) -> list[np.ndarray]:
    """What the model gives as it came, before any form of ours."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), values, strict=True)})


def ones(value: onnx.ValueInfoProto, seed: int) -> np.ndarray:
    """`noise`, with 1 for every whole number."""
    made = noise(value, seed)
    return made if np.issubdtype(made.dtype, np.floating) else np.ones_like(made)


def noise(value: onnx.ValueInfoProto, seed: int) -> np.ndarray:
    """Random values of the input's type; integers are 0 or 1, which every embedding table has."""
    kind = value.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    random = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.floating):
        return random.normal(size=shape).astype(dtype)
    return random.integers(0, 2, size=shape).astype(dtype)


def distance(wanted: np.ndarray, got: np.ndarray) -> float:
    """The error as a share of what is wanted; where the source has NaN, nothing is wanted."""
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    there = ~np.isnan(wanted) & (wanted != got)  # equal infinities aren't subtracted
    error = np.abs(wanted[there] - got[there]).sum()
    size = np.abs(wanted[np.isfinite(wanted)]).sum() or 1.0
    return float(error / size) if np.isfinite(error) else sys.float_info.max


def entry(detail: dict, perm: tuple[int, ...]) -> dict:
    shape = [int(d) for d in detail["shape"]]
    return {"name": detail["name"], "dtype": np.dtype(detail["dtype"]).name, "shape": shape, "perm": list(perm)}


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ai-edge-litert==2.3.0",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "flatbuffers==25.12.19",
#     "tqdm==4.70.1",
# ]
# ///
"""Write a .tflite without hidden state and without sparse weights: what a file keeps in variables between two runs
becomes an input and an output, and packed weights are unpacked. What comes out is run beside the source.

Request: ``source``, ``name`` (what to call it in messages), ``tell`` (whether notes are wanted). Writes
``model.tflite``. The result holds ``notes``, and ``states`` (a list of input, output and start: the value that all of
it has in the beginning), or ``error``.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

sys.path.insert(0, str(Path(__file__).parent))
from surface import Refused, one_line

OPERATORS = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
VARIABLES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")
NUMBERS = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 7: np.int16, 9: np.int8}
STEPS = 5  # runs on which both files must agree; a state takes effect from the second on
EXPORT_HINT = "Convert the model again with its state as an input and an output."


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        states = rewrite(Path(request["source"]), request["name"], out / "model.tflite")
        check(request, out / "model.tflite", states)
        result = {"states": states, "notes": said(states) if request["tell"] else []}
    except Refused as error:
        result = {"error": error.entry}
    (out / "result.json").write_text(json.dumps(result))


def rewrite(source: Path, name: str, made: Path) -> list[dict]:
    try:
        model = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0)
        unpack_weights(model)
        states = with_states(model, name)
        model.signatureDefs = []  # of the surface as it was
        made.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
        return states
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise Refused(
            f"{name} is damaged: its variables or its sparse weights can't be followed ({one_line(error)}).",
            "Copy or download it again, or convert the model again without them.",
            "EP303",
        ) from error


def said(states: list[dict]) -> list[str]:
    """What the user must know about the new surface."""
    listed = ", ".join(f"{s['input']!r} (at first all {s['start']:g}) and {s['output']!r}" for s in states)
    what = "What the file hid in variables is at its surface now"
    return [f"{what}: {listed}. Give each output back as its input at the next run."] if states else []


# ---- Variables


def with_states(model: schema.ModelT, name: str) -> list[dict]:
    """Turn the variables of the first subgraph into inputs and outputs."""
    graph, starts = model.subgraphs[0], {}
    kinds = [kind_of(model, operator) for operator in graph.operators]
    if not any(kind in VARIABLES for kind in kinds):
        return []
    nodes = list(zip(kinds, graph.operators, strict=True))
    once = [operator.builtinOptions.initSubgraphIndex for kind, operator in nodes if kind == "CALL_ONCE"]
    if len(model.subgraphs) != 1 + len(once):
        raise hidden(name, "in a graph with branches or loops")
    for index in once:
        starts |= start_values(model, model.subgraphs[index], name)
    handles = {operator.outputs[0]: shared(operator) for kind, operator in nodes if kind == "VAR_HANDLE"}
    before, now, alias, kept = {}, {}, {}, []
    for kind, operator in nodes:
        operator.inputs = [alias.get(int(i), int(i)) for i in operator.inputs] if operator.inputs is not None else []
        if kind == "READ_VARIABLE":
            variable = handles.get(operator.inputs[0])
            value = now.setdefault(variable, int(operator.outputs[0]))
            alias[int(operator.outputs[0])] = value
            before.setdefault(variable, value)
        elif kind == "ASSIGN_VARIABLE":
            variable = handles.get(operator.inputs[0])
            before.setdefault(variable, None)  # written before it is read: nothing is remembered
            now[variable] = operator.inputs[1]
        elif kind not in ("VAR_HANDLE", "CALL_ONCE"):
            kept.append(operator)
    graph.operators = kept
    graph.outputs = [alias.get(int(i), int(i)) for i in graph.outputs]
    for index, variable in handles.items():
        graph.tensors[index].name = f"{variable}/handle".encode()
    states = [add_state(graph, v, value, now[v], starts, name) for v, value in before.items() if value is not None]
    del model.subgraphs[1:]
    return states


def add_state(graph: schema.SubGraphT, variable: str, old: int, new: int, starts: dict, name: str) -> dict:
    first, last = graph.tensors[old], graph.tensors[new]
    if variable is None or variable not in starts:
        raise hidden(name, f"in the variable {variable!r}, and doesn't say what that holds in the beginning")
    if old == new or new in graph.outputs or new in graph.inputs:
        raise hidden(name, f"in the variable {variable!r}, which it hands through")
    if surface(first) != surface(last):
        raise hidden(name, f"in the variable {variable!r}, and writes it with another shape or scale than it reads")
    first.name, last.name = variable.encode(), f"{variable}_next".encode()
    graph.inputs, graph.outputs = [*graph.inputs, old], [*graph.outputs, new]
    return {"input": variable, "output": f"{variable}_next", "start": starts[variable]}


def start_values(model: schema.ModelT, graph: schema.SubGraphT, name: str) -> dict[str, float]:
    """What the subgraph that is run once puts into each variable."""
    starts, handles = {}, {}
    for operator in graph.operators:
        kind = kind_of(model, operator)
        if kind == "VAR_HANDLE":
            handles[operator.outputs[0]] = shared(operator)
            continue
        tensor = graph.tensors[operator.inputs[1]] if kind == "ASSIGN_VARIABLE" else None
        data = None if tensor is None else model.buffers[tensor.buffer].data
        if data is None or tensor.type not in NUMBERS:
            raise hidden(name, "and computes how that begins")
        variable, values = handles.get(operator.inputs[0]), np.asarray(data, np.uint8).view(NUMBERS[tensor.type])
        if not values.size or (values != values[0]).any():
            raise hidden(name, f"in the variable {variable!r}, which begins with more than one value")
        starts[variable] = float(values[0])
    return starts


def hidden(name: str, where: str) -> Refused:
    return Refused(f"{name} hides what it remembers between two runs {where}.", EXPORT_HINT, "EP310")


def kind_of(model: schema.ModelT, operator: schema.OperatorT) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return OPERATORS.get(max(code.builtinCode, code.deprecatedBuiltinCode), "")


def shared(operator: schema.OperatorT) -> str:
    return (operator.builtinOptions.sharedName or b"").decode()


def surface(tensor: schema.TensorT) -> tuple:
    scale = tensor.quantization
    numbers = [] if scale is None else [scale.scale, scale.zeroPoint]
    return (tensor.type, list(tensor.shape), *([] if x is None else list(x) for x in numbers))


# ---- Sparse weights


def unpack_weights(model: schema.ModelT) -> None:
    """Write every sparse constant out, and leave out the operators that did it at run time."""
    for graph in model.subgraphs:
        alias: dict[int, int] = {}
        for tensor in graph.tensors:
            if tensor.sparsity is not None:
                packed = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(NUMBERS[tensor.type])
                dense = unpacked(packed, [int(size) for size in tensor.shape], tensor.sparsity)
                model.buffers.append(schema.BufferT())
                model.buffers[-1].data = np.frombuffer(dense.tobytes(), np.uint8)
                tensor.buffer, tensor.sparsity = len(model.buffers) - 1, None
        kept = []
        for operator in graph.operators:
            if operator.inputs is not None:
                operator.inputs = [alias.get(int(i), int(i)) for i in operator.inputs]
            if kind_of(model, operator) == "DENSIFY":
                alias[int(operator.outputs[0])] = operator.inputs[0]
            else:
                kept.append(operator)
        graph.operators = kept


def unpacked(packed: np.ndarray, shape: list[int], sparsity: schema.SparsityParametersT) -> np.ndarray:
    """The dense form of TFLite's sparse tensors: a tree with one level for each axis in traversal order, each dense or
    compressed as in TACO (Kjolstad et al. 2017); axes past the tensor's own are blocks of the axes in the block map."""
    order = [int(axis) for axis in sparsity.traversalOrder]
    blocks = [int(axis) for axis in sparsity.blockMap] if sparsity.blockMap is not None else []
    levels = sparsity.dimMetadata
    sizes = [1] * len(shape)
    for axis, level in zip(order, levels, strict=True):
        if axis >= len(shape):
            sizes[blocks[axis - len(shape)]] = int(level.denseSize)
    dense = np.zeros(shape, packed.dtype)

    def walk(depth: int, place: int, where: list[int]) -> None:
        if depth == len(order):
            dense[tuple(where)] = packed[place]
            return
        axis, level = order[depth], levels[depth]
        if level.format == 0:
            children = [(place * int(level.denseSize) + i, i) for i in range(int(level.denseSize))]
        else:
            first, last = (int(level.arraySegments.values[place + i]) for i in (0, 1))
            children = [(i, int(level.arrayIndices.values[i])) for i in range(first, last)]
        target, step = (axis, sizes[axis]) if axis < len(shape) else (blocks[axis - len(shape)], 1)
        for child, index in children:
            walk(depth + 1, child, [w + step * index if a == target else w for a, w in enumerate(where)])

    walk(0, 0, [0] * len(shape))
    return dense


# ---- Proof


def check(request: dict, made: Path, states: list[dict]) -> None:
    """Both files give the same outputs, bit by bit, run after run."""
    try:
        source, plain = (Interpreter(str(path), num_threads=1) for path in (request["source"], made))
        for interpreter in (source, plain):
            interpreter.allocate_tensors()
        inside = {detail["name"]: detail for detail in plain.get_input_details()}
        after = {detail["name"]: detail["index"] for detail in plain.get_output_details()}
        held = {s["input"]: np.full(inside[s["input"]]["shape"], s["start"]) for s in states}
        random = np.random.default_rng(0)
        for _ in range(STEPS):
            for detail in source.get_input_details():
                value = noise(detail, random)
                source.set_tensor(detail["index"], value)
                plain.set_tensor(inside[detail["name"]]["index"], value)
            for name, value in held.items():
                plain.set_tensor(inside[name]["index"], value.astype(inside[name]["dtype"]))
            source.invoke()
            plain.invoke()
            held = {state["input"]: plain.get_tensor(after[state["output"]]) for state in states}
            for detail in source.get_output_details():
                same = np.array_equal(
                    source.get_tensor(detail["index"]), plain.get_tensor(after[detail["name"]]), equal_nan=True
                )
                if not same:
                    raise hidden(request["name"], f"in a way that changes {detail['name']!r} when it is made explicit")
    except (RuntimeError, ValueError, KeyError) as error:
        raise Refused(
            f"{request['name']} can't be run by LiteRT without its hidden state or sparse weights: {one_line(error)}.",
            EXPORT_HINT,
            "EP310",
        ) from error


def noise(detail: dict, random: np.random.Generator) -> np.ndarray:
    if np.issubdtype(detail["dtype"], np.floating):
        return random.standard_normal(detail["shape"]).astype(detail["dtype"])
    return random.integers(0, 2 if detail["dtype"] is np.bool_ else 100, detail["shape"]).astype(detail["dtype"])


if __name__ == "__main__":
    main()

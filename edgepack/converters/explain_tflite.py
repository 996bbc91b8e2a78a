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
"""Say what LiteRT (with XNNPACK) itself makes of every layer of an INT8 file, held against its float file.

Request: ``float`` and ``int8`` (the files), ``inputs`` (tensor names of the float file in the order of ``samples``, a
tensor folder in its layout), ``count`` (at most so many samples, evenly spaced), ``names`` (names in the float file ->
layers of the source). The result's ``layers`` hold for each layer found what `int8_errors.Compared` tells.

An operator belongs to the layer that its constants are named after, else its result. Quantizing inserts operators and
renames tensors, but keeps the order of those with weights.
"""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

sys.path.insert(0, str(Path(__file__).parent))
from activations import rows
from int8_errors import Compared, evenly

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
PART = re.compile(r"(n\d+_\d+)_(?!input|output)")  # what onnx2tf calls a constant of a node


class Operator(NamedTuple):
    """An operator with constant weights, and what it computes: indices and names of its tensors."""

    kind: str
    source: int
    target: int
    names: tuple[str, ...]
    weights: np.dtype
    activation: np.dtype


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    before, after = operators(Path(request["float"])), operators(Path(request["int8"]))
    if [item.kind for item in before] != [item.kind for item in after]:
        raise SystemExit("the INT8 file has other operators with weights than the float file: no layer can be matched")
    exact, made = load(request["float"]), load(request["int8"])
    found: list[tuple[str, Operator, Operator, Compared]] = []
    for old, new in zip(before, after, strict=True):
        if (name := layer(old, request["names"])) is not None:
            found.append((name, old, new, Compared(how(new), span(made, new) if how(new) == "int8" else None)))
    count = len(np.load(Path(request["samples"], "0.npy"), mmap_mode="r"))
    files = [rows(Path(request["samples"], f"{i}.npy")) for i in range(len(request["inputs"]))]
    for values in evenly(zip(*files, strict=True), count, request["count"]):
        for interpreter in (exact, made):
            run(interpreter, request["inputs"], exact, list(values))
        for _, old, new, compared in found:
            wanted = exact.get_tensor(old.target)
            compared.add(exact.get_tensor(old.source), wanted, decoded(made, new.target))
    result = {"layers": {name: compared.facts() for name, _, _, compared in found}}
    (Path(request["out"]) / "result.json").write_text(json.dumps(result))


def operators(path: Path) -> list[Operator]:
    """The operators with constant weights, in the file's order."""
    flat = schema.Model.GetRootAs(path.read_bytes())
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    dtypes = {code: name.lower() for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
    graph = flat.Subgraphs(0)
    found = []
    for operator in (graph.Operators(index) for index in range(graph.OperatorsLength())):
        code = flat.OperatorCodes(operator.OpcodeIndex())
        kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs = [index for index in operator.InputsAsNumpy() if index >= 0]
        if kind not in WEIGHTED or not stored(flat.Buffers(graph.Tensors(inputs[1]).Buffer())):
            continue
        place = 2 if kind == "TRANSPOSE_CONV" else 0  # there the output's shape comes first
        target = operator.Outputs(0)
        names = tuple((graph.Tensors(index).Name() or b"").decode() for index in (*inputs, target))
        types = [np.dtype(dtypes[graph.Tensors(index).Type()]) for index in (inputs[1], inputs[place])]
        found.append(Operator(kind, int(inputs[place]), int(target), names, *types))
    return found


def stored(buffer: schema.Buffer) -> bool:
    """Whether a tensor's values are in the file: in its tables, or behind them."""
    return bool(buffer.DataLength() or buffer.Size() > 1)


def layer(operator: Operator, names: dict[str, str]) -> str | None:
    """The layer of the source that an operator of the float file is, or None where its names don't say."""
    for name in operator.names[:-1]:
        if (part := PART.match(name)) and part.group(1) in names:
            return names[part.group(1)]
    return names.get(operator.names[-1].partition("_")[0])


def how(operator: Operator) -> str:
    """What an operator of the INT8 file computes in."""
    if operator.weights.kind == "f":
        return "float"
    return "dynamic" if operator.activation.kind == "f" else "int8"


def load(path: str) -> Interpreter:
    try:
        interpreter = Interpreter(path, num_threads=1, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    except Exception as error:
        raise SystemExit(f"cannot be loaded by LiteRT: {' '.join(str(error).split())[:400]}") from error
    return interpreter


def run(interpreter: Interpreter, names: list[str], exact: Interpreter, values: list[np.ndarray]) -> None:
    """Run one sample; inputs stand in the same order in both files, under names of the float one."""
    places = {detail["name"]: number for number, detail in enumerate(exact.get_input_details())}
    details = interpreter.get_input_details()
    for name, value in zip(names, values, strict=True):
        detail = details[places[name]]
        scale, zero = detail["quantization"]
        if scale and value.dtype.kind == "f":
            kind = np.iinfo(detail["dtype"])
            value = np.clip(np.rint(value / np.float32(scale)) + zero, kind.min, kind.max)
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(value).astype(detail["dtype"]))
    interpreter.invoke()


def decoded(interpreter: Interpreter, index: int) -> np.ndarray:
    """A tensor's numbers, by its own scale and zero point."""
    value = interpreter.get_tensor(index)
    scale, zero = interpreter._get_tensor_details(index, 0)["quantization"]
    return ((value.astype(np.float64) - zero) * scale).astype(np.float32) if scale else value


def span(interpreter: Interpreter, operator: Operator) -> tuple[float, float, float] | None:
    """The lowest and highest value that an operator's input can hold, and its step."""
    scale, zero = interpreter._get_tensor_details(operator.source, 0)["quantization"]
    if not scale:
        return None
    kind = np.iinfo(operator.activation)
    return (kind.min - zero) * scale, (kind.max - zero) * scale, scale


if __name__ == "__main__":
    main()

"""What can be said of a node of an ONNX graph in a few plain words, for the table of measured operators.

A fact is a short string such as ``select_last_index = 1``, ``input 1 is computed`` or ``input 0 has more than 4 axes``.
A rule of the table holds a set of them, and fits a node that has them all. The model as a whole counts as one more
node, of the operator ``Model``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = "Model"
MOST_AXES = 6
LONGEST = 24  # characters of a text attribute that is worth a fact
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Described:
    """A node's name (or its first output's), its operator and its facts."""

    name: str
    op: str
    facts: frozenset[str]


@dataclass
class _Values:
    """Shapes, types and constants of a graph's values, as far as the file says them."""

    shapes: dict[str, list[int]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)


def described(path: Path) -> list[Described]:
    """The model and its nodes. Weights are not looked at, beyond single numbers."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    opset = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=1)
    values = _values(model.graph)
    found = [Described("", MODEL, frozenset(_of_model(model.graph, values)))]
    for node in model.graph.node:
        name = node.name or next(iter(node.output), "")
        found.append(Described(name, node.op_type, frozenset(_of_node(node, values, opset))))
    return found


def _values(graph: Any) -> _Values:
    values = _Values()
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            kind = value.type.tensor_type
            values.types[value.name] = _type(kind.elem_type)
            if kind.HasField("shape"):
                values.shapes[value.name] = [
                    dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim
                ]
    held = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            held += [(node.output[0], attribute.t) for attribute in node.attribute if attribute.HasField("t")]
            values.constants |= {node.output[0]: None}
    for name, tensor in held:
        values.constants[name] = tensor
        values.types[name] = _type(tensor.data_type)
        values.shapes[name] = list(tensor.dims)
    return values


def _of_model(graph: Any, values: _Values) -> Iterator[str]:
    inputs = [value.name for value in graph.input if value.name not in values.constants]
    outputs = [value.name for value in graph.output]
    for what, names in (("an input", inputs), ("an output", outputs)):
        for name in names:
            shape = values.shapes.get(name)
            yield f"{what} is {values.types.get(name, 'unknown')}"
            if shape is not None:
                yield from (f"{what} has more than {n} axes" for n in range(MOST_AXES) if len(shape) > n)
                yield from [f"{what} is a single number"] if not shape else []
                yield from [f"{what} has a first axis over 1"] if shape and shape[0] > 1 else []
                yield from [f"{what} has an axis of 0"] if 0 in shape else []
    makers = {name for node in graph.node for name in node.output if node.op_type != "Constant"}
    if any(name not in makers for name in outputs):
        yield "an output is an input or a constant"
    readers = {name for node in graph.node for name in node.input} | set(outputs)
    if any(name not in readers for name in inputs):
        yield "an input is not used"


def _of_node(node: Any, values: _Values, opset: int) -> Iterator[str]:
    yield from _attributes(node, opset)
    shapes = []
    for index, name in enumerate(node.input):
        word = f"input {index}"
        if not name:
            continue
        yield f"there is {word}"
        yield f"{word} is {'a constant' if name in values.constants else 'computed'}"
        yield f"{word} is {values.types.get(name, 'unknown')}"
        shape = values.shapes.get(name)
        if shape is None or -1 in shape:
            yield f"{word} has an unknown shape"
            continue
        shapes.append(shape)
        yield from _of_shape(word, shape)
        yield from _of_number(word, values.constants.get(name))
    if any(shape != shapes[0] for shape in shapes[1:]):
        yield "inputs differ in shape"
    if len(node.input) > 1 and node.input[1] and len({len(shape) for shape in shapes[:2]}) > 1:
        yield "inputs 0 and 1 differ in axes"
    for index, name in enumerate(node.output):
        word = f"output {index}"
        if name:
            yield f"there is {word}"
            yield f"{word} is {values.types.get(name, 'unknown')}"
            shape = values.shapes.get(name)
            if shape is None or -1 in shape:
                yield f"{word} has an unknown shape"
            else:
                yield from _of_shape(word, shape)


def _of_shape(word: str, shape: list[int]) -> Iterator[str]:
    yield from (f"{word} has more than {n} axes" for n in range(1, MOST_AXES) if len(shape) > n)
    yield from (f"{word} has fewer than {n} axes" for n in range(2, MOST_AXES) if len(shape) < n)
    if not shape:
        yield f"{word} is a single number"
    elif shape[0] > 1:
        yield f"{word} has a first axis over 1"
    if 0 in shape:
        yield f"{word} has an axis of 0"


def _of_number(word: str, tensor: Any) -> Iterator[str]:
    """The value of a constant of one whole number: an axis, a size."""
    import numpy as np
    from onnx import numpy_helper

    if tensor is None or list(tensor.dims) not in ([], [1]) or tensor.external_data:
        return
    number = np.asarray(numpy_helper.to_array(tensor))
    if number.dtype.kind in "iub":
        yield f"{word} = {int(number.reshape(-1)[0])}"


def _attributes(node: Any, opset: int) -> Iterator[str]:
    from onnx import helper

    given = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type in (1, 2, 3, 6, 7, 8)}
    for key, value in (_defaults(node.op_type, node.domain, opset) | given).items():
        yield f"there is {key}"
        if isinstance(value, bytes) and len(value) <= LONGEST:
            yield f"{key} = {value.decode('utf-8', 'replace')}"
        elif isinstance(value, int):
            yield f"{key} = {value}"
        elif isinstance(value, float):
            yield f"{key} = {value:g}"
        elif value and all(isinstance(item, int) for item in value):
            yield f"{key} are {min(value)} to {max(value)}"
            yield from [f"{key} are over 1"] if max(value) > 1 else []
            yield from [f"{key} are over 0"] if max(value) > 0 else []
            half = len(value) // 2
            yield from [f"{key} are uneven"] if list(value[:half]) != list(value[-half:]) else []


@functools.cache
def _defaults(op: str, domain: str, opset: int) -> dict[str, Any]:
    """What attributes mean that a node doesn't say."""
    import onnx
    from onnx import helper

    try:
        schema = onnx.defs.get_schema(op, opset, "" if domain in STANDARD else domain)
    except onnx.defs.SchemaError:
        return {}
    return {
        name: helper.get_attribute_value(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type
    }


def _type(number: int) -> str:
    import onnx

    return onnx.TensorProto.DataType.Name(number).lower() if number else "unknown"

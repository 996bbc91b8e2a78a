"""Recurrent layers as products and sums, step after step.

For an engine whose recurrent layers remember the last run: TFLite's SEQUENCE_LSTM and SEQUENCE_RNN keep their state
in variables, so that what a file answers would depend on what it was asked before.

LSTM: Hochreiter and Schmidhuber 1997; GRU: Cho et al. 2014; orders of gates and forms as the ONNX operators have them.
"""

import numpy as np
import onnx
from expand import has_graph
from onnx_graph import Graph, attribute, make

STEPS = 512  # times directions; a longer layer stays
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS = {"LSTM": 8, "GRU": 6, "RNN": 6}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
TURNS = {b"forward": [False], b"reverse": [True], b"bidirectional": [False, True]}


def unrolled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its recurrent layers written out; those without constant weights, or with lengths for each
    sequence, peepholes, clipping or unusual activations, and those of a model with branches or loops, stay."""
    if not any(node.op_type in GATES for node in model.graph.node) or any(map(has_graph, model.graph.node)):
        return model
    graph = Graph(model)
    for node in [node for node in graph.nodes if node.op_type in GATES and usual(graph, node)]:
        Layer(graph, node).write()
    return graph.write(model)


def usual(graph: Graph, node: onnx.NodeProto) -> bool:
    taken = [*node.input, *[""] * (INPUTS[node.op_type] - len(node.input))]
    sizes = graph.shapes.get(taken[0], [])
    turns = TURNS[attribute(node, "direction", b"forward")]
    named = [name.decode() for name in attribute(node, "activations", [])]
    return (
        len(sizes) == 3
        and 0 not in sizes
        and sizes[0] * len(turns) <= STEPS
        and all(name in graph.constants for name in taken[1:4] if name)
        and not any((taken[4], *taken[7:]))
        and named in ([], ACTIVATIONS[node.op_type] * len(turns))
        and attribute(node, "clip") is None
        and not attribute(node, "layout", 0)
        and not attribute(node, "input_forget", 0)
    )


class Layer:
    """One recurrent layer, and the nodes that take its place."""

    def __init__(self, graph: Graph, node: onnx.NodeProto) -> None:
        self.graph, self.node, self.new = graph, node, []
        self.taken = [*node.input, *[""] * (INPUTS[node.op_type] - len(node.input))]
        self.steps, self.batch, self.width = graph.shapes[self.taken[0]]
        self.hidden = graph.constants[self.taken[2]].shape[2]
        self.gates = GATES[node.op_type]

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """A new node's output."""
        out = self.graph.name()
        self.new.append(make(kind, list(inputs), [out], **attributes))
        return out

    def ints(self, *numbers: int) -> str:
        """Whole numbers as a constant."""
        return self.graph.constant(np.array(numbers, np.int64))

    def part(self, value: str, first: int, last: int, axis: int) -> str:
        """Rows `first` to `last` of an axis."""
        return self.op("Slice", value, self.ints(first), self.ints(last), self.ints(axis))

    def columns(self, value: str, first: int, last: int) -> str:
        """Gates `first` to `last` of a row of all gates."""
        return self.part(value, first * self.hidden, last * self.hidden, 1)

    def write(self) -> None:
        """Replace the layer."""
        turns = TURNS[attribute(self.node, "direction", b"forward")]
        flat = self.op("Reshape", self.taken[0], self.ints(self.steps * self.batch, self.width))
        done = [self.direction(flat, place, turn) for place, turn in enumerate(turns)]
        rows = [self.op("Concat", *states, axis=0) if len(states) > 1 else states[0] for states, *_ in done]
        rows = [self.op("Reshape", value, self.ints(self.steps, 1, self.batch, self.hidden)) for value in rows]
        outputs = [(rows, 1, (self.steps, len(turns), self.batch, self.hidden))]
        for which in (1, 2):
            last = [self.op("Reshape", one[which], self.ints(1, self.batch, self.hidden)) for one in done]
            outputs.append((last, 0, (len(turns), self.batch, self.hidden)))
        for name, (parts, axis, shape) in zip(self.node.output, outputs, strict=False):
            if name:
                whole = self.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]
                self.new.append(make("Reshape", [whole, self.ints(*shape)], [name]))
        self.graph.rewrite(self.node, *self.new)

    def direction(self, flat: str, place: int, backward: bool) -> tuple[list[str], str, str]:
        """Every hidden state in the order of the sequence, the last one, and the last cell."""
        w, r = (self.graph.constants[name][place] for name in self.taken[1:3])
        size = self.gates * self.hidden
        biases = self.graph.constants[self.taken[3]][place] if self.taken[3] else np.zeros(2 * size, w.dtype)
        given = self.op("Gemm", flat, self.graph.constant(w.T.copy()), self.graph.constant(biases[:size]))
        h, c = (self.start(name, place, w.dtype) for name in (*self.taken[5:7], "")[:2])
        states = {}
        for step in reversed(range(self.steps)) if backward else range(self.steps):
            x = self.part(given, step * self.batch, (step + 1) * self.batch, 0) if self.steps > 1 else given
            h, c = getattr(self, self.node.op_type.lower())(x, h, c, r, biases[size:])
            states[step] = h
        return [states[step] for step in range(self.steps)], h, c

    def start(self, name: str, place: int, dtype: np.dtype) -> str:
        """The state before the first step, [batch, hidden]: a direction's part of an input, or zeros."""
        if not name:
            return self.graph.constant(np.zeros((self.batch, self.hidden), dtype))
        one = (
            self.part(name, place, place + 1, 0)
            if len(TURNS[attribute(self.node, "direction", b"forward")]) > 1
            else name
        )
        return self.op("Reshape", one, self.ints(self.batch, self.hidden))

    def product(self, h: str, r: np.ndarray, bias: np.ndarray) -> str:
        """The state times recurrent weights [gates, hidden]."""
        return self.op("Gemm", h, self.constant(r.T), self.constant(bias))

    def constant(self, array: np.ndarray) -> str:
        """A constant that all steps share."""
        key = (array.__array_interface__["data"][0], array.shape, array.strides)
        known = self.__dict__.setdefault("known", {})
        if key not in known:
            known[key] = self.graph.constant(np.ascontiguousarray(array))
        return known[key]

    def lstm(self, x: str, h: str, c: str, r: np.ndarray, bias: np.ndarray) -> tuple[str, str]:
        """One step: i, o, f, c."""
        gates = self.op("Add", x, self.product(h, r, bias))
        open_ = self.op("Sigmoid", self.columns(gates, 0, 3))
        i, o, f = (self.columns(open_, n, n + 1) for n in range(3))
        new = self.op("Mul", i, self.op("Tanh", self.columns(gates, 3, 4)))
        c = self.op("Add", self.op("Mul", f, c), new)
        return self.op("Mul", o, self.op("Tanh", c)), c

    def gru(self, x: str, h: str, c: str, r: np.ndarray, bias: np.ndarray) -> tuple[str, str]:
        """One step: z, r, h."""
        two = 2 * self.hidden
        open_ = self.op("Sigmoid", self.op("Add", self.columns(x, 0, 2), self.product(h, r[:two], bias[:two])))
        z, reset = (self.columns(open_, n, n + 1) for n in range(2))
        if attribute(self.node, "linear_before_reset", 0):
            inner = self.op("Mul", reset, self.product(h, r[two:], bias[two:]))
        else:
            inner = self.product(self.op("Mul", reset, h), r[two:], bias[two:])
        new = self.op("Tanh", self.op("Add", self.columns(x, 2, 3), inner))
        return self.op("Add", new, self.op("Mul", z, self.op("Sub", h, new))), c

    def rnn(self, x: str, h: str, c: str, r: np.ndarray, bias: np.ndarray) -> tuple[str, str]:
        """One step."""
        return self.op("Tanh", self.op("Add", x, self.product(h, r, bias))), c

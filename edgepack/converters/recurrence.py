"""Recurrent layers as products and sums."""

import numpy as np
import onnx
from onnx_graph import Graph, attribute, make

UNROLLED = 16  # steps; a longer recurrence stays a layer


def one_step(graph: Graph) -> None:
    """A recurrence of few steps as products and sums: pnnx loses the state of LSTM and GRU layers.

    Hochreiter and Schmidhuber, Long Short-Term Memory, 1997, with ONNX's order of gates (i, o, f, c); forward only,
    the default activations, no peepholes, a batch of one.
    """
    for node in [n for n in graph.nodes if n.op_type == "LSTM"]:
        taken = [*node.input, *[""] * (8 - len(node.input))]
        sizes = graph.shapes.get(taken[0], [])
        weights = [graph.constants.get(name) for name in taken[1:3]]
        plain = attribute(node, "direction", b"forward") == b"forward" and not attribute(node, "activations")
        plain = plain and not attribute(node, "layout", 0) and attribute(node, "clip") is None and not taken[7]
        plain = plain and not attribute(node, "input_forget", 0)
        if len(sizes) != 3 or not 1 <= sizes[0] <= UNROLLED or sizes[1] != 1 or any(array is None for array in weights):
            continue
        if not plain or taken[4]:
            continue
        _unroll(graph, node, taken, sizes[0], weights[0][0], weights[1][0])


def _unroll(graph: Graph, node: onnx.NodeProto, taken: list[str], steps: int, w: np.ndarray, r: np.ndarray) -> None:
    size = r.shape[1]
    bias = graph.constants.get(taken[3])
    added = np.zeros(4 * size, np.float32) if bias is None else bias[0, : 4 * size] + bias[0, 4 * size :]
    new: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, **attributes: object) -> str:
        out = graph.name()
        new.append(make(kind, list(inputs), [out], **attributes))
        return out

    def ints(*numbers: int) -> str:
        return graph.constant(np.array(numbers, np.int64))

    zero = graph.constant(np.zeros((1, size), np.float32))
    h, c = (op("Reshape", name, ints(1, size)) if name else zero for name in taken[5:7])
    both = graph.constant(np.ascontiguousarray(np.concatenate([w, r], axis=1).T))
    total = graph.constant(added)
    whole = op("Reshape", taken[0], ints(steps, w.shape[1]))
    made = []
    for step in range(steps):
        x = whole if steps == 1 else op("Slice", whole, ints(step), ints(step + 1), ints(0))
        gates = op("Gemm", op("Concat", x, h, axis=1), both, total)
        i, o, f, g = (op("Slice", gates, ints(n * size), ints((n + 1) * size), ints(1)) for n in range(4))
        kept = op("Mul", op("Sigmoid", f), c)
        c = op("Add", kept, op("Mul", op("Sigmoid", i), op("Tanh", g)))
        h = op("Mul", op("Sigmoid", o), op("Tanh", c))
        made.append(h)
    outputs = [*node.output, "", ""]
    if outputs[0]:
        rows = made[0] if steps == 1 else op("Concat", *made, axis=0)
        new.append(make("Reshape", [rows, ints(steps, 1, 1, size)], [outputs[0]]))
    for name, value in zip(outputs[1:3], (h, c), strict=True):
        if name:
            new.append(make("Reshape", [value, ints(1, 1, size)], [name]))
    graph.rewrite(node, *new)

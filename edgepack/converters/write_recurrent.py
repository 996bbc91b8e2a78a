"""ncnn's recurrent layers for ONNX's LSTM, GRU and RNN: one layer for each sample of the batch.

Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; Cho et al., Learning Phrase Representations using RNN
Encoder-Decoder, 2014. The orders of the gates differ: ONNX has i, o, f, c and z, r, h; ncnn i, f, o, g and r, u, n.
"""

from collections.abc import Callable

import numpy as np
from ncnn_writer import Blob, Node, Refused, Writer, weight
from write_elementwise import ADD, MUL, RSUB
from write_moves import cut, joined, transposed
from write_products import connected

_GATES = {"LSTM": (0, 2, 1, 3), "GRU": (1, 0, 2), "RNN": (0,)}
_DIRECTIONS = ("forward", "reverse", "bidirectional")
_DEFAULT = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_LONGEST = 64  # steps that are written out where ncnn has no layer


def recurrent(w: Writer, node: Node) -> None:
    kind = node.proto.op_type
    x, (wx, wh), bias = node.input(0), (w.known(node, i, "weights") for i in (1, 2)), w.known(node, 3, "bias")
    direction = str(node.get("direction", "forward"))
    sides = 2 if direction == "bidirectional" else 1
    _must_be_plain(w, node, kind, sides)
    size, layout = wh.shape[2], int(node.get("layout", 0))
    shape = w.shape(x)
    steps, batch = (shape[1], shape[0]) if layout else (shape[0], shape[1])
    whole = w.blob(x)
    if layout == 0 and batch > 1:
        whole = transposed(w, whole, shape, (1, 0, 2))
    whole = w.view(whole, (batch * steps, shape[2]))
    states = [_state(w, node.input(i), layout, batch, sides, size) for i in ((5, 6) if kind == "LSTM" else (5,))]
    table = _table(kind, wx, wh, bias, sides, size)
    rows, ends = [], [[] for _ in states]
    for sample in range(batch):
        sequence = cut(w, whole, 0, sample * steps, (sample + 1) * steps)
        first = [
            w.view(cut(w, s, 0, sample * sides, (sample + 1) * sides), (sides, size)) if s else None for s in states
        ]
        if kind == "GRU" and not node.get("linear_before_reset", 0):
            found = _written_out(w, sequence, wx, wh, bias, first[0], direction)
        else:
            found = _layer(w, kind, sequence, table, first, direction, size, wx.shape[2])
        rows.append(found[0])
        for end, blob in zip(ends, found[1:], strict=True):
            end.append(blob)
    outputs = [*node.proto.output, "", "", ""]
    if outputs[0]:
        # [batch * steps, sides * size] -> [steps, sides, batch, size], or [batch, steps, sides, size]
        y = joined(w, rows, 0)
        y = y if layout else transposed(w, y, (batch, steps, sides, size), (1, 2, 0, 3))
        w.give(outputs[0], y)
    for name, end in zip(outputs[1:], ends, strict=False):
        if name:
            y = joined(w, end, 0)  # [batch * sides, size]
            w.give(name, y if layout else transposed(w, y, (batch, sides, size), (1, 0, 2)))


def _must_be_plain(w: Writer, node: Node, kind: str, sides: int) -> None:
    named = [name.decode().lower() for name in node.get("activations", [])]
    if named and named != _DEFAULT[kind] * sides:
        raise Refused(f"its activations are {', '.join(named)}")
    if node.get("clip") is not None or node.get("input_forget", 0) or node.input(7):
        raise Refused("it clips, couples its gates or has peepholes")
    lengths = w.constant(node.input(4)) if node.input(4) else None
    steps = w.shape(node.input(0))[1 if node.get("layout", 0) else 0]
    if node.input(4) and (lengths is None or (lengths != steps).any()):
        raise Refused("its sequences differ in length")


def _state(w: Writer, name: str, layout: int, batch: int, sides: int, size: int) -> Blob | None:
    """A first state as [batch * sides, size]; None when it is all zero."""
    array = w.constant(name) if name else None
    if not name or (array is not None and not array.any()):
        return None
    blob = w.blob(name)
    if layout == 0 and batch > 1 and sides > 1:
        blob = transposed(w, blob, (sides, batch, size), (1, 0, 2))
    return w.view(blob, (batch * sides, size))


def _table(kind: str, wx: np.ndarray, wh: np.ndarray, bias: np.ndarray | None, sides: int, size: int) -> list[bytes]:
    """Weights for the input, biases, weights for the state, in ncnn's order of gates."""
    order, gates = _GATES[kind], len(_GATES[kind])
    by_gate = [array.reshape(sides, gates, size, -1)[:, order] for array in (wx, wh)]
    both = (
        np.zeros((sides, 2, gates, size), np.float32)
        if bias is None
        else bias.reshape(sides, 2, gates, size)[:, :, order]
    )
    if kind == "GRU":  # the last gate's two biases stay apart
        total = np.concatenate([both[:, 0, :2] + both[:, 1, :2], both[:, :, 2]], axis=1)
    else:
        total = both.sum(axis=1)
    return [weight(np.ascontiguousarray(array)) for array in (by_gate[0], total, by_gate[1])]


def _layer(
    w: Writer, kind: str, x: Blob, table: list[bytes], first: list[Blob | None], direction: str, size: int, inputs: int
) -> list[Blob]:
    """One layer: [steps, inputs] -> [steps, sides * size], and the last states [sides, size]."""
    sides, gates = (2 if direction == "bidirectional" else 1), len(_GATES[kind])
    params: dict[int, object] = {0: size, 1: inputs * size * gates * sides, 2: _DIRECTIONS.index(direction)}
    states = []
    if any(state is not None for state in first):
        zero = None
        for state in first:
            if state is None:
                zero = zero or w.memory(np.zeros((sides, size), np.float32))
            states.append(state or zero)
    shapes = [(x.shape[0], sides * size), *[(sides, size)] * len(first)]
    return w.many(kind, [x, *states], shapes, params, *table)


def _written_out(
    w: Writer, x: Blob, wx: np.ndarray, wh: np.ndarray, bias: np.ndarray | None, first: Blob | None, direction: str
) -> list[Blob]:
    """A GRU that resets its state before the product, step by step: ncnn's layer resets after it."""
    if x.shape[0] > _LONGEST:
        raise Refused(f"it resets its state before the product, over more than {_LONGEST} steps")
    size = wh.shape[2]
    sides = ["forward", "reverse"] if direction == "bidirectional" else [direction]
    rows, ends = [], []
    for side, way in enumerate(sides):
        added = np.zeros((2, 3 * size), np.float32) if bias is None else bias[side].reshape(2, 3 * size)
        parts = connected(w, x, wx[side], added.sum(axis=0))
        parts = w.view(parts, (x.shape[0], 3 * size))
        h = w.memory(np.zeros((1, size), np.float32)) if first is None else cut(w, first, 0, side, side + 1)
        made: dict[int, Blob] = {}
        for step in range(x.shape[0]) if way == "forward" else reversed(range(x.shape[0])):
            row = cut(w, parts, 0, step, step + 1)
            inner = w.view(connected(w, h, wh[side, : 2 * size], None), (1, 2 * size))
            gates = w.binary(ADD, cut(w, row, 1, 0, 2 * size), inner)
            gates = w.layer("Sigmoid", [gates], gates.shape)
            update, reset = cut(w, gates, 1, 0, size), cut(w, gates, 1, size, 2 * size)
            kept = w.binary(MUL, reset, h)
            new = w.view(connected(w, kept, wh[side, 2 * size :], None), (1, size))
            new = w.binary(ADD, cut(w, row, 1, 2 * size, 3 * size), new)
            new = w.layer("TanH", [new], new.shape)
            fresh = w.binary(MUL, w.scalar(RSUB, update, 1.0), new)
            h = w.binary(ADD, fresh, w.binary(MUL, update, h))
            made[step] = h
        rows.append(joined(w, [made[step] for step in range(x.shape[0])], 0))
        ends.append(h)
    return [joined(w, rows, 1), joined(w, ends, 0)]


OPERATORS: dict[str, Callable[[Writer, Node], None]] = dict.fromkeys(_GATES, recurrent)

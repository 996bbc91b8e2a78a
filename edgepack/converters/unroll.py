"""Loop and Scan with a known, small number of rounds, written out: no engine but ONNX Runtime has them."""

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
from onnx_walk import STANDARD, graphs_of

ROUNDS = 64
NODES = 4096  # of all rounds of one loop together


def unrolled(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with such loops written out (opset 13 or newer); None where there is none."""
    if not any(node.op_type in ("Loop", "Scan") and node.domain in STANDARD for node in model.graph.node):
        return None
    changed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    writer = _Writer(changed)
    nodes = list(changed.graph.node)
    for node in nodes:
        if node.op_type not in ("Loop", "Scan") or node.domain not in STANDARD or not writer.write(node):
            writer.nodes.append(node)
    if not writer.count:
        return None
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in writer.nodes]
    del changed.graph.node[:]
    changed.graph.node.extend(kept)
    changed.graph.initializer.extend(writer.constants.values())
    return changed


class _Writer:
    """Collects the nodes of a graph whose loops are written out."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.count = 0
        self.known = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.known[node.output[0]] = node.attribute[0].t
        values = (*graph.input, *graph.value_info, *graph.output)
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        self.shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}

    def write(self, loop: onnx.NodeProto) -> bool:
        """Write out one loop; False where that can't be done."""
        body = next(a.g for a in loop.attribute if a.name == "body")
        facts = {a.name: onnx.helper.get_attribute_value(a) for a in loop.attribute if a.name != "body"}
        rounds = self._rounds(loop, body, facts)
        nested = any(any(graphs_of(node)) for node in body.node) or body.sparse_initializer
        if nested or not 1 <= rounds <= ROUNDS or rounds * len(body.node) > NODES:
            return False
        self.count += 1
        prefix = f"unrolled{self.count}.{loop.output[0]}"
        held = {tensor.name: f"{prefix}.{tensor.name}" for tensor in body.initializer}
        for tensor in body.initializer:
            self._constant(onnx.numpy_helper.to_array(tensor), held[tensor.name])
        (self._write_loop if loop.op_type == "Loop" else self._write_scan)(loop, body, facts, rounds, prefix, held)
        return True

    def _rounds(self, loop: onnx.NodeProto, body: onnx.GraphProto, facts: dict[str, object]) -> int:
        """How often the body runs; 0 where that isn't known."""
        if loop.op_type == "Scan":
            axis = (facts.get("scan_input_axes") or [0])[0]
            shape = self.shapes.get(loop.input[len(loop.input) - facts["num_scan_inputs"]], [])
            return shape[axis] if shape else 0
        taken, given = body.input[1].name, body.output[0].name
        makers = {name: node for node in body.node for name in node.output}
        while given in makers and makers[given].op_type == "Identity":
            given = makers[given].input[0]
        inner = {tensor.name: tensor for tensor in body.initializer}
        if given in makers and makers[given].op_type == "Constant":
            inner[given] = makers[given].attribute[0].t
        goes_on = given == taken or (given in inner and bool(onnx.numpy_helper.to_array(inner[given]).all()))
        first = loop.input[1] if len(loop.input) > 1 else ""
        starts = not first or (first in self.known and bool(onnx.numpy_helper.to_array(self.known[first]).all()))
        count = self.known.get(loop.input[0])
        return int(onnx.numpy_helper.to_array(count).ravel()[0]) if goes_on and starts and count is not None else 0

    def _write_loop(
        self,
        loop: onnx.NodeProto,
        body: onnx.GraphProto,
        facts: dict[str, object],
        rounds: int,
        prefix: str,
        held: dict[str, str],
    ) -> None:
        carried = list(loop.input[2:])
        collected: list[list[str]] = [[] for _ in body.output[1 + len(carried) :]]
        true = self._constant(np.array(True), f"{prefix}.true")
        for number in range(rounds):
            index = self._constant(np.array(number, np.int64), f"{prefix}.{number}.index")
            given = self._round(body, f"{prefix}.{number}", held, [index, true, *carried])[1:]
            carried, rows = given[: len(carried)], given[len(carried) :]
            for row, column in zip(rows, collected, strict=True):
                column.append(row)
        self._give(loop, prefix, carried, collected, [0] * len(collected))

    def _write_scan(
        self,
        loop: onnx.NodeProto,
        body: onnx.GraphProto,
        facts: dict[str, object],
        rounds: int,
        prefix: str,
        held: dict[str, str],
    ) -> None:
        states = len(loop.input) - facts["num_scan_inputs"]
        carried, sequences = list(loop.input[:states]), loop.input[states:]
        outputs = len(body.output) - states
        taken_axes = facts.get("scan_input_axes") or [0] * len(sequences)
        taken_backwards = facts.get("scan_input_directions") or [0] * len(sequences)
        given_axes = facts.get("scan_output_axes") or [0] * outputs
        given_backwards = facts.get("scan_output_directions") or [0] * outputs
        collected: list[list[str]] = [[] for _ in range(outputs)]
        for number in range(rounds):
            rows = []
            for i, (name, axis, backwards) in enumerate(zip(sequences, taken_axes, taken_backwards, strict=True)):
                place = rounds - 1 - number if backwards else number
                index = self._constant(np.array(place, np.int64), f"{prefix}.{number}.{i}.index")
                rows.append(self._node("Gather", [name, index], f"{prefix}.{number}.{i}.row", axis=axis))
            given = self._round(body, f"{prefix}.{number}", held, [*carried, *rows])
            carried = given[:states]
            for row, column in zip(given[states:], collected, strict=True):
                column.append(row)
        ordered = [list(reversed(c)) if back else c for c, back in zip(collected, given_backwards, strict=True)]
        self._give(loop, prefix, carried, ordered, given_axes)

    def _round(self, body: onnx.GraphProto, prefix: str, held: dict[str, str], taken: list[str]) -> list[str]:
        """Write the body once; what it gives."""
        names = {**held, **{value.name: name for value, name in zip(body.input, taken, strict=True)}, "": ""}
        for node in body.node:
            copied = onnx.NodeProto.FromString(node.SerializeToString())
            copied.name = f"{prefix}.{node.name}" if node.name else ""
            copied.input[:] = [names.get(name, name) for name in node.input]
            names |= {name: f"{prefix}.{name}" for name in node.output if name}
            copied.output[:] = [names[name] for name in node.output]
            self.nodes.append(copied)
        return [names.get(value.name, value.name) for value in body.output]

    def _give(
        self, loop: onnx.NodeProto, prefix: str, carried: list[str], collected: list[list[str]], axes: list[int]
    ) -> None:
        """The loop's own outputs."""
        for name, value in zip(loop.output, carried, strict=False):
            if name:
                self._node("Identity", [value], name)
        for i, (name, rows) in enumerate(zip(loop.output[len(carried) :], collected, strict=False)):
            if name:
                axis = self._constant(np.array([axes[i]], np.int64), f"{prefix}.{i}.axis")
                made = [self._node("Unsqueeze", [r, axis], f"{name}.{n}.unsqueezed") for n, r in enumerate(rows)]
                self._node("Concat", made, name, axis=axes[i])

    def _node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], **attributes))
        return output

    def _constant(self, array: np.ndarray, name: str) -> str:
        self.constants[name] = onnx.numpy_helper.from_array(array, name)
        return name

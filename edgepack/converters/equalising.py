"""Even out the channels of an ONNX model's activations, so that one scale for all of them costs little.

A channel of a tensor can be divided by any positive number if what reads it multiplies by that again. Layers take such
factors into their weights, for nothing (cross-layer equalisation, Nagel et al. 2019, arXiv:1906.04721, section 4.1,
chosen by the range of activations as in SmoothQuant, Xiao et al. 2023, arXiv:2211.10438). ReLU, pooling and sums let
them pass. Where something else is in the way, a Mul is put beside the layer if that pays: there the tensor is a
float32 anyway.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx_session import attribute

LAYERS = ("Conv", "Gemm", "MatMul")
PASSING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Resize")
SHARES = (0.25, 0.5, 0.75, 1.0)  # how much of the unevenness goes to the weights
FREE, PAID = 0.8, 0.3  # a change must leave less than this share of the estimated noise
SPREAD = 1e-3  # of the largest channel; channels below it are treated as if they had that


@dataclass
class Channels:
    """What is seen of a tensor's channels: the largest magnitude of each, and the sum of squares."""

    axis: int
    largest: np.ndarray | None = None
    power: np.ndarray | None = None

    def add(self, values: np.ndarray) -> None:
        """See one sample."""
        axis = self.axis % values.ndim
        others = tuple(i for i in range(values.ndim) if i != axis)
        largest, power = np.abs(values).max(axis=others), np.square(values, dtype=np.float64).mean(axis=others)
        self.largest = largest if self.largest is None else np.maximum(self.largest, largest)
        self.power = power if self.power is None else self.power + power


@dataclass
class Group:
    """Tensors whose channels must be scaled alike: who writes them, who reads them, and whether all can adapt."""

    tensors: set[str] = field(default_factory=set)
    writers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)
    addends: list[tuple[onnx.NodeProto, int]] = field(default_factory=list)  # constants that are added, or multiplied
    free: bool = True


class Equaliser:
    """Rewrites a prepared model in place: `watched` tensors are to be seen first, then `apply`."""

    def __init__(self, model: onnx.ModelProto, kept: set[str]) -> None:
        self.graph = model.graph
        self.constants = {item.name: numpy_helper.to_array(item) for item in self.graph.initializer}
        self.kept = kept
        kinds = {v.name: v.type.tensor_type for v in (*self.graph.input, *self.graph.value_info, *self.graph.output)}
        self.shape = {name: [dim.dim_value for dim in kind.shape.dim] for name, kind in kinds.items()}
        self.float = {name for name, kind in kinds.items() if kind.elem_type == onnx.TensorProto.FLOAT}
        self.surface = {v.name for v in (*self.graph.input, *self.graph.output)}
        self.layers = [node for node in self.graph.node if self._is_layer(node)]
        self.watched: dict[str, Channels] = {}
        for node in self.layers:
            axis = 1 if node.op_type == "Conv" else -1
            for name in (node.input[0], node.output[0]):
                if name in self.float and len(self.shape[name]) > 1:
                    self.watched.setdefault(name, Channels(axis))

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in LAYERS or node.input[0] in self.constants or node.output[0] in self.kept:
            return False
        weight = self.constants.get(node.input[1])
        if weight is None or weight.dtype != np.float32 or any(n not in self.constants for n in node.input[2:] if n):
            return False
        if node.op_type == "Conv":
            return weight.ndim > 2
        if node.op_type == "Gemm":
            plain = attribute(node, "transA", 0) == 0 and attribute(node, "alpha", 1) == attribute(node, "beta", 1) == 1
            return plain and (len(node.input) < 3 or self.constants[node.input[2]].ndim == 1)
        return weight.ndim == 2

    def apply(self, *, beside: bool = True) -> int:
        """Scale what pays, `beside` layers too; the number of tensors that were changed."""
        changed, done = 0, set()
        for group in self._groups():
            if not group.free or not group.readers:
                continue
            factors = self._choose(group.tensors, group.readers, FREE)
            if factors is None:
                continue
            for node in group.writers:
                self._scale_outputs(node, 1.0 / factors)
            for node, index in group.addends:
                self._scale_constant(node, index, 1.0 / factors)
            for node in group.readers:
                self._scale_inputs(node, factors)
            done |= group.tensors
            changed += 1
        return changed + (self._explicit(done) if beside else 0)

    def _explicit(self, done: set[str]) -> int:
        """Mul beside layers, for tensors that share their scale with what can't adapt."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                readers.setdefault(name, []).append(node)
        layers = {node.name for node in self.layers}
        before: dict[str, list[onnx.NodeProto]] = {}
        after: dict[str, list[onnx.NodeProto]] = {}
        for node in self.layers:
            source, target = node.input[0], node.output[0]
            if source in before or source in done:
                pass
            elif source in self.watched and source not in self.surface and self._is_float(source, layers):
                users = [other for other in readers[source] if other.name in layers and other.input[0] == source]
                factors = self._choose({source}, users, PAID)
                if factors is not None:
                    name = f"{source}//even"
                    before[users[0].name] = [self._mul(source, name, 1.0 / factors, users[0])]
                    for user in users:
                        user.input[0] = name
                        self._scale_inputs(user, factors)
            users = readers.get(target, [])
            passes = any(u.name in layers or u.op_type in (*PASSING, "Clip", "Concat") for u in users)
            if node.op_type != "Conv" or target in done or target in self.surface or passes or not users:
                continue
            factors = self._choose({target}, [], PAID)
            if factors is not None:
                name = f"{target}//uneven"
                after[node.name] = [self._mul(target, name, factors, node)]
                self._scale_outputs(node, 1.0 / factors)
                for user in users:
                    for index, read in enumerate(user.input):
                        if read == target:
                            user.input[index] = name
        nodes = [
            part for node in self.graph.node for part in (*before.get(node.name, []), node, *after.get(node.name, []))
        ]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        return len(before) + len(after)

    def _is_float(self, name: str, layers: set[str]) -> bool:
        """Whether a tensor is made by float arithmetic: neither by a layer nor by what moves values."""
        made = next((node for node in self.graph.node if name in node.output), None)
        return made is not None and made.name not in layers and made.op_type not in (*PASSING, "Clip", "Concat")

    def _mul(self, source: str, target: str, factors: np.ndarray, node: onnx.NodeProto) -> onnx.NodeProto:
        term = f"{target}//factors"
        shape = [-1] + [1] * (len(self.shape[source]) - 2) if node.op_type == "Conv" else [-1]
        self._store(term, factors.reshape(shape))
        known = onnx.ValueInfoProto()
        known.CopyFrom(next(v for v in self.graph.value_info if v.name == source))
        known.name = target
        self.graph.value_info.append(known)
        return helper.make_node("Mul", [source, term], [target], target)

    # Which tensors belong together

    def _groups(self) -> list[Group]:
        parent: dict[str, str] = {}

        def find(name: str) -> str:
            while parent.setdefault(name, name) != name:
                name = parent[name]
            return name

        blocked, addends = set(self.surface), []
        layers = {node.name for node in self.layers}
        for node in self.graph.node:
            floats = [name for name in node.input if name in self.float and name not in self.constants]
            if node.name in layers:
                find(node.input[0])
                find(node.output[0])
            elif node.op_type in PASSING or (node.op_type == "Pad" and self._pads_zeros(node)):
                parent[find(node.output[0])] = find(node.input[0])
            elif node.op_type == "Add" and len(floats) == 2 and self._alike(*floats, node.output[0]):
                for name in floats:
                    parent[find(name)] = find(node.output[0])
            elif node.op_type in ("Add", "Mul") and len(floats) == 1 and self._constant(node) is not None:
                if node.op_type == "Add":
                    parent[find(floats[0])] = find(node.output[0])
                else:
                    blocked.add(floats[0])  # for the constant to take the factors of the output
                addends.append((node, 1 - list(node.input).index(floats[0])))
            else:
                blocked.update((*floats, *node.output))
        groups: dict[str, Group] = {}
        for name in parent:
            group = groups.setdefault(find(name), Group())
            group.tensors.add(name)
            group.free &= name not in blocked
        for node in self.layers:
            groups[find(node.output[0])].writers.append(node)
            groups[find(node.input[0])].readers.append(node)
        for node, index in addends:
            if node.output[0] in parent:
                groups[find(node.output[0])].addends.append((node, index))
        for name in blocked & parent.keys():
            groups[find(name)].free = False
        return [group for group in groups.values() if self._one_axis(group)]

    def _one_axis(self, group: Group) -> bool:
        axes = {(node.op_type == "Conv") for node in (*group.writers, *group.readers)}
        counts = {self.shape[name][1 if True in axes else -1] for name in group.tensors if self.shape.get(name)}
        return len(axes) == 1 and len(counts) == 1 and (True in axes or not group.addends)

    def _alike(self, *names: str) -> bool:
        return len({tuple(self.shape.get(name, ())) for name in names}) == 1

    def _pads_zeros(self, node: onnx.NodeProto) -> bool:
        pads = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        value = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        known = pads is not None and value is not None and len(node.input) < 4 and not np.any(value)
        return known and not pads[1] and not pads[1 + len(pads) // 2]

    def _constant(self, node: onnx.NodeProto) -> np.ndarray | None:
        """The constant term of a sum or product over channels of a 4-d tensor."""
        value = next((self.constants[name] for name in node.input if name in self.constants), None)
        shape = self.shape.get(node.output[0], [])
        if value is None or value.dtype != np.float32 or len(shape) != 4:
            return None
        padded = (1,) * (4 - value.ndim) + value.shape
        return value if padded in ((1, 1, 1, 1), (1, shape[1], 1, 1)) else None

    # How much to scale

    def _choose(self, tensors: set[str], readers: list[onnx.NodeProto], limit: float) -> np.ndarray | None:
        """What to divide each channel by, or None where that doesn't pay."""
        seen = [self.watched[name] for name in sorted(tensors & self.watched.keys())]
        if not seen or any(item.largest is None or not item.largest.max() > 0.0 for item in seen):
            return None
        largest = np.max([item.largest for item in seen], axis=0).astype(np.float64)
        if len(largest) < 2:
            return None
        even = np.maximum(largest, SPREAD * largest.max())
        even /= np.exp(np.log(even).mean())
        power = np.mean([item.power for item in seen], axis=0)
        rows = [self._rows(node) for node in readers]
        best, least = None, limit * noise(largest, power, rows, np.ones(len(largest)))
        for share in SHARES:
            factors = even**share
            found = noise(largest, power, rows, factors)
            if found < least:
                best, least = factors.astype(np.float32), found
        return best

    def _rows(self, node: onnx.NodeProto) -> tuple[np.ndarray, bool]:
        """Largest weight [outputs, channels] of a layer, and whether each output reads one channel only."""
        weight = self.constants[node.input[1]]
        if node.op_type == "Conv":
            groups = int(attribute(node, "group", 1))
            flat = np.abs(weight.reshape(len(weight), weight.shape[1], -1)).max(axis=2)
            if groups == 1:
                return flat, False
            full = np.zeros((len(weight), groups * weight.shape[1]), np.float32)
            for index in range(groups):
                rows = slice(index * len(weight) // groups, (index + 1) * len(weight) // groups)
                full[rows, index * weight.shape[1] : (index + 1) * weight.shape[1]] = flat[rows]
            return full, weight.shape[1] == 1
        by_rows = node.op_type == "Gemm" and attribute(node, "transB", 0)
        return np.abs(weight if by_rows else weight.T), False

    # Scaling

    def _store(self, name: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, np.float32)
        self.constants[name] = values
        self.graph.initializer.append(numpy_helper.from_array(values, name))

    def _change(self, node: onnx.NodeProto, index: int, values: np.ndarray) -> None:
        name = f"{node.input[index]}//{node.name}//{len(self.constants)}"
        self._store(name, values)
        node.input[index] = name

    def _scale_outputs(self, node: onnx.NodeProto, factors: np.ndarray) -> None:
        weight = self.constants[node.input[1]]
        by_rows = node.op_type == "Conv" or attribute(node, "transB", 0)
        self._change(node, 1, weight * factors.reshape(-1, *[1] * (weight.ndim - 1)) if by_rows else weight * factors)
        if len(node.input) > 2 and node.input[2]:
            self._change(node, 2, self.constants[node.input[2]] * factors)

    def _scale_inputs(self, node: onnx.NodeProto, factors: np.ndarray) -> None:
        weight = self.constants[node.input[1]]
        if node.op_type == "Conv":
            groups = int(attribute(node, "group", 1))
            parts = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
            scaled = (parts * factors.reshape(groups, 1, -1, 1)).reshape(weight.shape)
        else:
            by_rows = node.op_type == "Gemm" and attribute(node, "transB", 0)
            scaled = weight * (factors if by_rows else factors[:, None])
        self._change(node, 1, scaled)

    def _scale_constant(self, node: onnx.NodeProto, index: int, factors: np.ndarray) -> None:
        value = self.constants[node.input[index]].reshape(-1, 1, 1)
        self._change(node, index, (value * factors.reshape(-1, 1, 1))[None])


def noise(largest: np.ndarray, power: np.ndarray, rows: list[tuple[np.ndarray, bool]], factors: np.ndarray) -> float:
    """What rounding adds to the sums of the layers that read a tensor whose channels are divided by `factors`.

    Rounding an activation adds a step squared times the weight squared, rounding a weight its row's step squared times
    the activation squared. Without readers: what it adds to the channels themselves.
    """
    step = (largest / factors).max() / 255.0
    if not rows:
        return float(np.square(factors * step).sum())
    total = 0.0
    for weights, alone in rows:
        scaled = weights * factors
        total += np.square(scaled).sum() * step**2
        if not alone:
            steps = scaled.max(axis=1) / 127.0
            total += np.square(steps).sum() * (power / factors**2).sum()
    return float(total)

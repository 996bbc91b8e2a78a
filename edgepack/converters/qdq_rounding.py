"""Scales and rounding of a plan's weights that change its layers' sums least, from what the layers read."""

from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper
from onnx_session import attribute, feeds, session_of
from qdq_plan import Plan, Weight
from rounding import compensated, least_error

SAMPLES = 32
POSITIONS = 512  # of one sample at which a layer's inputs are looked at
INPUTS = 2400  # of one sum; where there are more, the covariance takes too long to invert

Key = tuple[str, int]


class Covariance:
    """Of what one layer's sums read, [groups, inputs, inputs], gathered sample by sample."""

    def __init__(self, groups: int, inputs: int) -> None:
        self.squares = np.zeros((groups, inputs, inputs))
        self.sums = np.zeros((groups, inputs))
        self.count = 0

    def add(self, values: np.ndarray) -> None:
        """`values` [positions, groups, inputs]"""
        by_group = values.transpose(1, 0, 2)
        self.squares += by_group.transpose(0, 2, 1) @ by_group
        self.sums += values.sum(axis=0, dtype=np.float64)
        self.count += len(values)

    def value(self) -> np.ndarray:
        """The covariance of what was seen: [groups, inputs, inputs]."""
        mean = self.sums / self.count
        return self.squares / self.count - mean[:, :, None] * mean[:, None, :]


def optimise(plan: Plan, samples: Path, scratch: Path, memory_mb: int) -> None:
    """Replace the weights of a plan, as many layers at a time as their covariances fit into the memory."""
    waiting: list[list[onnx.NodeProto]] = [[]]
    free = memory_mb << 20
    for node in plan.layers.values():
        groups, inputs = sums_of(plan, node)
        if node.op_type == "ConvTranspose" or not inputs:
            continue
        if inputs > INPUTS:
            store(plan, plan.weight_of[node.name], None, groups)
            continue
        size = 8 * groups * inputs * inputs
        if waiting[-1] and size > free:
            waiting.append([])
            free = memory_mb << 20
        waiting[-1].append(node)
        free -= size
    for nodes in waiting:
        found: dict[Key, Covariance] = {}
        for node, values in watched(plan, nodes, samples, scratch):
            key = plan.weight_of[node.name]
            found.setdefault(key, Covariance(*sums_of(plan, node))).add(values)
        for node in nodes:
            key = plan.weight_of[node.name]
            if key in found:
                covariance = found.pop(key)
                store(plan, key, covariance.value(), len(covariance.sums))


def sums_of(plan: Plan, node: onnx.NodeProto) -> tuple[int, int]:
    """Groups of a layer and inputs of each of its sums; nothing where its weights aren't constant."""
    if node.name not in plan.weight_of:
        return 0, 0
    name, axis = plan.weight_of[node.name]
    weight = plan.constants[name]
    groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    return groups, weight.size // weight.shape[axis]


def store(plan: Plan, key: Key, covariance: np.ndarray | None, groups: int) -> None:
    """Choose scales and integers of one weight anew."""
    name, axis = key
    exact = plan.constants[name]
    rows = np.moveaxis(exact, axis, 0)
    weight = rows.reshape(groups, len(rows) // groups, -1).astype(np.float64)
    factor = least_error(weight, covariance)
    if covariance is None:
        integers = np.clip(np.rint(weight * factor[:, :, None]), -127, 127).astype(np.int8)
    else:
        integers = compensated(weight, factor, covariance)
    shaped = np.moveaxis(integers.reshape(rows.shape), 0, axis)
    plan.weights[key] = Weight(np.ascontiguousarray(shaped), (1.0 / factor.reshape(-1)).astype(np.float32), axis)


def watched(plan: Plan, nodes: list[onnx.NodeProto], samples: Path, scratch: Path):
    """Each layer with what its sums read, sample after sample: [positions, groups, inputs]."""
    asked = sorted({node.input[0] for node in nodes} - set(plan.inputs))
    copy = onnx.ModelProto()
    copy.CopyFrom(plan.model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in plan.outputs)
    onnx.save(copy, scratch / "watched.onnx")
    session = session_of(scratch / "watched.onnx", "ORT_ENABLE_ALL")
    for feed, _ in zip(feeds(session, samples), range(SAMPLES), strict=False):
        values = {**feed, **dict(zip(asked, session.run(asked, feed), strict=True))}
        for node in nodes:
            read = patches(node, values[node.input[0]], plan.constants[node.input[1]].shape)
            if read is not None:
                yield node, read


def patches(node: onnx.NodeProto, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """What the sums of a layer read at some positions of one sample, [positions, groups, inputs]."""
    if node.op_type != "Conv":
        flat = values.reshape(-1, 1, values.shape[-1])
        return flat[:: -(-len(flat) // POSITIONS)]
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    rank = values.ndim - 2
    pads = given.get("pads", [0] * 2 * rank)
    sides = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    dilations, strides = given.get("dilations", [1] * rank), given.get("strides", [1] * rank)
    reach = [(size - 1) * step + 1 for size, step in zip(shape[2:], dilations, strict=True)]
    windows = sliding_window_view(np.pad(values, sides), reach, axis=tuple(range(2, values.ndim)))
    every = (slice(None),) * 2
    windows = windows[(*every, *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))]
    places = windows.shape[2 : 2 + rank]
    count = int(np.prod(places))
    step = -(-count * len(values) // POSITIONS)
    chosen = np.unravel_index(np.arange(0, count, step), places)
    picked = windows[(*every, *chosen)]  # [samples, channels, positions, *kernel]
    picked = np.moveaxis(picked, 2, 1).reshape(-1, int(given.get("group", 1)), shape[1] * int(np.prod(shape[2:])))
    return np.ascontiguousarray(picked)

"""Scales and rounding of a plan's weights that change its layers' sums least, from what the layers read."""

from pathlib import Path

import numpy as np
import onnx
from covariance import INPUTS, Covariance, patches, rows_of
from onnx import helper
from onnx_session import attribute, feeds, session_of
from qdq_plan import Plan, Weight
from rounding import compensated, least_error

SAMPLES = 32

Key = tuple[str, int]


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
            read = read_by(node, values[node.input[0]], plan.constants[node.input[1]].shape)
            if read is not None:
                yield node, read


def read_by(node: onnx.NodeProto, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """What the sums of a layer read at some positions of one sample, [positions, groups, inputs]."""
    if node.op_type != "Conv":
        return rows_of(values)
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    rank = values.ndim - 2
    pads = given.get("pads", [0] * 2 * rank)
    sides = list(zip(pads[:rank], pads[rank:], strict=True))
    strides, dilations = given.get("strides", [1] * rank), given.get("dilations", [1] * rank)
    return patches(values, int(given.get("group", 1)), list(shape[2:]), strides, dilations, sides)

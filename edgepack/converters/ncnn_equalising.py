"""Even out the channels of an ncnn model's blobs, so that one scale for all of them costs little.

A channel of a blob can be divided by any positive number if what reads it multiplies by that again: the weights of the
layers around take such factors, for nothing on the device (cross-layer equalisation, Nagel et al. 2019,
arXiv:1906.04721, section 4.1, chosen by the activations' ranges as in SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).
ReLU and PReLU, pooling, padding and sums let them pass. In int8 it is the blobs, not the weights (which have a scale
per channel), that make nearly all of the error. The model in float computes the same as before.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from ncnn_files import Block, Layer, finite, raw, tagged
from ncnn_plan import Plan, channels, groups, weighted
from ncnn_watch import Blob

PASSING = ("Split", "ReLU", "PReLU", "Pooling", "Padding", "Dropout", "Noop")
SUMS = (0, 1)  # operations of BinaryOp: a + b and a - b
HOMOGENEOUS = (0, 1, 2)  # fused activations: none, ReLU, leaky ReLU
LOWEST = -1e30  # what pads a maximum pooling
SPREAD = 1 / 32  # of the largest channel; channels below it are treated as if they had that


@dataclass
class Group:
    """Blobs whose channels must be scaled alike: which layers write and read them, and whether all can adapt."""

    blobs: set[str] = field(default_factory=set)
    writers: list[int] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)
    free: bool = True


def find(plan: Plan) -> list[Group]:
    """The groups that can be scaled. Where a Padding adds channels, a blob has the first of its group's."""
    of: dict[str, Group] = {}
    width: dict[str, int] = {}

    def join(names: Collection[str]) -> Group:
        found = Group()
        for each in {id(of[name]): of[name] for name in names}.values():
            found.blobs |= each.blobs
            found.writers += each.writers
            found.readers += each.readers
            found.free &= each.free
        of.update(dict.fromkeys(found.blobs, found))
        return found

    for index, layer in enumerate(plan.layers):
        for top in layer.tops:
            of[top] = Group({top}, free=False)
        before = {width.get(name, 0) for name in layer.bottoms}
        if weighted(layer) and len(layer.bottoms) == 1:
            reads, writes = of[layer.bottoms[0]], of[layer.tops[0]]
            reads.readers.append(index)
            size = max(before)
            reads.free &= bool(size) and channels(layer) % size == 0 and not float(layer.params.get("18", "0"))
            reads.free &= channels(layer) == size or layer.type == "InnerProduct"
            writes.writers.append(index)
            writes.free = layer.int(9) in HOMOGENEOUS
            width[layer.tops[0]] = layer.int(0)
        elif passes(layer) and len(before) == 1:
            more = layer.int(8) if layer.type == "Padding" else 0
            width.update(dict.fromkeys(layer.tops, max(before) + more))
            for top in layer.tops:
                of[top].free = True
            join([*layer.bottoms, *layer.tops])
        else:
            for name in layer.bottoms:
                of[name].free = False
    for name in plan.outputs:
        of[name].free = False
    return [group for group in {id(g): g for g in of.values()}.values() if group.free and group.readers]


def passes(layer: Layer) -> bool:
    """Whether a layer gives its channels multiplied by what they were multiplied by."""
    if layer.type == "BinaryOp":
        return len(layer.bottoms) == 2 and layer.int(0) in SUMS
    if layer.type == "Padding":
        value = float(layer.params.get("5", "0"))
        return (value == 0.0 or value < LOWEST) and not layer.int(6) and not layer.int(7)
    return layer.type in PASSING


def factors(plan: Plan, group: Group, blobs: dict[str, Blob], share: float) -> np.ndarray | None:
    """What to divide each channel of a group by, float32; None where no quantized layer reads it."""
    width = max(plan.layers[index].int(0) for index in group.writers)
    sizes = [channels(plan.layers[i]) for i in group.readers if plan.layers[i].type != "InnerProduct"]
    largest = np.zeros(max([width, *sizes]))
    for name in sorted(group.blobs & blobs.keys()):
        for cut, peaks in sorted(blobs[name].peaks.items()):
            if cut > len(largest):
                peaks = peaks.reshape(len(largest), -1).max(axis=1)  # a fully connected layer that flattens
            largest[: len(peaks)] = np.maximum(largest[: len(peaks)], peaks)
    if not largest.max() > 0.0:
        return None
    return np.maximum(largest / largest.max(), SPREAD).astype(np.float32) ** np.float32(share)


def equalise(
    plan: Plan, blocks: list[list[Block]], weights: np.ndarray, blobs: dict[str, Blob], share: float
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """The .bin's bytes with evened channels, uint8, and what each channel of which blob was divided by.

    `share` of the unevenness, 0 to 1, goes to the weights. Blocks stay where they are.
    """
    made = np.array(weights)
    divided: dict[str, list[float]] = {}
    for group in find(plan):
        indices = {*group.writers, *group.readers}
        if any(blocks[i][0].end - blocks[i][0].start != 4 * blocks[i][0].count + 4 for i in indices):
            continue  # float16
        by = factors(plan, group, blobs, share)
        if by is None:
            continue
        divided.update(dict.fromkeys(sorted(group.blobs), by.tolist()))
        for index in group.writers:
            layer, own = plan.layers[index], blocks[index]
            outputs = by[: layer.int(0)]
            put(made, own[0], finite(layer, own[0], made).reshape(layer.int(0), -1) / outputs[:, None])
            if len(own) > 1:
                put(made, own[1], finite(layer, own[1], made) / outputs)
        for index in group.readers:
            layer, own = plan.layers[index], blocks[index]
            parts, inputs = groups(layer), channels(layer)
            read = by[:inputs] if len(by) >= inputs else np.repeat(by, inputs // len(by))
            matrix = finite(layer, own[0], made).reshape(parts, layer.int(0) // parts, inputs // parts, -1)
            put(made, own[0], matrix * read.reshape(parts, 1, -1, 1))
    return made, divided


def put(weights: np.ndarray, block: Block, values: np.ndarray) -> None:
    """Write a block's numbers in place."""
    data = tagged(raw(values), 0) if block.tagged else raw(values)
    weights[block.start : block.end] = np.frombuffer(data, np.uint8)

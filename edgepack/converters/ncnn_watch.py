"""What an ncnn model computes on the calibration samples: ranges, means and covariances, in constant memory.

ncnn and numpy run on one thread whatever the machine has: how work is split changes the order of sums, and the same
data must give the same bytes everywhere.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from activations import Seen, rows
from ncnn_files import Layer
from ncnn_plan import Plan, channels, geometry, groups, points

POSITIONS = 128  # of one sample at which a layer's sums are watched
SHRINK = 4.0  # positions per input at which a covariance is half believed


@dataclass
class Blob:
    """What is known about the values of one blob."""

    seen: Seen
    sums: dict[int, np.ndarray] = field(default_factory=dict)  # per way to cut it into channels: sum of the means
    peaks: dict[int, np.ndarray] = field(default_factory=dict)  # the same of the largest magnitudes
    count: int = 0
    shape: tuple[int, ...] = ()
    ends: np.ndarray = field(default_factory=lambda: np.zeros(2))  # sums of each sample's lowest and highest value

    def add(self, values: np.ndarray, cuts: set[int]) -> None:
        """Take in one sample's values, and the means and peaks of its channels."""
        self.seen.add(values)
        self.count, self.shape = self.count + 1, values.shape
        self.ends += (values.min(initial=0.0), values.max(initial=0.0))
        for cut in cuts:
            flat = by_channel(values, cut)
            if flat is not None:
                self.sums[cut] = self.sums.get(cut, 0.0) + flat.mean(axis=1, dtype=np.float64)
                self.peaks[cut] = self.peaks.get(cut, 0.0) + np.abs(flat).max(axis=1)

    def mean(self, channels: int) -> np.ndarray | None:
        """The mean of each channel over all samples; None when the blob has no such channels."""
        return self.sums[channels] / self.count if channels in self.sums else None


def by_channel(values: np.ndarray, cut: int) -> np.ndarray | None:
    """A blob as [channels, values], or None when it has no such channels."""
    if values.ndim == 3 and len(values) == cut:
        return values.reshape(cut, -1)  # [channels, height, width]
    if values.ndim < 3 and values.size % cut == 0:
        return values.reshape(-1, cut).T  # [rows, features]
    return values.reshape(cut, 1) if values.size == cut else None  # a fully connected layer that flattens


class Network:
    """A model loaded in ncnn, float32 arithmetic wherever it isn't int8."""

    def __init__(self, files: list[str], inputs: list[str]) -> None:
        os.environ["OMP_WAIT_POLICY"] = "passive"  # spinning beside other work made this five times slower
        import ncnn

        self.ncnn, self.net, self.inputs = ncnn, ncnn.Net(), inputs
        opt = self.net.opt
        opt.num_threads, opt.lightmode, opt.use_vulkan_compute = 1, False, False
        opt.use_bf16_packed = opt.use_bf16_storage = False
        opt.use_fp16_packed = opt.use_fp16_storage = opt.use_fp16_arithmetic = False
        if self.net.load_param(files[0]) != 0 or self.net.load_model(files[1]) != 0:
            raise SystemExit("cannot be loaded by ncnn: see the lines above")

    def run(self, arrays: list[np.ndarray], blobs: list[str], *, keep: bool) -> Iterator[tuple[str, np.ndarray]]:
        """The blobs of one sample, each only until the next is asked for. `keep`: many; one run gives them all."""
        extractor = self.net.create_extractor()
        extractor.set_light_mode(not keep)
        held = [self.ncnn.Mat(array) for array in arrays]  # a Mat borrows the array's memory
        for name, mat in zip(self.inputs, held, strict=True):
            extractor.input(name, mat.clone())
        for name in blobs:
            code, mat = extractor.extract(name)
            if code != 0:
                raise SystemExit(f"cannot be run by ncnn: the blob {name} is not computed (code {code})")
            yield name, mat.numpy()


def samples(request: dict) -> Iterator[list[np.ndarray]]:
    """The inputs of each calibration sample, in ncnn's shapes."""
    files = [Path(request["samples"], f"{i}.npy") for i in range(len(request["inputs"]))]
    for values in zip(*map(rows, files), strict=True):
        yield list(values)


def watch(request: dict, plan: Plan) -> dict[str, Blob]:
    """Run the float model on every sample and gather what is needed to know about the blobs that become integers."""
    cuts: dict[str, set[int]] = {}
    for index, name in plan.wanted.items():
        cuts.setdefault(name, set()).add(channels(plan.layers[index]))
    blobs = {name: Blob(Seen(f"the blob {name}", None)) for name in cuts}
    if blobs:
        network = Network(request["files"], request["inputs"])
        for arrays in samples(request):
            for name, values in network.run(arrays, list(blobs), keep=True):
                blobs[name].add(values, cuts[name])
    return blobs


@dataclass
class Moments:
    """Sums over what a layer reads at its positions: of the values [groups, inputs] and of their products.

    Values are taken from the first sample's mean, so that large ones with little variance lose no digits.
    """

    groups: int
    inputs: int
    count: int = 0

    def __post_init__(self) -> None:
        self.origin = np.zeros((self.groups, self.inputs), np.float32)
        self.first = np.zeros((self.groups, self.inputs))
        self.second = np.zeros((self.groups, self.inputs, self.inputs))

    def add(self, patches: np.ndarray) -> None:
        """Take in patches [groups, positions, inputs]."""
        if not self.count:
            self.origin = patches.mean(axis=1, dtype=np.float64).astype(np.float32)
        self.count += patches.shape[1]
        patches = patches - self.origin[:, None, :]
        self.first += patches.sum(axis=1, dtype=np.float64)
        self.second += np.swapaxes(patches, 1, 2) @ patches

    def mean(self) -> np.ndarray:
        """Of the inputs, [groups, inputs]."""
        return self.origin + self.first / self.count

    def covariance(self) -> np.ndarray:
        """Of the inputs, [groups, inputs, inputs]; shrunk to its diagonal the more, the fewer positions were seen.

        What few samples say of so many pairs is chance: rounding by it is better on them and worse elsewhere.
        """
        mean = self.first / self.count
        found = self.second / self.count - mean[:, :, None] * mean[:, None, :]
        trust = self.count / (self.count + SHRINK * self.inputs)
        return trust * found + (1.0 - trust) * found * np.eye(self.inputs)


def moments(request: dict, plan: Plan, memory: int) -> Iterator[dict[int, Moments]]:
    """Mean and covariance of what each quantized layer's sums read, for some layers at a time.

    No more than `memory` bytes are held at once; a layer that needs more alone is left out.
    """
    batch: list[int] = []
    used = 0
    for index in plan.wanted:
        need = size(plan.layers[index])
        if need > memory:
            continue
        if used + need > memory:
            yield _moments(request, plan, batch)
            batch, used = [], 0
        batch.append(index)
        used += need
    if batch:
        yield _moments(request, plan, batch)


def size(layer: Layer) -> int:
    """Bytes of a layer's covariance."""
    inputs = channels(layer) // groups(layer) * points(layer)
    return 8 * groups(layer) * inputs * inputs


def _moments(request: dict, plan: Plan, batch: list[int]) -> dict[int, Moments]:
    by_blob: dict[str, list[int]] = {}
    found = {}
    for index in batch:
        layer = plan.layers[index]
        by_blob.setdefault(plan.wanted[index], []).append(index)
        found[index] = Moments(groups(layer), channels(layer) // groups(layer) * points(layer))
    network = Network(request["files"], request["inputs"])
    for sample, arrays in enumerate(samples(request)):
        for name, values in network.run(arrays, list(by_blob), keep=True):
            for index in by_blob[name]:
                found[index].add(patches(plan.layers[index], values, sample))
    return found


def patches(layer: Layer, values: np.ndarray, sample: int) -> np.ndarray:
    """What a layer reads at some of its positions, float32 [groups, positions, inputs].

    The positions lie evenly over the whole output, and elsewhere in each sample.
    """
    if layer.type == "InnerProduct":
        flat = values.reshape(1, -1, channels(layer))
        return flat[:, _some(flat.shape[1], sample)]
    values = values.reshape(channels(layer), *(values.shape[1:] if values.ndim == 3 else (1, 1)))
    spots = []
    for axis in (1, 2):
        extent, stride, before, after = geometry(layer, values.shape[axis], axis)
        spots.append(((values.shape[axis] + before + after - extent) // stride + 1, stride, before, after))
    (height, down, top, bottom), (width, across, left, right) = spots
    padded = np.pad(values, ((0, 0), (top, bottom), (left, right)))
    chosen = _some(height * width, sample)
    kernel_w, dilation_w = layer.int(1), layer.int(2, 1)
    kernel_h, dilation_h = layer.int(11, kernel_w), layer.int(12, dilation_w)
    rows = (chosen // width * down)[:, None] + np.repeat(np.arange(kernel_h), kernel_w)[None, :] * dilation_h
    columns = (chosen % width * across)[:, None] + np.tile(np.arange(kernel_w), kernel_h)[None, :] * dilation_w
    found = padded[:, rows, columns]  # [channels, positions, points]
    parts = found.reshape(groups(layer), -1, *found.shape[1:])
    return np.ascontiguousarray(parts.transpose(0, 2, 1, 3)).reshape(groups(layer), len(chosen), -1)


def _some(count: int, sample: int) -> np.ndarray:
    """Indices of at most POSITIONS of `count` positions."""
    if count <= POSITIONS:
        return np.arange(count)
    step = count / POSITIONS
    offset = math.modf(sample * 0.6180339887)[0]  # multiples of the golden ratio fall evenly into [0, 1)
    return ((np.arange(POSITIONS) + offset) * step).astype(np.int64)

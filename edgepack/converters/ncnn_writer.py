"""Write ncnn's files from an ONNX graph, layer by layer: the ground on which the operators' forms (write_*.py) stand.

A blob holds a tensor's numbers in ONNX's own order (C order), in up to four axes of ncnn (c, d, h, w). A form asks for
its inputs in the shape that its layer wants (`Writer.view` adds a Reshape where they are held otherwise), so nothing
guesses which axis is the batch. Numbers that ONNX holds as integers or bools are float32 here, exact up to 2**24.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx
from ncnn_files import ARRAY, Layer, raw, tagged, write_param
from ncnn_fuse import fused
from onnx_graph import Graph, attribute

Shape = tuple[int, ...]
LARGEST = float(np.finfo(np.float32).max)
MASKED = -3e4  # stands for -inf before a softmax: exp of it is 0 in float32, and float16 can hold it
_CARRY = ("Add", "Where", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Slice", "Concat", "Identity")


class Refused(Exception):
    """A form that ncnn doesn't have, as half a sentence."""


@dataclass(frozen=True)
class Blob:
    """One of ncnn's blobs; `shape` is its one to four axes, outermost first."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Node:
    """An ONNX node as the forms see it."""

    proto: onnx.NodeProto

    @property
    def inputs(self) -> list[str]:
        """Its inputs' names; empty for those that aren't given."""
        return list(self.proto.input)

    @property
    def output(self) -> str:
        """Its first output's name."""
        return self.proto.output[0]

    def input(self, index: int) -> str:
        """An input's name; empty when it isn't given."""
        return self.proto.input[index] if index < len(self.proto.input) else ""

    def get(self, name: str, default: object = None) -> object:
        """An attribute; text as str."""
        found = attribute(self.proto, name, default)
        return found.decode() if isinstance(found, bytes) else found


class Writer:
    """Layers and weights as they are written, and the blob of every ONNX tensor so far."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.layers: list[Layer] = []
        self.weights: list[bytes] = []
        self.blobs: dict[str, Blob] = {}
        self._views: dict[tuple[str, Shape], Blob] = {}
        self._count = 0

    # What is known of ONNX's tensors ---------------------------------------------------------------------------

    def shape(self, name: str) -> Shape:
        """A tensor's sizes. Raises `Refused` where one is open or zero."""
        sizes = self.graph.shapes.get(name)
        if sizes is None or 0 in sizes:
            raise Refused("the sizes of its tensors aren't fixed, or a tensor is empty")
        return tuple(sizes)

    def constant(self, name: str) -> np.ndarray | None:
        """A tensor's numbers; None when they are computed."""
        return self.graph.constants.get(name)

    def known(self, node: Node, index: int, what: str) -> np.ndarray | None:
        """A constant input; None when it isn't given. Raises `Refused` when it is computed."""
        name = node.input(index)
        if not name:
            return None
        found = self.constant(name)
        if found is None:
            raise Refused(f"its {what} must be constant")
        return found

    def whole(self, name: str) -> bool:
        """Whether a tensor holds integers."""
        whole = (1, 10, 11, 16)  # the float types
        return self.graph.types.get(name) not in whole

    # Blobs -----------------------------------------------------------------------------------------------------

    def blob(self, name: str) -> Blob:
        """The blob of a tensor, as it is held."""
        if name not in self.blobs:
            array = self.constant(name)
            if array is None:
                raise Refused(f"nothing gives its input {name!r}")
            self.blobs[name] = self.memory(self.finite(name, array).reshape(natural(array.shape)))
        return self.blobs[name]

    def take(self, name: str, shape: Shape | None = None) -> Blob:
        """The blob of a tensor in a shape (default: ncnn's natural one)."""
        shape = natural(self.shape(name)) if shape is None else shape
        array = self.constant(name)
        if array is not None and name not in self.blobs and array.size == math.prod(shape):
            return self.memory(self.finite(name, array).reshape(shape))
        return self.view(self.blob(name), shape)

    def finite(self, name: str, array: np.ndarray) -> np.ndarray:
        """A constant as finite float32: ncnn is compiled with -ffast-math, which has no infinities."""
        if array.dtype.kind not in "fiub":
            raise Refused(f"a constant is of type {array.dtype}")
        if array.dtype.kind == "f" and (np.abs(array) > LARGEST / 2).any():
            if np.isnan(array).any():
                raise Refused("a constant is NaN")
            low = MASKED if self._masks(name) else -LARGEST
            return np.clip(array, low, LARGEST).astype(np.float32)
        return array.astype(np.float32)

    def _masks(self, name: str) -> bool:
        """Whether a tensor reaches nothing but softmaxes, by sums, choices and moves."""
        for reader in self.graph.readers(name):
            if reader.op_type not in (*_CARRY, "Softmax"):
                return False
            if reader.op_type != "Softmax" and not self._masks(reader.output[0]):
                return False
        return name not in self.graph.surface

    def memory(self, array: np.ndarray) -> Blob:
        """A constant as a blob, of the array's shape (one to four axes)."""
        return self.layer("MemoryData", [], array.shape, _sizes(array.shape), raw(array))

    def view(self, blob: Blob, shape: Shape) -> Blob:
        """The same numbers in another shape."""
        shape = tuple(shape) or (1,)
        if math.prod(shape) != math.prod(blob.shape) or len(shape) > 4:
            raise Refused(f"{blob.shape} can't become {shape}")
        if shape == blob.shape:
            return blob
        key = (blob.name, shape)
        if key not in self._views:
            self._views[key] = self.layer("Reshape", [blob], shape, _sizes(shape))
        return self._views[key]

    def layer(
        self, kind: str, bottoms: list[Blob], shape: Shape, params: dict[int, object] | None = None, *weights: bytes
    ) -> Blob:
        """A new layer with one result."""
        return self.many(kind, bottoms, [shape], params, *weights)[0]

    def many(
        self,
        kind: str,
        bottoms: list[Blob],
        shapes: list[Shape],
        params: dict[int, object] | None = None,
        *weights: bytes,
    ) -> list[Blob]:
        """A new layer with several results of the given shapes. An array parameter is a list."""
        tops = []
        for shape in shapes:
            self._count += 1
            tops.append(Blob(f"b{self._count}", tuple(int(size) for size in shape)))
        words = dict(_word(key, value) for key, value in (params or {}).items())
        names = [blob.name for blob in bottoms]
        self.layers.append(Layer(kind, f"n{len(self.layers)}", names, [blob.name for blob in tops], words))
        self.weights += weights
        return tops

    def give(self, name: str, blob: Blob) -> None:
        """Say which blob holds an ONNX tensor."""
        if name:
            if math.prod(self.shape(name)) != math.prod(blob.shape):
                raise Refused(f"{name!r} would come out as {blob.shape} instead of {self.shape(name)}")
            self.blobs[name] = blob

    def keep(self, name: str, blob: Blob, shape: Shape) -> str:
        """Name a blob that isn't ONNX's, for forms that take tensors by name and shape. Returns the name."""
        self.graph.shapes[name] = list(shape)
        self.give(name, blob)
        return name

    # Small layers that many forms use ----------------------------------------------------------------------------

    def unary(self, op: int, a: Blob) -> Blob:
        """A UnaryOp by its number."""
        return self.layer("UnaryOp", [a], a.shape, {0: op})

    def scalar(self, op: int, a: Blob, number: float) -> Blob:
        """A binary operation whose second operand is a number."""
        return self.layer("BinaryOp", [a], a.shape, {0: op, 1: 1, 2: float(number)})

    def binary(self, op: int, a: Blob, b: Blob) -> Blob:
        """A binary operation of two blobs with equally many axes, broadcast as numpy does."""
        shape = tuple(max(m, n) for m, n in zip(a.shape, b.shape, strict=True))
        return self.layer("BinaryOp", [a, b], shape, {0: op})

    # The files ---------------------------------------------------------------------------------------------------

    def finish(self, inputs: list[Blob], outputs: list[str]) -> tuple[str, bytes]:
        """The .param and the .bin. Inputs become in0..., outputs out0...; a blob with several readers is split."""
        for index, name in enumerate(outputs):
            held = self.blob(name)
            self.layers.append(Layer("Noop", f"out{index}", [held.name], [f"out{index}"], {}))
        self._shorten(len(outputs), {blob.name for blob in inputs})
        self.layers = fused(self.layers)
        names = {blob.name: f"in{index}" for index, blob in enumerate(inputs)}
        for layer in self.layers:
            layer.bottoms = [names.get(name, name) for name in layer.bottoms]
            layer.tops = [names.get(name, name) for name in layer.tops]
        return write_param(_split(self.layers)), b"".join(self.weights)

    def _shorten(self, count: int, inputs: set[str]) -> None:
        """Give a layer's result an output's name, where the output alone reads it."""
        body, ends = self.layers[:-count], self.layers[-count:]
        kept = []
        for end in ends:
            name = end.bottoms[0]
            readers = sum(layer.bottoms.count(name) for layer in self.layers)
            if readers > 1 or name in inputs:
                kept.append(end)
                continue
            maker = next(layer for layer in body if name in layer.tops)
            maker.tops = [end.tops[0] if top == name else top for top in maker.tops]
        self.layers = [*body, *kept]


def natural(shape: Shape) -> Shape:
    """The shape in which ncnn holds a tensor: without a first axis of 1 (the batch), of at most four axes."""
    sizes = list(shape)
    if len(sizes) > 1 and sizes[0] == 1:
        sizes = sizes[1:]
    while len(sizes) > 4 and 1 in sizes:
        sizes.remove(1)
    while len(sizes) > 4:
        sizes[:2] = [sizes[0] * sizes[1]]
    return tuple(sizes) or (1,)


def along(shape: Shape, axis: int) -> tuple[Shape, int]:
    """A shape of at most four axes in which one axis of a tensor is still an axis, and which one."""
    axis %= max(len(shape), 1)
    if not shape:
        return (1,), 0
    if len(shape) <= 4 and not (shape[0] == 1 and len(shape) > 1):
        return tuple(shape), axis
    if shape[0] == 1 and 1 < len(shape) <= 5 and axis > 0:
        return tuple(shape[1:]), axis - 1
    return (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])), 1


def _sizes(shape: Shape) -> dict[int, object]:
    keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(shape)]
    return dict(sorted(zip(keys, shape, strict=True)))


def _word(key: int, value: object) -> tuple[str, str]:
    if isinstance(value, list | tuple):
        return str(ARRAY - key), ",".join([str(len(value)), *map(_number, value)])
    return str(key), _number(value)


def _number(value: object) -> str:
    return f"{value:.9e}" if isinstance(value, float | np.floating) else str(int(value))


def weight(array: np.ndarray) -> bytes:
    """Weights with the tag that says float32."""
    return tagged(raw(array), 0)


def _split(layers: list[Layer]) -> list[Layer]:
    """The layers with a Split behind every blob that more than one of them reads."""
    readers: dict[str, int] = {}
    for layer in layers:
        for name in layer.bottoms:
            readers[name] = readers.get(name, 0) + 1
    copies: dict[str, list[str]] = {}
    found = []
    for layer in layers:
        layer.bottoms = [copies[name].pop(0) if name in copies else name for name in layer.bottoms]
        found.append(layer)
        for top in layer.tops:
            if readers.get(top, 0) > 1:
                copies[top] = [f"{top}_{i}" for i in range(readers[top])]
                found.append(Layer("Split", f"split_{top}", [top], list(copies[top]), {}))
    return found

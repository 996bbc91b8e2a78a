"""Which of an ncnn model's layers become integers, and which blobs between them."""

from collections.abc import Collection
from dataclasses import dataclass

from ncnn_files import ARRAY, QUANTIZABLE, Layer

NOTHING, RELU, CLIP = 0, 1, 3  # activations that end where the integers may end
TABLE = 1024  # values; a smaller table isn't worth it
ONES = ("Split",)  # its tops are copies of its bottom


@dataclass
class Reader:
    """Who reads a blob, through Split layers: indices of layers, and whether the caller gets it too."""

    layers: list[int]
    output: bool


class Plan:
    """What becomes integers, whatever the ranges turn out to be. `kept` are names of layers that stay in float."""

    def __init__(self, layers: list[Layer], kept: Collection[str]) -> None:
        self.layers, self.kept = layers, frozenset(kept)
        self.producers = {top: index for index, layer in enumerate(layers) for top in layer.tops}
        free = [(i, layer) for i, layer in enumerate(layers) if layer.name not in kept]
        self.wanted = {i: self.origin(layer.bottoms[0]) for i, layer in free if quantizable(layer)}
        self.dynamic = [i for i, layer in free if dynamic(layer)]
        read = {name for layer in layers for name in layer.bottoms}
        self.outputs = [top for layer in layers for top in layer.tops if top not in read]
        self.readers = {name: self._readers(name) for name in {*self.wanted.values()}}
        self.judged = dict(map(self._before_softmax, self.outputs))

    def origin(self, blob: str) -> str:
        """The blob that Split layers copied."""
        while (producer := self.layers[self.producers[blob]]).type in ONES:
            blob = producer.bottoms[0]
        return blob

    def _before_softmax(self, blob: str) -> tuple[str, int | None]:
        """Where an output's errors are measured, and the axis along which a constant makes no difference.

        Most of what a Softmax gives lies at 0 or 1 and shows no error at all, so a few samples that the model is
        unsure of would decide alone.
        """
        layer = self.layers[self.producers[blob]]
        return (layer.bottoms[0], layer.int(0)) if layer.type == "Softmax" else (blob, None)

    def _readers(self, blob: str) -> Reader:
        copies, found = {blob}, []
        for index, layer in enumerate(self.layers):
            if copies & set(layer.bottoms):
                if layer.type in ONES:
                    copies |= set(layer.tops)
                else:
                    found.append(index)
        return Reader(found, bool(copies & set(self.outputs)))

    def private(self, blob: str) -> bool:
        """Whether only quantized layers read a blob."""
        reader = self.readers.get(blob)
        return reader is not None and not reader.output and all(i in self.wanted for i in reader.layers)

    def chained(self, index: int) -> str | None:
        """The blob that a convolution may hand on as int8: all who read it are quantized convolutions."""
        blob = self.layers[index].tops[0]
        if self.layers[index].type == "InnerProduct" or not self.private(blob):
            return None
        fully = any(self.layers[i].type == "InnerProduct" for i in self.readers[blob].layers)
        return None if fully else blob

    def shiftable(self, blob: str) -> bool:
        """Whether a blob's integers may have a zero point of their own, although ncnn's INT8 has none.

        Then its producer gives values less a constant (its bias does that), its readers have the constant's part
        in their bias, and pad with the integer that stands for zero. The integers' limits do a ReLU's or Clip's work.
        """
        producer = self.layers[self.producers[blob]]
        if not weighted(producer) or not self.private(blob) or activation(producer) is None:
            return False
        return self._pads_zero(blob)

    def liftable(self, blob: str) -> bool:
        """Whether a layer of its own could shift a blob before each quantized layer that reads it."""
        producer = self.producers[blob]
        handed_on = producer in self.wanted and self.chained(producer) is not None
        return not handed_on and not self.shiftable(blob) and self._pads_zero(blob)

    def _pads_zero(self, blob: str) -> bool:
        return all(not float(self.layers[i].params.get("18", "0")) for i in self.readers[blob].layers)


def weighted(layer: Layer) -> bool:
    """Whether this is a convolution or fully connected layer with constant weights."""
    return layer.type in QUANTIZABLE and not (layer.type != "InnerProduct" and layer.int(19))


def quantizable(layer: Layer) -> bool:
    """Whether ncnn has this layer with ranges measured beforehand."""
    return weighted(layer) and len(layer.bottoms) == 1


def dynamic(layer: Layer) -> bool:
    """Whether ncnn has this layer in int8 with inputs that it measures as it runs, or a table that may be int8."""
    if layer.type == "Embed":
        return layer.int(3) >= TABLE
    if layer.type == "Gemm":
        return bool(layer.int(5)) and not layer.int(4)
    return layer.type == "MultiHeadAttention" and not layer.int(7)


def activation(layer: Layer) -> tuple[float, float] | None:
    """The limits that a fused activation sets, or None for one that is more than limits."""
    kind = layer.int(9)
    if kind == CLIP:
        low, high = layer.params[str(ARRAY - 10)].split(",")[1:3]
        return float(low), float(high)
    return {NOTHING: (-float("inf"), float("inf")), RELU: (0.0, float("inf"))}.get(kind)


def groups(layer: Layer) -> int:
    """Into how many parts a layer's inputs and outputs fall."""
    return layer.int(7, 1) if layer.type == "ConvolutionDepthWise" else 1


def channels(layer: Layer) -> int:
    """How many input channels (or features) a quantizable layer has."""
    if layer.type == "InnerProduct":
        return layer.int(2) // layer.int(0)
    return layer.int(6) // layer.int(0) // points(layer) * groups(layer)


def points(layer: Layer) -> int:
    """How many points a layer's kernel has."""
    return 1 if layer.type == "InnerProduct" else layer.int(1) * layer.int(11, layer.int(1))


def products(layer: Layer, shape: tuple[int, ...]) -> int:
    """Multiplications for one sample whose input blob has `shape` ([channels, height, width], [rows, features])."""
    count = layer.int(2 if layer.type == "InnerProduct" else 6)
    if layer.type == "InnerProduct":
        return count * (shape[0] if len(shape) == 2 and shape[1] == channels(layer) else 1)
    sides = [output_size(layer, shape[axis - 3], axis) for axis in (1, 2)] if len(shape) == 3 else [1]
    return count * max(1, sides[0]) * max(1, sides[-1])


def output_size(layer: Layer, size: int, axis: int) -> int:
    """How many positions a convolution has along an axis (1 height, 2 width) of `size`."""
    extent, stride, before, after = geometry(layer, size, axis)
    return (size + before + after - extent) // stride + 1


def geometry(layer: Layer, size: int, axis: int) -> tuple[int, int, int, int]:
    """Extent of the kernel, stride, padding before and after along an axis (1 height, 2 width) of `size`."""
    width = axis == 2

    def both(key: int, default: int) -> int:
        across = layer.int(key, default)
        return across if width else layer.int(key + 10, across)

    extent = both(2, 1) * (both(1, 0) - 1) + 1
    stride = both(3, 1)
    left = layer.int(4)
    right, top = layer.int(15, left), layer.int(14, left)
    before, after = (left, right) if width else (top, layer.int(16, top))
    if before in (-233, -234):  # as much as keeps the size: the odd one after or before
        more = max(0, extent + (size - 1) // stride * stride - size)
        smaller = more // 2
        before, after = (smaller, more - smaller) if before == -233 else (more - smaller, smaller)
    return extent, stride, before, after

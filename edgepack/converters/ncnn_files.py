"""ncnn's two files: the text .param, and the .bin that holds its layers' arrays one after the other."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAGIC = "7767517"
HALF, INT8, SCALED = 0x01306B47, 0x000D4B38, 0x0002C056
FEATURE_MASK = "31"
NO_WINOGRAD = 1 << 6
ARRAY = -23300  # ids of array parameters count down from here
QUANTIZABLE = ("Convolution", "ConvolutionDepthWise", "InnerProduct")


@dataclass
class Layer:
    """One line of a .param. `params` keeps the text of each value, so that what isn't touched stays as it was."""

    type: str
    name: str
    bottoms: list[str]
    tops: list[str]
    params: dict[str, str]

    def int(self, key: int, default: int = 0) -> int:
        """The integer parameter with the id `key`."""
        return int(self.params.get(str(key), default))


@dataclass
class Block:
    """One array of a layer in the .bin: `count` numbers, with a 4-byte tag before them when `tagged`."""

    count: int
    tagged: bool
    start: int = 0
    end: int = 0


def read_param(text: str) -> list[Layer]:
    lines = text.splitlines()
    if len(lines) < 2 or lines[0].strip() != MAGIC:
        raise SystemExit("this is not a text .param file of ncnn")
    return [_layer(line) for line in lines[2:] if line.strip()]


def _layer(line: str) -> Layer:
    kind, name, bottoms, tops, *rest = re.findall(r'-?\d+="[^"]*"|\S+', line)
    cut, end = int(bottoms), int(bottoms) + int(tops)
    params = dict(item.split("=", 1) for item in rest[end:])
    return Layer(kind, name, rest[:cut], rest[cut:end], params)


def write_param(layers: list[Layer]) -> str:
    blobs = sum(len(layer.tops) for layer in layers)
    lines = [MAGIC, f"{len(layers)} {blobs}"]
    for layer in layers:
        counts = [str(len(layer.bottoms)), str(len(layer.tops))]
        params = [f"{key}={value}" for key, value in layer.params.items()]
        words = [*counts, *layer.bottoms, *layer.tops, *params]
        lines.append(" ".join([layer.type, layer.name, *words]))  # no columns: they are 2 % of a small INT8 net
    return "\n".join(lines) + "\n"


def _convolution(layer: Layer, *, dynamic: int = 19) -> list[Block]:
    if layer.int(dynamic):
        return []
    bias = [Block(layer.int(0), False)] if layer.int(5) else []
    return [Block(layer.int(6), True), *bias]


def _deconvolution(layer: Layer) -> list[Block]:
    return _convolution(layer, dynamic=28)


def _inner_product(layer: Layer) -> list[Block]:
    bias = [Block(layer.int(0), False)] if layer.int(1) else []
    return [Block(layer.int(2), True), *bias]


def _embed(layer: Layer) -> list[Block]:
    bias = [Block(layer.int(0), False)] if layer.int(2) else []
    return [Block(layer.int(3), True), *bias]


def _affine(count: int, flag: int, arrays: int) -> Callable[[Layer], list[Block]]:
    """Normalisations: `arrays` arrays of parameter `count` numbers unless parameter `flag` is 0."""
    return lambda layer: [Block(layer.int(count), False)] * arrays if layer.int(flag, 1) else []


def _scale(layer: Layer) -> list[Block]:
    size = layer.int(0)
    if size == -233:
        return []
    return [Block(size, False)] * (2 if layer.int(1) else 1)


def _recurrent(gates: int, biases: int) -> Callable[[Layer], list[Block]]:
    def blocks(layer: Layer) -> list[Block]:
        outputs, directions = layer.int(0), 2 if layer.int(2) == 2 else 1
        hidden = layer.int(3, outputs) if gates == 4 else outputs
        found = [layer.int(1), hidden * biases * directions, outputs * hidden * gates * directions]
        if hidden != outputs:
            found.append(hidden * outputs * directions)
        return [Block(count, True) for count in found]

    return blocks


def _gemm(layer: Layer) -> list[Block]:
    m, n, k = layer.int(7), layer.int(8), layer.int(9)
    found = [m * k] if layer.int(4) else []
    found += [n * k] if layer.int(5) else []
    shape = layer.int(10)
    if layer.int(6) and shape != -1:
        found.append({0: 1, 1: m, 2: m, 3: n * m, 4: n}[shape])
    return [Block(count, True) for count in found]


def _attention(layer: Layer) -> list[Block]:
    inner, size = layer.int(0), layer.int(2)
    outer, key, value = size // inner, layer.int(3, inner), layer.int(4, inner)
    pairs = ((inner * outer, inner), (inner * key, inner), (inner * value, inner), (outer * inner, outer))
    return [block for weight, bias in pairs for block in (Block(weight, True), Block(bias, False))]


def _memory(layer: Layer) -> list[Block]:
    sizes = [layer.int(key) for key in (0, 1, 11, 2)]
    count = math.prod(size for size in sizes if size)
    return [Block(count, layer.int(21, 1) == 0)] if any(sizes) else []


def _padding(layer: Layer) -> list[Block]:
    return [Block(layer.int(6), False)] if layer.int(6) else []


# Every layer of ncnn 1.0.20261020 that reads the .bin, in the order of its load_model().
WEIGHTED: dict[str, Callable[[Layer], list[Block]]] = {
    **dict.fromkeys(("Convolution", "Convolution1D", "Convolution3D"), _convolution),
    **dict.fromkeys(("ConvolutionDepthWise", "ConvolutionDepthWise1D", "ConvolutionDepthWise3D"), _convolution),
    **dict.fromkeys(("Deconvolution", "Deconvolution1D", "Deconvolution3D"), _deconvolution),
    **dict.fromkeys(("DeconvolutionDepthWise", "DeconvolutionDepthWise1D", "DeconvolutionDepthWise3D"), _deconvolution),
    "DeformableConv2D": _convolution,
    "InnerProduct": _inner_product,
    "Embed": _embed,
    "BatchNorm": lambda layer: [Block(layer.int(0), False)] * 4,
    "Bias": lambda layer: [Block(layer.int(0), False)],
    "PReLU": lambda layer: [Block(layer.int(0), False)],
    "Normalize": lambda layer: [Block(layer.int(3), False)],
    "Scale": _scale,
    "GroupNorm": _affine(1, 3, 2),
    "InstanceNorm": _affine(0, 2, 2),
    "LayerNorm": _affine(0, 2, 2),
    "RMSNorm": _affine(0, 2, 1),
    "LSTM": _recurrent(4, 4),
    "GRU": _recurrent(3, 4),
    "RNN": _recurrent(1, 1),
    "Gemm": _gemm,
    "MultiHeadAttention": _attention,
    "MemoryData": _memory,
    "Padding": _padding,
}
WEIGHTLESS = set(
    """AbsVal ArgMax BNLL BinaryOp CELU Cast Clip Concat CopyTo Crop CumulativeSum DeepCopy DetectionOutput Diag
    Dropout ELU Einsum Eltwise Erf Exp ExpandDims Flatten Flip Fold GELU GLU GridSample HardSigmoid HardSwish Input
    Interp InverseSpectrogram LRN Log MVN MatMul Mish Noop Packing Permute PixelShuffle Pooling Pooling1D Pooling3D
    Power PriorBox Proposal PSROIPooling ReLU Reduction Reorg Reshape ROIAlign ROIPooling RotaryEmbed SDPA SELU SPP
    Shrink ShuffleChannel Sigmoid Slice Softmax Softplus Spectrogram Split Squeeze StatisticsPooling Swish TanH
    Threshold Tile UnaryOp Unfold Yolov3DetectionOutput YoloDetectionOutput""".split()
)
ALREADY_INT8 = {"Embed": 18, "Gemm": 18, "MultiHeadAttention": 18}


def locate(layers: list[Layer], weights: np.ndarray) -> list[list[Block]]:
    """Where each layer's arrays lie in the .bin. Exits when any layer can't be walked exactly."""
    position, found = 0, []
    for layer in layers:
        if layer.type not in WEIGHTED and layer.type not in WEIGHTLESS:
            raise SystemExit(f"the layer {layer.name} has the type {layer.type}, whose weights edgepack doesn't know")
        if layer.int(ALREADY_INT8.get(layer.type, 8)) and layer.type in (
            *ALREADY_INT8,
            *QUANTIZABLE,
            "LSTM",
            "GRU",
            "RNN",
        ):
            raise SystemExit(f"the layer {layer.name} is quantized already")
        blocks = [Block(b.count, b.tagged) for b in WEIGHTED.get(layer.type, lambda _: [])(layer)]
        for block in blocks:
            block.start = position
            position += _size(block, weights, position, layer)
            block.end = position
            if block.end > len(weights):
                raise SystemExit(f"the .bin file ends inside the weights of {layer.name}")
        found.append(blocks)
    if position != len(weights):
        raise SystemExit(f"the .bin file has {len(weights)} bytes, but its layers need {position}")
    return found


def _size(block: Block, weights: np.ndarray, position: int, layer: Layer) -> int:
    if not block.tagged:
        return 4 * block.count
    tag = int.from_bytes(weights[position : position + 4].tobytes(), "little")
    if tag in (0, SCALED):
        return 4 + 4 * block.count
    if tag == HALF:
        return 4 + (2 * block.count + 3) // 4 * 4
    raise SystemExit(f"the weights of {layer.name} are stored in a form that edgepack doesn't know (tag {tag:#010x})")


def floats(block: Block, weights: np.ndarray) -> np.ndarray:
    data = weights[block.start : block.end].tobytes()
    if not block.tagged:
        return np.frombuffer(data, np.float32, block.count)
    if int.from_bytes(data[:4], "little") == HALF:
        return np.frombuffer(data, np.float16, block.count, 4).astype(np.float32)
    return np.frombuffer(data, np.float32, block.count, 4)


# Ranges -------------------------------------------------------------------------------------------------------


def finite(layer: Layer, block: Block, weights: np.ndarray) -> np.ndarray:
    """The numbers of a block; exits where they aren't all finite."""
    values = floats(block, weights)
    if not np.isfinite(values).all():
        raise SystemExit(f"the layer {layer.name} has infinite or NaN weights")
    return values


def tagged(data: bytes, tag: int) -> bytes:
    """An array as the .bin has it, filled up to whole words."""
    return tag.to_bytes(4, "little") + data + bytes(-len(data) % 4)


def raw(*arrays: np.ndarray | float) -> bytes:
    """Arrays of float32 without a tag."""
    return b"".join(np.ascontiguousarray(array, np.float32).tobytes() for array in arrays)

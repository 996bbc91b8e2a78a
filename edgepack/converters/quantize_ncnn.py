# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ncnn==1.0.20261020",
#     "numpy==2.4.6",
# ]
# ///
"""Make an ncnn model smaller: float16 weights, or INT8 as upstream's ncnn2table and ncnn2int8 do, without them.

Request: ``files`` (.param, .bin with float32 weights), ``precision`` ("fp16" or "int8") and for INT8 ``inputs`` (blob
names), ``samples`` (tensor folder in ncnn's own shapes: the calibration data), ``threads``. Writes the two files
under the same names.

float16: pnnx can write it too, but flushes what is below 6.1e-5 to zero. PP-OCR's detector has a layer whose
weights are nearly all below that, and its output became noise. Here such a layer stays float32, in the file and in
the arithmetic.

INT8: the scheme is ncnn's own (its page "quantized-int8-inference"): Convolution, ConvolutionDepthWise and InnerProduct
get symmetric int8 weights with one scale per output channel (per group where the convolution is grouped) and
one scale for their input blob; Gemm and MultiHeadAttention get int8 weights, and ncnn measures their inputs as it
runs; everything else stays float. Scales multiply: ``int8 = round(float * scale)``.

Ranges come from one pass over the samples. Per blob there is one histogram over the upper 16 bits of each float:
the bins are exact, need no range beforehand, cost 256 KiB per blob however many samples there are, and adding
them in any order gives the same counts. The range is the 99.99th percentile. Measured on EfficientNet-Lite0 (64
calibration and 200 other crops), signal over error of the logits: maximum 12.7 dB, 99.9 % 12.6, 99.99 % 13.4,
least squared error 13.4, KL (Migacz 2017, ncnn2table's default) 12.5. What rounding the weights does to the mean of
each output channel is then taken out of the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2, with measured
means): 19.3 dB.

Two things differ from upstream's tools. They give 3x3 convolutions only 6 bits, because ncnn's int8 Winograd
(F43) multiplies sums by 576 in 32 bits; here they get 8 bits, and a layer whose sums could pass the limit is told
not to use Winograd. And a range or channel of only zeros gets the factor 1 instead of infinity.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from activations import rows

MAGIC = "7767517"
HALF, INT8, SCALED = 0x01306B47, 0x000D4B38, 0x0002C056
INT8_TERM, DYNAMIC_TERM = "8", "18"
FEATURE_MASK = "31"
NO_WINOGRAD = 1 << 6
NO_HALF = 0b11  # neither float16 arithmetic nor storage
HALF_LARGEST, HALF_SMALLEST = 65504.0, 6.104e-5
HALF_LOSS = 1e-5  # share of the weights' power: 50 dB
ARRAY = -23300  # ids of array parameters count down from here

BINS = 1 << 15
INFINITE = 0x7F80  # the first bin of infinities and NaNs
WINOGRAD_LIMIT = (2**31 - 1) // 576  # the largest integer sum that survives ncnn's F43
PERCENT = 99.99
TINY = 1e-8  # a range below this is a dead blob or channel: nothing but zeros is ever seen


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


@dataclass
class Blob:
    """What is known about the values of one blob."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    sums: dict[int, np.ndarray] = field(default_factory=dict)  # per way to cut it into channels: sum of the means
    seen: int = 0

    def mean(self, channels: int) -> np.ndarray | None:
        """The mean of each channel over all samples; None when the blob has no such channels."""
        return self.sums[channels] / self.seen if channels in self.sums else None


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    param_file, weight_file = (Path(name) for name in request["files"])
    layers = read_param(param_file.read_text("utf-8"))
    weights = np.memmap(weight_file, np.uint8, "r") if weight_file.stat().st_size else np.zeros(0, np.uint8)
    blocks = locate(layers, weights)
    out = Path(request["out"])
    make = halve if request["precision"] == "fp16" else quantize_all
    with (out / weight_file.name).open("wb") as file:
        result = make(request, layers, blocks, weights, file)
    (out / param_file.name).write_text(write_param(layers))
    (out / "result.json").write_text(json.dumps(result))


def halve(request: dict, layers: list[Layer], blocks: list[list[Block]], weights: np.ndarray, file: BinaryIO) -> dict:
    """Write the .bin with tagged arrays as float16. Returns the layers that stay float32."""
    kept = []
    for layer, arrays in zip(layers, blocks, strict=True):
        largest = max((block.count for block in arrays), default=0)
        for block in arrays:
            values = floats(block, weights) if block.tagged else None
            if values is not None and fits_half(values):
                data = values.astype(np.float16).tobytes()
                file.write(HALF.to_bytes(4, "little") + data + bytes(-len(data) % 4))
                continue
            file.write(weights[block.start : block.end].tobytes())
            if values is not None and 2 * block.count >= largest:  # the weights themselves, not a bias beside them
                layer.params[FEATURE_MASK] = str(layer.int(int(FEATURE_MASK)) | NO_HALF)
                kept += [] if layer in kept else [layer]
    give_float32_inputs(layers, kept)
    return {"float32": [layer.name for layer in kept]}


def give_float32_inputs(layers: list[Layer], kept: list[Layer]) -> None:
    """Put a layer that ncnn has no float16 form of before each input of the kept layers.

    ncnn hands a float16 blob to a layer whose feature mask forbids float16 storage as it is, and that layer then reads
    past its end as if it were float32 (heap corruption on Arm CPUs with asimdhp). Before a layer without float16
    support it does cast to float32, and Dropout with its default scale of 1 changes no value.
    """
    for layer in kept:
        place = next(index for index, each in enumerate(layers) if each is layer)
        for position, bottom in enumerate(list(layer.bottoms)):
            top = f"{bottom}_float32_{position}"
            cast = Layer("Dropout", f"{layer.name}_float32_{position}", [bottom], [top], {})
            layers.insert(place + position, cast)
            layer.bottoms[position] = top


def fits_half(values: np.ndarray) -> bool:
    """Whether float16 holds these numbers well enough when a reader takes its subnormal numbers for zero."""
    size = np.abs(values)
    if not np.isfinite(values).all() or size.max(initial=0.0) > HALF_LARGEST:
        return False
    lost = np.square(values[size < HALF_SMALLEST], dtype=np.float64).sum()
    return bool(lost <= HALF_LOSS * np.square(values, dtype=np.float64).sum())


def quantize_all(
    request: dict, layers: list[Layer], blocks: list[list[Block]], weights: np.ndarray, file: BinaryIO
) -> dict:
    """Write the .bin in INT8 where the layer can be. Returns what became of which layer."""
    producers = {top: layer for layer in layers for top in layer.tops}
    wanted = {i: origin(layer.bottoms[0], producers) for i, layer in enumerate(layers) if quantizable(layer)}
    cuts: dict[str, set[int]] = {}
    for index, name in wanted.items():
        cuts.setdefault(name, set()).add(channels(layers[index]))

    blobs = calibrate(request, cuts) if wanted else {}
    scales = {name: input_scale(name, blob) for name, blob in blobs.items()}
    no_winograd, chain, dynamic = [], [], []
    for index, layer in enumerate(layers):
        if layer.type in DYNAMIC and blocks[index] and DYNAMIC[layer.type][0](layer):
            file.write(DYNAMIC[layer.type][1](layer, blocks[index], weights))
            dynamic.append(index)
            continue
        if index not in wanted:
            for block in blocks[index]:
                file.write(weights[block.start : block.end].tobytes())
            continue
        name = wanted[index]
        positive = not_negative(producers[name])
        top = chained(layer, layers, wanted)
        file.write(quantize(layer, blocks[index], weights, scales[name], blobs[name], not_negative=positive))
        if layer.int(int(FEATURE_MASK)) & NO_WINOGRAD:
            no_winograd.append(layer.name)
        if top is not None:
            layer.params[INT8_TERM] = str(100 + layer.int(8))
            file.write(np.float32(scales[top]).tobytes())
            chain.append(layer.name)
    done = {*wanted, *dynamic}
    return {
        "quantized": [layers[i].name for i in sorted(done)],
        "float": [f"{layer.type} {layer.name}" for i, layer in enumerate(layers) if blocks[i] and i not in done],
        "int8_outputs": chain,
        "no_winograd": no_winograd,
    }


# The two files ------------------------------------------------------------------------------------------------


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
        lines.append(f"{layer.type:<24} {layer.name:<24} {' '.join(words)}")
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


def calibrate(request: dict, cuts: dict[str, set[int]]) -> dict[str, Blob]:
    """Run the float model on every sample and gather what is needed to know about the blobs in `cuts`."""
    os.environ["OMP_WAIT_POLICY"] = "passive"  # spinning beside other work made this five times slower
    import ncnn

    net = ncnn.Net()
    opt = net.opt
    opt.num_threads, opt.lightmode, opt.use_vulkan_compute = request.get("threads", 1), False, False
    opt.use_bf16_packed = opt.use_bf16_storage = False
    opt.use_fp16_packed = opt.use_fp16_storage = opt.use_fp16_arithmetic = False
    if net.load_param(request["files"][0]) != 0 or net.load_model(request["files"][1]) != 0:
        raise SystemExit("cannot be loaded by ncnn: see the lines above")
    blobs = {name: Blob() for name in cuts}
    for arrays in samples(request):
        extractor = net.create_extractor()
        extractor.set_light_mode(False)  # keep every blob, so that one run gives them all
        held = [ncnn.Mat(array) for array in arrays]  # a Mat borrows the array's memory
        for name, mat in zip(request["inputs"], held, strict=True):
            extractor.input(name, mat.clone())
        for name, blob in blobs.items():
            code, mat = extractor.extract(name)
            if code != 0:
                raise SystemExit(f"cannot be run by ncnn: the blob {name} is not computed (code {code})")
            observe(blob, mat.numpy(), cuts[name])
    return blobs


def samples(request: dict) -> Iterator[list[np.ndarray]]:
    files = [Path(request["samples"], f"{i}.npy") for i in range(len(request["inputs"]))]
    for values in zip(*map(rows, files), strict=True):
        yield list(values)


def observe(blob: Blob, values: np.ndarray, cuts: set[int]) -> None:
    """Add one sample's values to the histogram, and the means of its channels to their sums."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    blob.counts += np.bincount(flat.view(np.uint16)[1::2] & 0x7FFF, minlength=BINS)
    blob.seen += 1
    for cut in cuts:
        if values.ndim == 3 and len(values) == cut:
            means = flat.reshape(cut, -1).mean(axis=1)  # [channels, height, width]
        elif values.ndim < 3 and flat.size % cut == 0:
            means = flat.reshape(-1, cut).mean(axis=0)  # [rows, features]
        elif flat.size == cut:
            means = flat  # a fully connected layer that flattens
        else:
            continue
        blob.sums[cut] = blob.sums.get(cut, 0.0) + means.astype(np.float64)


def edges() -> np.ndarray:
    """The lower edge of every finite bin; the upper edge is the next one."""
    return (np.arange(INFINITE + 1, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


def input_scale(name: str, blob: Blob) -> float:
    """The factor of one blob: 127 over the range found. Never infinite: a dead blob gets 1."""
    if blob.counts[INFINITE:].any():
        raise SystemExit(
            f"calibration gives infinite or NaN values in the blob {name}: the model or its inputs are broken"
        )
    limit = percentile(blob.counts[:INFINITE], PERCENT)
    return 127.0 / limit if limit > TINY else 1.0


def percentile(counts: np.ndarray, percent: float) -> float:
    """The upper edge of the bin in which the given share of all magnitudes is reached."""
    total = np.cumsum(counts)
    index = int(np.searchsorted(total, total[-1] * percent / 100.0))
    return float(edges()[index + 1])


# Weights ------------------------------------------------------------------------------------------------------

QUANTIZABLE = ("Convolution", "ConvolutionDepthWise", "InnerProduct")


def quantizable(layer: Layer) -> bool:
    dynamic = layer.type != "InnerProduct" and layer.int(19)
    return layer.type in QUANTIZABLE and not dynamic and len(layer.bottoms) == 1


def origin(blob: str, producers: dict[str, Layer]) -> str:
    """The blob that Split layers copied."""
    while producers[blob].type == "Split":
        blob = producers[blob].bottoms[0]
    return blob


def channels(layer: Layer) -> int:
    """How many input channels (or features) a quantizable layer has."""
    if layer.type == "InnerProduct":
        return layer.int(2) // layer.int(0)
    kernel = layer.int(1) * layer.int(11, layer.int(1))
    return layer.int(6) // layer.int(0) // kernel * layer.int(7, 1)


def not_negative(producer: Layer) -> bool:
    """Whether a blob can't be below zero because of the layer that makes it."""
    if producer.type.startswith(("Convolution", "InnerProduct")):
        limits = producer.params.get(str(ARRAY - 10), "").split(",")[1:]
        return producer.int(9) in (1, 4) or (producer.int(9) == 3 and float(limits[0]) >= 0)
    return producer.type in ("HardSigmoid", "Sigmoid") or (producer.type == "ReLU" and not producer.params)


def chained(layer: Layer, layers: list[Layer], wanted: dict[int, str]) -> str | None:
    """The blob that a convolution may hand on as int8: all who read it are quantized convolutions."""
    if layer.type == "InnerProduct":
        return None
    blob = layer.tops[0]
    copies, readers = {blob}, 0
    for index, reader in enumerate(layers):
        if not copies & set(reader.bottoms):
            continue
        if reader.type == "Split":
            copies |= set(reader.tops)
        elif index not in wanted or reader.type == "InnerProduct":
            return None
        readers += 1
    # A copy that nobody reads is an output of the model.
    read = {name for reader in layers for name in reader.bottoms}
    return blob if readers and copies <= read else None


def quantize(
    layer: Layer, blocks: list[Block], weights: np.ndarray, scale: float, blob: Blob, *, not_negative: bool
) -> bytes:
    """The layer's part of the .bin in INT8; changes its parameters to say so."""
    grouped = layer.type == "ConvolutionDepthWise"
    outputs, groups = layer.int(0), layer.int(7, 1) if grouped else 1
    values = finite(layer, blocks[0], weights)
    bias = finite(layer, blocks[1], weights) if len(blocks) > 1 else np.zeros(outputs, np.float32)
    matrix = values.reshape(groups if grouped else outputs, -1)
    integers, factors = rounded(matrix)

    mean = blob.mean(channels(layer))
    if mean is not None:
        error = integers / factors[:, None].astype(np.float64) - matrix
        # [groups, outputs, channels] of one group each: the sum over the kernel's points
        error = error.reshape(groups, outputs // groups, len(mean) // groups, -1).sum(axis=3)
        shift = np.einsum("goc,gc->go", error, mean.reshape(groups, -1)).reshape(-1)
        bias = (bias - shift).astype(np.float32)
        layer.params["1" if layer.type == "InnerProduct" else "5"] = "1"
    elif len(blocks) == 1:
        bias = bias[:0]

    if layer.type == "Convolution" and (layer.int(1), layer.int(11, layer.int(1))) == (3, 3):
        sums = integers.astype(np.int64)
        sides = [np.maximum(sums, 0).sum(axis=1), np.maximum(-sums, 0).sum(axis=1)]
        bound = np.maximum(*sides) if not_negative else sides[0] + sides[1]
        if int(bound.max()) * 127 > WINOGRAD_LIMIT:
            layer.params[FEATURE_MASK] = str(layer.int(int(FEATURE_MASK)) | NO_WINOGRAD)
    layer.params[INT8_TERM] = "1" if grouped else "2"
    return tagged_int8(integers) + raw(bias, factors, scale)


def quantize_gemm(layer: Layer, blocks: list[Block], weights: np.ndarray) -> bytes:
    """A product with a constant right side: one factor for it; ncnn measures the left side row by row as it runs."""
    integers, factors = rounded(finite(layer, blocks[0], weights).reshape(1, -1))
    layer.params[DYNAMIC_TERM] = "2"
    rest = b"".join(weights[block.start : block.end].tobytes() for block in blocks[1:])
    return tagged_int8(integers) + rest + raw(factors)


def quantize_attention(layer: Layer, blocks: list[Block], weights: np.ndarray) -> bytes:
    """The four projections: a factor per row for query, key and value, one for the output."""
    inner = layer.int(0)
    written, tail = b"", b""
    for index, (weight, bias) in enumerate(zip(blocks[::2], blocks[1::2], strict=True)):
        integers, factors = rounded(finite(layer, weight, weights).reshape(inner if index < 3 else 1, -1))
        written += tagged_int8(integers) + weights[bias.start : bias.end].tobytes()
        tail += raw(factors)
    layer.params[DYNAMIC_TERM] = "2"
    return written + tail


# Layers whose inputs ncnn measures as it runs: when they can be quantized, and how.
DYNAMIC: dict[str, tuple[Callable[[Layer], object], Callable[[Layer, list[Block], np.ndarray], bytes]]] = {
    "Gemm": (lambda layer: layer.int(5) and not layer.int(4), quantize_gemm),
    "MultiHeadAttention": (lambda layer: not layer.int(7), quantize_attention),
}


def finite(layer: Layer, block: Block, weights: np.ndarray) -> np.ndarray:
    values = floats(block, weights)
    if not np.isfinite(values).all():
        raise SystemExit(f"the layer {layer.name} has infinite or NaN weights")
    return values


def rounded(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row as int8 over its whole range, and the factors. Never infinite: a dead row gets 1."""
    largest = np.abs(matrix).max(axis=1)
    factors = np.where(largest > TINY, 127.0 / np.maximum(largest, TINY), 1.0).astype(np.float32)
    return np.clip(np.rint(matrix * factors[:, None]), -127, 127).astype(np.int8), factors


def tagged_int8(integers: np.ndarray) -> bytes:
    data = integers.tobytes()
    return INT8.to_bytes(4, "little") + data + bytes(-len(data) % 4)


def raw(*arrays: np.ndarray | float) -> bytes:
    return b"".join(np.ascontiguousarray(array, np.float32).tobytes() for array in arrays)


if __name__ == "__main__":
    main()

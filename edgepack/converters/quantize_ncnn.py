# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ncnn==1.0.20261020",
#     "numpy==2.4.6",
#     "onnx==1.23.2",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
# ]
# ///
"""Make an ncnn model smaller: float16 weights, or INT8 as upstream's ncnn2table and ncnn2int8 do, without them.

Request: ``files`` (.param, .bin with float32 weights), ``precision`` ("fp16" or "int8") and for INT8 ``inputs`` (blob
names), ``samples`` (tensor folder in ncnn's own shapes: the calibration data), ``int8`` (the fields of Int8Options)
and ``onnx`` (the model that the files were made of, which names the layers). Writes the two files under the same names.

INT8: Convolution, ConvolutionDepthWise and InnerProduct get int8 weights with one scale per output channel (per group
where the convolution is grouped) and one scale for their input blob; Gemm and MultiHeadAttention get int8 weights,
and ncnn measures their inputs as it runs; everything else stays float. A blob between quantized convolutions is int8.

Differences from upstream's tools:

- ncnn's integers have no zero point, which costs what a ReLU gives one of its 8 bits. A blob between quantized layers
  gets one all the same (`ncnn_plan.Plan.shiftable`): it only takes biases and the value that pads.
- Weights are rounded so that the errors of a sum cancel (`rounding.compensated`), and what that does to the mean of
  each output channel is taken out of the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2).
- Ranges have the least squared error; where the outputs on the calibration samples are clearly closer with the
  99.99th percentile or the whole range, those.
- 3x3 convolutions have 8 bits, not 6: ncnn's int8 Winograd (F43) multiplies sums by 576 in 32 bits, and a layer whose
  sums could pass the limit is told not to use it.
- A range or channel of only zeros gets the factor 1 instead of infinity.

``effort``: "fast" takes least-error ranges and the nearest integers, "normal" tries ranges and looks for weights'
scales, "high" rounds weights with the covariance of their inputs, which takes another pass over the samples.
"""

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ncnn_files import FEATURE_MASK, NO_WINOGRAD, Block, Layer, floats, locate, read_param, write_param
from ncnn_half import halve
from ncnn_int8 import DYNAMIC, Rounded, narrow, round_weights, shift_float, write_layer
from ncnn_plan import Plan
from ncnn_ranges import Coding, coding
from ncnn_watch import Blob, Moments, Network, moments, samples, watch

AUTOMATIC = ("mse", "percentile", "minmax")  # rules for ranges, tried in this order
JUDGED = 64  # calibration samples that decide between them
GOOD = 30.0  # dB; from here on the differences between ranges are chance
CLEARLY = 0.25  # dB by which a later rule must be better


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    param_file, weight_file = (Path(name) for name in request["files"])
    layers = read_param(param_file.read_text("utf-8"))
    weights = np.memmap(weight_file, np.uint8, "r") if weight_file.stat().st_size else np.zeros(0, np.uint8)
    blocks = locate(layers, weights)
    out = Path(request["out"])
    if request["precision"] == "fp16":
        with (out / weight_file.name).open("wb") as file:
            result = halve(request, layers, blocks, weights, file)
        (out / param_file.name).write_text(write_param(layers))
    else:
        result = Quantizer(request, layers, blocks, weights).run(out)
    (out / "result.json").write_text(json.dumps(result))


class Quantizer:
    """One model on its way to INT8."""

    def __init__(self, request: dict, layers: list[Layer], blocks: list[list[Block]], weights: np.ndarray) -> None:
        self.request, self.layers, self.blocks, self.weights = request, layers, blocks, weights
        self.options = request["int8"]
        self.kept: set[str] = set()
        self.plan = Plan(layers, self.kept)
        self.whole = Plan(layers, set())

    def run(self, out: Path) -> dict:
        """Write the best candidate's files to `out`. Returns what became of which layer."""
        plan, effort = self.plan, self.options["effort"]
        blobs = watch(self.request, plan)
        rounded = self.round(blobs)
        automatic = AUTOMATIC[:1] if effort == "fast" else AUTOMATIC
        rules = automatic if self.options["ranges"] == "auto" else (self.options["ranges"],)
        best: tuple[float, dict, list[bytes], list[Layer]] | None = None
        for rule in rules:
            codings = {n: coding(blob, rule, shiftable=plan.shiftable(n)) for n, blob in blobs.items()}
            facts, parts, layers = self.write(codings, rounded)
            files = self.save(out, parts, layers)
            ratio = self.judge(files) if len(rules) > 1 else 0.0
            if best is None or ratio > best[0] + CLEARLY:
                best = (ratio, {**facts, "ranges": rule}, parts, layers)
            if best[0] >= GOOD:
                break
        assert best is not None
        self.save(out, best[2], best[3])
        return {**best[1], "sqnr_db": round(best[0], 2)} if len(rules) > 1 else best[1]

    def round(self, blobs: dict[str, Blob]) -> dict[int, Rounded]:
        """The integers of every layer's weights; they don't depend on the activations' ranges."""
        plan, effort = self.plan, self.options["effort"]
        found: dict[int, Rounded] = {}

        def one(index: int, known: Moments | None) -> None:
            found[index] = round_weights(
                self.layers[index],
                self.blocks[index],
                self.weights,
                blobs[plan.wanted[index]],
                known,
                effort=effort,
                given=None,
            )

        if effort == "high":
            for batch in moments(self.request, plan, self.options["memory_mb"] * 500_000):
                for index, known in batch.items():
                    one(index, known)
        for index in plan.wanted:
            if index not in found:
                one(index, None)
        return found

    def write(self, codings: dict[str, Coding], rounded: dict[int, Rounded]) -> tuple[dict, list[bytes], list[Layer]]:
        """The .bin in parts, the .param's layers, and what is to be told of them."""
        plan = self.plan
        layers, parts = deepcopy(self.layers), []
        chain, shifted = [], []
        for index, (layer, blocks) in enumerate(zip(layers, self.blocks, strict=True)):
            made = codings.get(layer.tops[0]) if layer.tops else None
            zero = made is not None and bool(made.zero)
            if index in plan.wanted:
                top = plan.chained(index)
                use = made if zero or top is not None else None
                parts.append(
                    write_layer(layer, rounded[index], codings[plan.wanted[index]], use, chained=top is not None)
                )
                chain += [layer.name] if top is not None else []
            elif index in plan.dynamic and blocks:
                parts.append(DYNAMIC[layer.type](layer, blocks, self.weights))
            elif zero:
                assert made is not None
                parts.append(shift_float(layer, blocks, self.weights, made))
            elif layer.name in self.kept:
                rest = blocks[1:]
                parts.append(narrow(floats(blocks[0], self.weights)) + b"".join(self.stored(block) for block in rest))
            else:
                parts.append(b"".join(self.stored(block) for block in blocks))
            shifted += [layer.tops[0]] if zero else []
        done = {*plan.wanted, *(index for index in plan.dynamic if self.blocks[index])}
        facts = {
            "quantized": [layers[i].name for i in sorted(done)],
            "float": [f"{v.type} {v.name}" for i, v in enumerate(layers) if self.blocks[i] and i not in done],
            "int8_outputs": chain,
            "zero_points": len(shifted),
            "no_winograd": [v.name for v in layers if v.int(int(FEATURE_MASK)) & NO_WINOGRAD],
        }
        return facts, parts, layers

    def stored(self, block: Block) -> bytes:
        """An array as it is in the .bin."""
        return self.weights[block.start : block.end].tobytes()

    def save(self, out: Path, parts: list[bytes], layers: list[Layer]) -> list[str]:
        """Write both files under the names that they had."""
        param_file, weight_file = (out / Path(name).name for name in self.request["files"])
        with weight_file.open("wb") as file:
            file.writelines(parts)
        param_file.write_text(write_param(layers))
        return [str(param_file), str(weight_file)]

    def judge(self, files: list[str]) -> float:
        """Signal over noise of the worst output, in dB over the judged samples."""
        names, inputs = self.plan.outputs, self.request["inputs"]
        more = len(names) > 1
        float_net, int8_net = Network(self.request["files"], inputs), Network(files, inputs)
        signal, noise = np.zeros(len(names)), np.full(len(names), 1e-30)
        for arrays, _ in zip(samples(self.request), range(JUDGED), strict=False):
            exact = {name: values.astype(np.float64) for name, values in float_net.run(arrays, names, keep=more)}
            for index, (name, got) in enumerate(int8_net.run(arrays, names, keep=more)):
                signal[index] += np.square(exact[name]).sum()
                noise[index] += np.square(exact[name] - got).sum()
        ratios = 10.0 * np.log10(np.maximum(signal, 1e-30) / noise)
        return float(ratios[signal > 0.0].min()) if (signal > 0.0).any() else 0.0


if __name__ == "__main__":
    main()

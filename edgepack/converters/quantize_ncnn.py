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
Layers that `keep_float` or `wide` names stay in float, with their weights as float16 where that holds them (ncnn has no
integers wider than int8). A quantized ONNX model keeps its own scales.

INT8: Convolution, ConvolutionDepthWise and InnerProduct get int8 weights with one scale per output channel (per group
where the convolution is grouped) and one scale for their input blob; Gemm and MultiHeadAttention get int8 weights,
and ncnn measures their inputs as it runs (`ncnn_dynamic`); so do the tables of Embed; everything else stays float. A
blob between quantized convolutions is int8.

Differences from upstream's tools:

- ncnn's integers have no zero point, which costs what a ReLU gives one of its 8 bits. A blob between quantized layers
  gets one all the same (`ncnn_plan.Plan.shiftable`): it only takes biases and the value that pads.
- Weights are rounded so that the errors of a sum cancel (`rounding.compensated`), and what that does to the mean of
  each output channel is taken out of the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2).
- Ranges have the least squared error; where the outputs on the calibration samples are clearly closer with the
  99.99th percentile or the whole range, those.
- Channels of blobs are evened out where the layers around can take that into their weights (`ncnn_equalising`).
- Rules are judged before a last Softmax, which hides the errors of all samples that the model is sure of.
- 3x3 convolutions have 8 bits, not 6: ncnn's int8 Winograd (F43) multiplies sums by 576 in 32 bits, and a layer whose
  sums could pass the limit is told not to use it.
- A range or channel of only zeros gets the factor 1 instead of infinity.

``effort``: "fast" takes least-error ranges and the nearest integers, "normal" tries ranges, evens channels out and
looks for weights' scales. "high" rounds weights with the covariance of their inputs, which takes another pass over the
samples; shifts blobs that no producer can shift in a layer of its own, where that brings a decibel; and leaves the
most sensitive
layers in float.
"""

import json
import os
import sys
import tempfile
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # more would add in another order: other bytes from the same data
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ncnn_dynamic import DYNAMIC
from ncnn_equalising import equalise
from ncnn_files import FEATURE_MASK, NO_WINOGRAD, Block, Layer, finite, floats, locate, read_param, write_param
from ncnn_half import halve
from ncnn_int8 import Rounded, narrow, round_weights, shift_before, shift_float, write_layer
from ncnn_names import given_coding, given_factors, match, nodes_of
from ncnn_plan import Plan, products
from ncnn_ranges import Coding, coding
from ncnn_watch import Moments, Network, moments, samples, watch

AUTOMATIC = ("mse", "percentile", "minmax")  # rules for ranges, tried in this order
JUDGED, SENSED = 64, 16  # calibration samples that decide between rules, and that rank layers
GOOD = 30.0  # dB; from here on the differences are chance
CLEARLY = 0.25  # dB by which a later rule must be better
FLOAT_SHARE = 0.05  # of the multiplications that the most sensitive layers may do in float at the highest effort
FLOAT_WEIGHTS = 0.1  # of the weights that they may have: the file grows by a quarter of that share of the float one
LIFTED = 1.0  # dB that shifting blobs before their readers must bring: it takes another pass over each
FAR = 64  # zero points from here on are worth it
GAIN = 0.1  # dB that a layer in float must bring
EVENED = 0.25  # of the unevenness of a blob's channels that weights take over


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
        options = request["int8"]
        self.effort, self.memory = options["effort"], options["memory_mb"] * 1_000_000
        self.nodes = match(layers, blocks, weights, nodes_of(Path(request["onnx"])))
        self.given = {index: node.given for index, node in self.nodes.items()}
        self.asked = {*options["keep_float"], *options["wide"]}  # ncnn has no wider integers
        self.kept = frozenset(layers[i].name for i, node in self.nodes.items() if node.name in self.asked)
        self.plan = Plan(layers, self.kept)
        self.known: list[dict[str, np.ndarray]] = []
        self.lift = False  # whether to shift blobs before the layers that read them

    def run(self, out: Path) -> dict:
        """Write the best candidate's files to `out`. Returns what became of which layer."""
        for index in (*self.plan.wanted, *self.plan.dynamic):
            for block in self.blocks[index]:
                finite(self.layers[index], block, self.weights)
        self.blobs = watch(self.request, self.plan)
        self.rounded = self.round()
        evened = (
            {} if self.effort == "fast" or any(g.scale is not None for g in self.given.values()) else self.even(out)
        )
        asked, given = self.request["int8"]["ranges"], self.all_given()
        automatic = AUTOMATIC[:1] if self.effort == "fast" or given else AUTOMATIC
        rules = automatic if asked == "auto" else (asked,)
        plan, rule, tried = self.plan, rules[0], {}
        if len(rules) > 1:
            for each in rules:
                tried[each] = self.judge(self.save(out, *self.write(plan, each)))
                if tried[each] > tried[rule] + CLEARLY:
                    rule = each
                if tried[rule] >= GOOD:
                    break
        if self.effort == "high" and not given:
            if rule not in tried:
                tried[rule] = self.judge(self.save(out, *self.write(plan, rule)))
            if tried[rule] < GOOD:
                self.lift = True
                tried["shifted before"] = self.judge(self.save(out, *self.write(plan, rule)))
                self.lift = tried["shifted before"] > tried[rule] + LIFTED
            if tried[rule] < GOOD:
                reached = tried["shifted before" if self.lift else rule]
                plan, tried["some layers in float"] = self.with_float(out, rule, reached)
        parts, layers = self.write(plan, rule)
        self.save(out, parts, layers)
        codings = {name: self.form(plan, name, rule) for name in plan.readers}
        return {
            **self.told(plan, layers),
            "codings": codings,
            "evened": evened,
            "ranges": rule,
            "tried": {k: round(v, 2) for k, v in tried.items()},
        }

    def even(self, out: Path) -> dict[str, list[float]]:
        """Even out channels where that is better on calibration samples. Returns what they were divided by."""
        weights, divided = equalise(self.plan, self.blocks, self.weights, self.blobs, EVENED)
        if not divided:
            return {}
        rule = AUTOMATIC[0]
        plain = self.judge(self.save(out, *self.write(self.plan, rule)))
        before = self.request, self.weights, self.blobs, self.rounded
        with tempfile.TemporaryDirectory(dir=out) as folder:
            file = Path(folder, "evened.bin")
            file.write_bytes(weights.tobytes())
            self.request = {**self.request, "files": [self.request["files"][0], str(file)]}
            self.weights = weights
            self.blobs = watch(self.request, self.plan)
            self.rounded = self.round()
        self.request = before[0]
        if self.judge(self.save(out, *self.write(self.plan, rule))) > plain + CLEARLY:
            return divided
        _, self.weights, self.blobs, self.rounded = before
        return {}

    def all_given(self) -> bool:
        """Whether the model came with the ranges of all that is quantized."""
        return all(index in self.given and self.given[index].scale is not None for index in self.plan.wanted)

    def round(self) -> dict[int, Rounded]:
        """The integers of every layer's weights; they don't depend on the activations' ranges."""
        plan = self.plan
        found: dict[int, Rounded] = {}

        def one(index: int, known: Moments | None) -> None:
            layer, blob = self.layers[index], self.blobs[plan.wanted[index]]
            factors = given_factors(layer, self.given.get(index))
            found[index] = round_weights(
                layer, self.blocks[index], self.weights, blob, known, effort=self.effort, given=factors
            )

        if self.effort == "high" and not self.all_given():
            for batch in moments(self.request, plan, self.memory // 2):
                for index, known in batch.items():
                    one(index, known)
        for index in plan.wanted:
            if index not in found:
                one(index, None)
        return found

    def coding(self, plan: Plan, blob: str, rule: str) -> Coding:
        """The integers of a blob: as the model says, else by the rule."""
        shiftable = plan.shiftable(blob)
        says = [self.given[i] for i in plan.readers[blob].layers if i in plan.wanted and i in self.given]
        says = [each for each in says if each.scale is not None]
        if says:
            return given_coding(max(says, key=lambda each: each.scale or 0.0), shiftable=shiftable)
        if self.lift and plan.liftable(blob):
            found = coding(self.blobs[blob], rule, shiftable=True)
            if found.zero >= FAR:
                return found
        return coding(self.blobs[blob], rule, shiftable=shiftable)

    def form(self, plan: Plan, blob: str, rule: str) -> dict:
        """How a blob that quantized layers read is held: "int8", "shifted" float, or "float" as it is."""
        used, producer = self.coding(plan, blob, rule), plan.producers[blob]
        chained = producer in plan.wanted and plan.chained(producer) is not None
        shifted = bool(used.zero) and plan.shiftable(blob)
        return {**asdict(used), "form": "int8" if chained else "shifted" if shifted else "float"}

    def with_float(self, out: Path, rule: str, ratio: float) -> tuple[Plan, float]:
        """The plan with those layers in float that gain most, as long as their share of work and weights is small.

        Gains are measured on calibration samples with one layer at a time in float.
        """
        plan = self.plan
        work = {i: products(self.layers[i], self.blobs[blob].shape) for i, blob in plan.wanted.items()}
        weights = {i: self.blocks[i][0].count for i in work}
        left, room = FLOAT_SHARE * sum(work.values()), FLOAT_WEIGHTS * sum(weights.values())
        base = self.judge(self.save(out, *self.write(plan, rule)), SENSED)
        ranked = []
        for index in (i for i, count in work.items() if count <= left and weights[i] <= room):
            single = Plan(self.layers, self.kept | {self.layers[index].name})
            ranked.append((self.judge(self.save(out, *self.write(single, rule)), SENSED), index))
        chosen: set[str] = set()
        for reached, index in sorted(ranked, key=lambda pair: (-pair[0], pair[1])):
            if reached > base + GAIN and work[index] <= left and weights[index] <= room:
                chosen.add(self.layers[index].name)
                left, room = left - work[index], room - weights[index]
        mixed = Plan(self.layers, self.kept | chosen)
        better = self.judge(self.save(out, *self.write(mixed, rule))) if chosen else ratio
        return (mixed, better) if better > ratio + CLEARLY else (plan, ratio)

    def write(self, plan: Plan, rule: str) -> tuple[list[bytes], list[Layer]]:
        """The .bin in parts, and the .param's layers."""
        codings = {name: self.coding(plan, name, rule) for name in plan.readers}
        layers, parts = [], []
        for index, (layer, blocks) in enumerate(zip(deepcopy(self.layers), self.blocks, strict=True)):
            made = codings.get(layer.tops[0]) if layer.tops else None
            zero = made is not None and bool(made.zero) and plan.shiftable(layer.tops[0])
            if index in plan.wanted:
                chained, blob = plan.chained(index) is not None, plan.wanted[index]
                source, use = codings[blob], made if zero or chained else None
                if source.zero and not plan.shiftable(blob):
                    layers.append(shift_before(layer, source))
                parts.append(write_layer(layer, self.rounded[index], source, use, chained=chained))
            elif index in plan.dynamic and blocks:
                written = DYNAMIC[layer.type](layer, blocks, self.weights)
                parts += [part for _, part in written]
                layers += [each for each, _ in written]
                continue
            elif made is not None and zero:
                parts.append(shift_float(layer, blocks, self.weights, made))
            elif layer.name in plan.kept and blocks:
                parts.append(narrow(floats(blocks[0], self.weights)) + self.stored(blocks[1:]))
            else:
                parts.append(self.stored(blocks))
            layers.append(layer)
        return parts, layers

    def told(self, plan: Plan, layers: list[Layer]) -> dict:
        """What became of which layer; `kept_float`, `unmapped` and `names` speak of layers as the ONNX model does."""
        done = {*plan.wanted, *(index for index in plan.dynamic if self.blocks[index])}
        names = {self.layers[index].name: node.name for index, node in self.nodes.items()}
        return {
            "quantized": [self.layers[i].name for i in sorted(done)],
            "float": [f"{v.type} {v.name}" for i, v in enumerate(self.layers) if self.blocks[i] and i not in done],
            "kept_float": [names[v.name] for v in self.layers if v.name in plan.kept and v.name in names],
            "unmapped": sorted(self.asked - set(names.values())),
            "names": names,
            "int8_outputs": [self.layers[i].name for i in plan.wanted if plan.chained(i) is not None],
            "no_winograd": [v.name for v in layers if v.int(int(FEATURE_MASK)) & NO_WINOGRAD],
            "own_scales": sum(i in self.given and self.given[i].scale is not None for i in plan.wanted),
        }

    def stored(self, blocks: list[Block]) -> bytes:
        """Arrays as they are in the .bin."""
        return b"".join(self.weights[block.start : block.end].tobytes() for block in blocks)

    def save(self, out: Path, parts: list[bytes], layers: list[Layer]) -> list[str]:
        """Write both files under the names that they had."""
        param_file, weight_file = (out / Path(name).name for name in self.request["files"])
        with weight_file.open("wb") as file:
            file.writelines(parts)
        param_file.write_text(write_param(layers))
        return [str(param_file), str(weight_file)]

    def judge(self, files: list[str], count: int | None = None) -> float:
        """Signal over noise of the worst output, in dB over the judged samples (or `count` of them)."""
        names, inputs = list(self.plan.judged), self.request["inputs"]
        keep = len(names) > 1
        if not self.known:
            exact = Network(self.request["files"], inputs)
            for arrays, _ in zip(samples(self.request), range(JUDGED), strict=False):
                self.known.append({name: values.copy() for name, values in exact.run(arrays, names, keep=keep)})
                if sum(v.nbytes for v in self.known[0].values()) * (len(self.known) + 1) > self.memory // 4:
                    break
        signal, noise = np.zeros(len(names)), np.full(len(names), 1e-30)
        made = Network(files, inputs)
        for arrays, exact_values in zip(samples(self.request), self.known[:count], strict=False):
            for index, (name, got) in enumerate(made.run(arrays, names, keep=keep)):
                wanted, error = exact_values[name].astype(np.float64), exact_values[name].astype(np.float64) - got
                if (axis := self.plan.judged[name]) is not None:
                    wanted = wanted - wanted.mean(axis=axis, keepdims=True)
                    error = error - error.mean(axis=axis, keepdims=True)
                signal[index] += np.square(wanted).sum()
                noise[index] += np.square(error).sum()
        ratios = 10.0 * np.log10(np.maximum(signal, 1e-30) / noise)
        return float(ratios[signal > 0.0].min()) if (signal > 0.0).any() else 0.0


if __name__ == "__main__":
    main()

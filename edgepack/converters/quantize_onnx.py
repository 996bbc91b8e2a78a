# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnxruntime==1.31.1",
#     "onnx==1.23.2",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "flatbuffers==25.12.19",
# ]
# ///
"""Quantize an ONNX model to INT8: QuantizeLinear/DequantizeLinear pairs, ranges from real samples.

Request: ``model`` (ONNX file, fixed shapes), ``samples`` (tensor folder), ``exclude`` (names of nodes that stay in
float). Writes ``model.onnx``; the result tells the share of values that was left outside the ranges and the
signal-to-noise ratio on the calibration samples.

Weights are int8 with one scale per output channel, activations uint8. Ranges are gathered sample by sample
into histograms whose range doubles as needed, so memory doesn't grow with the number of samples
(onnxruntime's own percentile calibrator keeps every activation: 4 GB for 64 photographs). How many rare values
may fall outside is tried out: no share is best for every model (0 is 16 dB better than 1e-4 for a text
classifier, 1e-4 is 4 dB better than 0 for a voice detector), and a try takes about a second.
"""

import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data

CLIPS = (0.0, 1e-5, 1e-4)  # shares of values outside the range that are tried
JUDGED = 32  # calibration samples that decide between them
BINS = 4096  # of the final histogram on each side of zero; at least half of them are in use
PICKED = 1 << 16  # values of one tensor and sample that enter the histogram; minimum and maximum see all

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators that only move or select values work on integers as they are. Sums, products and activation functions are
# not listed: ONNX Runtime fuses them to integer kernels where their neighbours are quantized anyway, and
# elsewhere (normalisations, GELU, squeeze-and-excite) quantizing them costs 3 to 17 dB and wins no time.
MOVING = (
    "AveragePool", "Clip", "Concat", "Flatten", "Gather", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Pad", "Relu",
    "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
OPERATORS = [*WEIGHTED, *MOVING]


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    logging.disable(logging.WARNING)
    out, scratch = Path(request["out"]), Path(request["scratch"])
    prepared = prepare(Path(request["model"]), scratch / "prepared.onnx")
    names = {node.name for node in prepared.graph.node}
    exclude = sorted({*request.get("exclude", []), *unquantizable(prepared)} & names)
    chosen = [n for n in prepared.graph.node if n.op_type in WEIGHTED and n.name not in exclude]
    if not chosen:
        raise SystemExit("there is nothing to quantize: the model has no Conv, ConvTranspose, Gemm or MatMul")
    samples = Path(request["samples"])
    histograms, wanted = calibrate(prepared, samples, scratch)
    best: tuple[float, float] | None = None
    for clip in CLIPS:
        made = scratch / f"clip_{clip:g}.onnx"
        quantize(scratch / "prepared.onnx", made, {n: h.range(clip) for n, h in histograms.items()}, exclude)
        ratio = signal_to_noise(made, samples, wanted)
        if best is None or ratio > best[0]:
            best = (ratio, clip)
            made.replace(out / "model.onnx")
    assert best is not None
    result = {
        "quantized": len(chosen),
        "excluded": exclude,
        "sqnr_db": round(best[0], 2),
        "clip": best[1],
        "onnxruntime": onnxruntime.__version__,
    }
    (out / "result.json").write_text(json.dumps(result))


def quantize(source: Path, target: Path, ranges: dict[str, tuple[np.ndarray, np.ndarray]], exclude: list[str]) -> None:
    data = {name: TensorData(lowest=low, highest=high) for name, (low, high) in ranges.items()}
    cache = target.with_suffix(".json")
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), cache)
    quantize_static(
        str(source),
        str(target),
        None,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OPERATORS,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=exclude,
        calibrate_method=CalibrationMethod.MinMax,
        calibration_cache_path=cache,
        extra_options={
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
            # Their kernels can write float; the next one that reads integers gets its own QuantizeLinear.
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
        },
    )


def session_of(model: Path, level: str, target: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if target is not None:
        options.optimized_model_filepath = str(target)
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise SystemExit(f"ONNX Runtime can't load this model: {' '.join(str(error).split())[:400]}") from error


def prepare(source: Path, target: Path) -> onnx.ModelProto:
    """Fold constants and batch normalisations, name every node, note every shape, and make biases vectors."""
    session_of(source, "ORT_ENABLE_BASIC", target)
    model = onnx.shape_inference.infer_shapes(onnx.load(target), data_prop=True)
    taken = {node.name for node in model.graph.node if node.name}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
    flatten_biases(model.graph)
    onnx.save(model, target)
    return model


def flatten_biases(graph: onnx.GraphProto) -> None:
    """Give every Gemm a bias of shape [N]: onnxruntime's quantizer fails on [1, N]."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] in constants:
            weight, bias = constants.get(node.input[1]), constants[node.input[2]]
            if weight is None or len(bias.dims) < 2 or any(dim != 1 for dim in bias.dims[:-1]):
                continue
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            values = np.broadcast_to(numpy_helper.to_array(bias).ravel(), weight.dims[0 if transposed else 1])
            flat = numpy_helper.from_array(np.ascontiguousarray(values), f"{bias.name}_flat_{node.name}")
            graph.initializer.append(flat)
            node.input[2] = flat.name


def unquantizable(model: onnx.ModelProto) -> list[str]:
    """Gemm nodes whose constant addend is a whole matrix: onnxruntime's quantizer takes it for a bias and fails."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Gemm"
        and len(node.input) > 2
        and node.input[2] in constants
        and len(constants[node.input[2]].dims) != 1
    ]


def calibrate(
    model: onnx.ModelProto, samples: Path, scratch: Path
) -> tuple[dict[str, "Histogram"], list[list[np.ndarray]]]:
    """Histograms of every float activation to be quantized, and the outputs of the first samples."""
    watched = float_activations(model)
    inputs = {value.name for value in model.graph.input}
    outputs = [value.name for value in model.graph.output]
    asked = list(dict.fromkeys([*outputs, *(name for name in watched if name not in inputs)]))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in outputs)
    onnx.save(copy, scratch / "watched.onnx")
    session = session_of(scratch / "watched.onnx", "ORT_ENABLE_BASIC")
    histograms = {name: Histogram() for name in watched}
    wanted = []
    for feed in feeds(session, samples):
        values = {**feed, **dict(zip(asked, session.run(asked, feed), strict=True))}
        for name, histogram in histograms.items():
            histogram.add(np.asarray(values[name]))
        if len(wanted) < JUDGED:
            wanted.append([values[name] for name in outputs])
    return histograms, wanted


def feeds(session: onnxruntime.InferenceSession, samples: Path):
    """One dictionary a sample; the arrays stay on disk until they are used."""
    names = [value.name for value in session.get_inputs()]
    arrays = [np.load(samples / f"{index}.npy", mmap_mode="r") for index in range(len(names))]
    for values in zip(*arrays, strict=True):
        yield dict(zip(names, values, strict=True))


def signal_to_noise(made: Path, samples: Path, wanted: list[list[np.ndarray]]) -> float:
    """Of the worst float output, in dB over all judged samples."""
    session = session_of(made, "ORT_ENABLE_ALL")
    count = len(wanted[0])
    signal, noise = np.zeros(count), np.full(count, 1e-30)
    for feed, reference in zip(feeds(session, samples), wanted, strict=False):
        for index, (got, value) in enumerate(zip(session.run(None, feed), reference, strict=True)):
            if value.dtype.kind == "f":
                signal[index] += np.square(value, dtype=np.float64).sum()
                noise[index] += np.square(value.astype(np.float64) - got).sum()
    ratios = 10.0 * np.log10(np.maximum(signal, 1e-30) / noise)
    return float(ratios[signal > 0.0].min()) if (signal > 0.0).any() else 0.0


def float_activations(model: onnx.ModelProto) -> list[str]:
    """Names in graph order of the float32 tensors that nodes of `OPERATORS` read or write."""
    graph = model.graph
    constant = {item.name for item in graph.initializer}
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    names: dict[str, None] = {}
    for node in graph.node:
        if node.op_type in OPERATORS:
            for name in (*node.input, *node.output):
                if name and name not in constant and known.get(name) == onnx.TensorProto.FLOAT:
                    names[name] = None
    return list(names)


class Histogram:
    """Counts of values in equal bins over [-limit, limit); `limit` is a power of two that doubles as needed."""

    def __init__(self) -> None:
        self.lowest, self.highest = np.float32(np.inf), np.float32(-np.inf)
        self.limit = 0.0
        self.counts = np.zeros(2 * BINS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the values of one sample."""
        flat = values.ravel()
        if not flat.size:
            return
        lowest, highest = flat.min(), flat.max()
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise SystemExit("a calibration sample makes the model compute NaN or infinity: it can't be quantized")
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self._cover(max(abs(float(lowest)), abs(float(highest))))
        step = -(-flat.size // PICKED)
        while math.gcd(step, flat.size) != 1 and step < flat.size:  # else it meets the same channels each time
            step += 1
        picked = flat[::step]
        index = ((picked + np.float32(self.limit)) * np.float32(BINS / self.limit)).astype(np.int32)
        self.counts += np.bincount(np.clip(index, 0, 2 * BINS - 1), minlength=2 * BINS)

    def _cover(self, largest: float) -> None:
        if not self.limit:
            self.limit = 2.0 ** float(np.ceil(np.log2(max(largest, 1e-30)) + 1e-9))
        while largest > self.limit:
            half = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(half, BINS // 2)
            self.limit *= 2.0

    def range(self, clip: float) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value, without the share `clip` of values at the two ends together."""
        lowest, highest = np.float32(self.lowest), np.float32(self.highest)
        total = self.counts.sum()
        if clip > 0.0 and total:
            below = np.cumsum(self.counts)
            width = self.limit / BINS
            first = int(np.searchsorted(below, total * clip / 2, side="right"))
            last = int(np.searchsorted(below, total * (1.0 - clip / 2), side="left"))
            lowest = max(lowest, np.float32(first * width - self.limit))
            highest = min(highest, np.float32((last + 1) * width - self.limit))
        return np.asarray(lowest, np.float32), np.asarray(highest, np.float32)


if __name__ == "__main__":
    main()

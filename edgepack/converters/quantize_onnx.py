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
float), ``clip`` (share of values outside the range, 0 for minimum and maximum). Writes ``model.onnx``.

Weights are int8 with one scale per output channel, activations uint8. Ranges are gathered sample by sample
into histograms whose range doubles as needed, so memory doesn't grow with the number of samples
(onnxruntime's own percentile calibrator keeps every activation: 4 GB for 64 photographs).
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data

BINS = 4096  # of the final histogram; at least half of them are in use
PICKED = 1 << 16  # values of one tensor and sample that enter the histogram; minimum and maximum see all

# What ONNX Runtime's CPU has integer kernels for, or what only moves values about. Softmax, the normalisations
# and recurrent layers stay in float.
OPERATORS = (
    "Add AveragePool Clip Concat Conv ConvTranspose Flatten Gather Gemm GlobalAveragePool LeakyRelu MatMul MaxPool "
    "Mul Pad Relu Reshape Resize Sigmoid Slice Split Squeeze Transpose Unsqueeze"
).split()
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    logging.disable(logging.WARNING)
    out, scratch = Path(request["out"]), Path(request["scratch"])
    prepared = prepare(Path(request["model"]), scratch / "prepared.onnx")
    names = [node.name for node in prepared.graph.node]
    exclude = [name for name in request.get("exclude", []) if name in names]
    chosen = [n for n in prepared.graph.node if n.op_type in WEIGHTED and n.name not in exclude]
    if not chosen:
        raise SystemExit("nothing to quantize: the model has no Conv, ConvTranspose, Gemm or MatMul node")
    ranges = calibrate(prepared, Path(request["samples"]), float(request.get("clip", 0.0)), scratch)
    save_tensors_data(
        TensorsData(CalibrationMethod.MinMax, {k: TensorData(lowest=lo, highest=hi) for k, (lo, hi) in ranges.items()}),
        scratch / "ranges.json",
    )
    quantize_static(
        str(scratch / "prepared.onnx"),
        str(out / "model.onnx"),
        None,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OPERATORS,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=exclude,
        calibrate_method=CalibrationMethod.MinMax,
        calibration_cache_path=scratch / "ranges.json",
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    result = {"quantized": len(chosen), "excluded": exclude, "onnxruntime": onnxruntime.__version__}
    (out / "result.json").write_text(json.dumps(result))


def prepare(source: Path, target: Path) -> onnx.ModelProto:
    """Fold constants and batch normalisations, name every node, and note every shape."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise SystemExit(f"ONNX Runtime can't load this model: {' '.join(str(error).split())[:400]}") from error
    model = onnx.shape_inference.infer_shapes(onnx.load(target), data_prop=True)
    taken = {node.name for node in model.graph.node if node.name}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
    onnx.save(model, target)
    return model


def calibrate(
    model: onnx.ModelProto, samples: Path, clip: float, scratch: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The range of every float activation that a node to be quantized reads or writes."""
    watched = float_activations(model)
    inputs = {value.name for value in model.graph.input}
    asked = [name for name in watched if name not in inputs]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in present)
    onnx.save(copy, scratch / "watched.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(scratch / "watched.onnx"), options, providers=["CPUExecutionProvider"])
    fed = [value.name for value in session.get_inputs()]
    histograms = {name: Histogram() for name in watched}
    arrays = [np.load(samples / f"{i}.npy", mmap_mode="r") for i in range(len(fed))]
    for values in zip(*arrays, strict=True):
        feed = dict(zip(fed, values, strict=True))
        for name, value in {**feed, **dict(zip(asked, session.run(asked, feed), strict=True))}.items():
            if name in histograms:
                histograms[name].add(np.asarray(value))
    return {name: histogram.range(clip) for name, histogram in histograms.items()}


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
        flat = values.ravel()
        if not flat.size:
            return
        lowest, highest = flat.min(), flat.max()
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise SystemExit("a calibration sample makes the model compute NaN or infinity: it can't be quantized")
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self._cover(max(abs(float(lowest)), abs(float(highest))))
        step = -(-flat.size // PICKED) | 1  # odd, so that it doesn't always meet the same channel
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

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ai-edge-quantizer==0.10.0",
#     "ai-edge-litert==2.3.0",
#     "litert-lm-builder==0.18.1",
#     "absl-py==2.5.1",
#     "backports-strenum==1.3.1",
#     "flatbuffers==25.12.19",
#     "immutabledict==4.3.1",
#     "ml-dtypes==0.6.0",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "scipy==1.17.1",
#     "tqdm==4.70.1",
#     "typing-extensions==4.16.0",
# ]
# ///
"""Quantize a float32 .tflite with ai-edge-quantizer.

Request: ``model`` (the float32 file), ``precision``: ``int8`` (weights and activations; ranges from ``samples``, a
tensor folder in the file's own layout, with ``inputs``, the tensor names in its order) or ``fp16`` (weights stored as
float16 and widened at run time, float32 at the surface). Writes ``model.tflite``; the result's ``inputs`` and
``outputs`` tell, for each name of the float file, the name, dtype, scale and zero point in the new one.

The tool's own calibration smooths minimum and maximum over the samples, which cuts what few samples have. Ranges are
gathered and chosen here as in quantize_onnx.py, and as there, what rounding the weights does to the mean of each
output channel is taken out of the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

Three recipes are tried in this order until one is good:
``full`` (everything in integers), ``lean`` (sums, products and activation functions in float: what
normalisations and squeeze-and-excite need) and ``dynamic`` (int8 weights, activations quantized as they come).
"""

import dataclasses
import json
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor
from ai_edge_quantizer.qtyping import (
    BuiltinOperator,
    ComputePrecision,
    OperatorT,
    OpQuantizationConfig,
    TensorDataType,
    TensorQuantizationConfig,
    TensorType,
    TFLOperationName,
)
from ai_edge_quantizer.transformations import transformation_utils
from ai_edge_quantizer.utils import tfl_flatbuffer_utils, tfl_interpreter_utils

sys.path.insert(0, str(Path(__file__).parent))
from activations import Seen, room, rows

RANGES = (None, 1e-4, 0.0)  # least squared error, or the share of values left outside; tried in this order
JUDGED = 32  # calibration samples that decide between them
SMALLEST = 256  # values; a smaller constant isn't worth a float16 copy
BEST = 25.0  # dB; from here on the differences between ranges are chance
GOOD = 16.0  # dB; below it the next recipe is tried
HOPELESS = 8.0  # dB; a recipe that starts below it isn't tried further
CLEARLY = {"ranges": 0.5, "recipe": 1.0}  # dB by which a later try must be better

INTEGERS = (TensorType.INT8, TensorType.INT16)
SURFACE = ("INPUT", "OUTPUT")
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED")
MOVING = (
    "AVERAGE_POOL_2D", "CONCATENATION", "GATHER", "GATHER_ND", "MAX_POOL_2D", "MIRROR_PAD", "PACK", "PAD", "PADV2",
    "RELU", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPACE_TO_DEPTH", "SPLIT",
    "STRIDED_SLICE", "TRANSPOSE", "UNPACK",
)  # fmt: skip
TABLES = ("GATHER",)  # embedding tables
# Not quantized by any recipe: divisions, roots and differences, whose results need more than 256 steps.
COMPUTING = (
    "ADD", "BATCH_MATMUL", "GELU", "HARD_SWISH", "LOGISTIC", "MAXIMUM", "MEAN", "MUL", "SOFTMAX", "TANH",
)  # fmt: skip


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    facts: dict = {}
    try:
        data = fp16(request["model"]) if request["precision"] == "fp16" else int8(request, facts)
    except Exception as error:
        raise SystemExit(f"ai-edge-quantizer can't quantize this model: {one_line(error)}") from error
    (out / "model.tflite").write_bytes(data)
    before, after = Interpreter(request["model"]), load(data)
    result = {
        **facts,
        "inputs": surface(before.get_input_details(), after.get_input_details()),
        "outputs": surface(before.get_output_details(), after.get_output_details()),
        "float": in_float(data),
        "ai_edge_quantizer": version("ai-edge-quantizer"),
    }
    (out / "result.json").write_text(json.dumps(result))


def in_float(data: bytes) -> list[str]:
    """Operators that compute in float, by their type and the name of their first output."""
    flat = schema.Model.GetRootAs(data)
    names = {code: name for name, code in vars(BuiltinOperator).items() if not name.startswith("_")}
    found = []
    for graph in (flat.Subgraphs(index) for index in range(flat.SubgraphsLength())):
        for operator in (graph.Operators(index) for index in range(graph.OperatorsLength())):
            kind = names[flat.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()]
            result = graph.Tensors(operator.Outputs(0))
            if result.Type() == TensorType.FLOAT32 and kind != "DEQUANTIZE":
                found.append(f"{kind} {result.Name().decode()}")
    return found


def fp16(model: str) -> bytes:
    weights = TensorQuantizationConfig(num_bits=16, dtype=TensorDataType.FLOAT)
    config = OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=ComputePrecision.FLOAT, explicit_dequantize=True
    )
    worker = quantizer.Quantizer(halve_tables(model))
    worker.update_quantization_recipe(".*", TFLOperationName.ALL_SUPPORTED, config, AlgorithmName.FLOAT_CASTING)
    return bytes(worker.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def halve_tables(model: str) -> bytes:
    """Store as float16 what the tool leaves in float32: the large constants of any other operator."""
    flat = tfl_flatbuffer_utils.read_model(model)
    weighted = {getattr(BuiltinOperator, name, None) for name in (*WEIGHTED, "TRANSPOSE_CONV")}
    for graph in flat.subgraphs:
        kept = {
            index
            for operator in graph.operators
            if flat.operatorCodes[operator.opcodeIndex].builtinCode in weighted
            for index in operator.inputs
        }
        used = {index for operator in graph.operators for index in operator.inputs}
        shared = Counter(tensor.buffer for tensor in graph.tensors)
        for index in sorted(used - kept - set(graph.outputs) - {-1}):
            tensor = graph.tensors[index]
            buffer = flat.buffers[tensor.buffer]
            if tensor.type != TensorType.FLOAT32 or buffer.data is None or shared[tensor.buffer] > 1:
                continue
            full = np.frombuffer(bytes(buffer.data), np.float32)
            if full.size < SMALLEST or np.abs(full).max() > np.finfo(np.float16).max:
                continue
            wide = transformation_utils.add_new_activation_tensor(
                tensor.name + b"_wide", tensor.shape, TensorType.FLOAT32, graph
            )
            for operator in graph.operators:
                operator.inputs = [wide if number == index else number for number in operator.inputs]
            widen = OperatorT()
            widen.opcodeIndex = transformation_utils.add_op_code(BuiltinOperator.DEQUANTIZE, flat.operatorCodes)
            widen.inputs, widen.outputs = [index], [wide]
            graph.operators.insert(0, widen)
            tensor.type = TensorType.FLOAT16
            buffer.data = np.frombuffer(full.astype(np.float16).tobytes(), np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(flat))


def int8(request: dict, facts: dict) -> bytes:
    uniform_quantize_tensor.uniform_quantize = of_any_rank(uniform_quantize_tensor.uniform_quantize)
    layers = weighted(request["model"])
    histograms, wanted = calibrate(request)
    best: tuple[float, str, float | None, bytes] | None = None
    for name, rules in recipes().items():
        for clip, data in candidates(request, rules, histograms, layers):
            try:
                ratio = signal_to_noise(data, request, wanted)
            except RuntimeError:  # an integer kernel that refuses these values; the next recipe leaves it alone
                break
            if best is None or ratio > best[0] + CLEARLY["ranges" if name == best[1] else "recipe"]:
                best = (ratio, name, clip, data)
            if ratio < HOPELESS or best[0] >= BEST:
                break
        if best is not None and best[0] >= GOOD:
            break
    if best is None:
        raise ValueError("no recipe fits its operators")
    facts.update(sqnr_db=round(best[0], 2), recipe=best[1], clip=best[2])
    return best[3]


def recipes() -> dict[str, list]:
    """What to quantize and how, in the tool's terms."""
    full, lean, dynamic = (recipe_manager.RecipeManager() for _ in range(3))
    for operator in TFLOperationName:
        if operator.value in (*SURFACE, *WEIGHTED, *MOVING, *COMPUTING):
            full.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
        if operator.value in (*WEIGHTED, *MOVING):
            lean.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
        if operator.value in WEIGHTED:
            dynamic.add_dynamic_config(".*", operator, num_bits=8)
        if operator.value in TABLES:
            dynamic.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
    recipes = {"full": full, "lean": lean, "dynamic": dynamic}
    return {name: manager.get_quantization_recipe() for name, manager in recipes.items()}


def candidates(request: dict, rules: list, histograms: dict[str, Seen], layers: dict[bytes, "Layer"]):
    """Every try of one recipe: the share of values left outside, and the file."""
    worker = quantizer.Quantizer(request["model"], rules)
    ranges = {}
    if worker.need_calibration:  # one sample shows which tensors the recipe asks about, and in what shape
        ranges = worker.calibrate({signature(request["model"]): [next(feeds(request))]}, num_threads=1)
    for clip in RANGES:
        for name in ranges.keys() & histograms.keys():
            low, high = histograms[name].range(clip)
            shape = np.shape(ranges[name]["min"])
            ranges[name] = {**ranges[name], "min": np.full(shape, low), "max": np.full(shape, high)}
        try:
            result = worker.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        except (RuntimeError, ValueError):  # an operator that can't be quantized; the next recipe leaves it alone
            return
        yield clip, bytes(correct(bytearray(result.quantized_model), layers, histograms))
        if not ranges.keys() & histograms.keys():
            return


@dataclasses.dataclass
class Layer:
    """A layer with constant weights in the float file."""

    kind: int
    weights: np.ndarray
    input: str


def weighted(model: str) -> dict[bytes, Layer]:
    """Convolutions and fully connected layers by the name of their weights; those that share them are left out."""
    flat = schema.Model.GetRootAs(Path(model).read_bytes())
    found: dict[bytes, Layer] = {}
    uses: Counter[bytes] = Counter()
    for kind, inputs, _, graph in correctable(flat):
        weights = graph.Tensors(inputs[1])
        buffer = flat.Buffers(weights.Buffer())
        if weights.Type() == TensorType.FLOAT32 and (buffer.DataLength() or buffer.Size()):
            values = stored(flat, weights, np.float32).reshape(weights.ShapeAsNumpy())
            if not np.isfinite(values).all():
                raise ValueError(f"the weights {weights.Name().decode()} hold NaN or infinity")
            found[weights.Name()] = Layer(kind, values, graph.Tensors(inputs[0]).Name().decode())
            uses[weights.Name()] += 1
    return {name: layer for name, layer in found.items() if uses[name] == 1}


def correctable(flat):
    """Operator code, inputs, uses of each tensor and graph of every layer whose bias can be corrected."""
    codes = (BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D, BuiltinOperator.FULLY_CONNECTED)
    for graph in (flat.Subgraphs(index) for index in range(flat.SubgraphsLength())):
        operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
        uses = Counter(int(index) for operator in operators for index in operator.InputsAsNumpy())
        for operator in operators:
            kind = flat.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
            if kind in codes:
                yield kind, [int(index) for index in operator.InputsAsNumpy()], uses, graph


def stored(flat, tensor, dtype: type) -> np.ndarray:
    """A constant's values: a view of the file's bytes. Large ones lie behind the flatbuffer itself."""
    buffer = flat.Buffers(tensor.Buffer())
    if buffer.Offset() > 1:
        return np.frombuffer(buffer._tab.Bytes, np.uint8, buffer.Size(), buffer.Offset()).view(dtype)
    return buffer.DataAsNumpy().view(dtype)


def correct(data: bytearray, layers: dict[bytes, Layer], seen: dict[str, Seen]) -> bytearray:
    """Take what rounding the weights adds to the output on average out of each bias of the file, in place."""
    flat = schema.Model.GetRootAs(data)
    graphs = [flat.Subgraphs(index) for index in range(flat.SubgraphsLength())]
    tensors = [graph.Tensors(index) for graph in graphs for index in range(graph.TensorsLength())]
    for tensor in tensors:
        scale = tensor.Quantization().ScaleAsNumpy() if tensor.Quantization() is not None else 1.0
        if tensor.Type() in INTEGERS and not (np.isfinite(scale).all() and np.all(scale > 0)):
            raise ValueError(f"it gave {tensor.Name().decode()} a scale of 0, infinity or NaN")
    shared = Counter(tensor.Buffer() for tensor in tensors)
    for kind, inputs, uses, graph in correctable(flat):
        weights = graph.Tensors(inputs[1])
        layer = layers.get(weights.Name())
        mean = seen[layer.input].mean() if layer is not None and layer.input in seen else None
        if layer is None or mean is None or weights.Type() != TensorType.INT8:
            continue
        if len(inputs) < 3 or inputs[2] < 0 or uses[inputs[2]] > 1:
            continue
        bias = graph.Tensors(inputs[2])
        shift = mean_error(kind, layer.weights, widened_weights(flat, weights), mean)
        if shift is None or shared[bias.Buffer()] > 1:
            continue
        if bias.Type() == TensorType.INT32:
            values, limits = stored(flat, bias, np.int32), np.iinfo(np.int32)
            steps = np.rint(shift / bias.Quantization().ScaleAsNumpy().astype(np.float64))
            values[:] = np.clip(values - steps, limits.min, limits.max)
        elif bias.Type() == TensorType.FLOAT32:
            stored(flat, bias, np.float32)[:] -= shift.astype(np.float32)
    return data


def widened_weights(flat, tensor) -> np.ndarray:
    integers = stored(flat, tensor, np.int8).reshape(tensor.ShapeAsNumpy())
    scale = tensor.Quantization().ScaleAsNumpy().astype(np.float64)
    axis = tensor.Quantization().QuantizedDimension()
    return integers * scale.reshape([-1 if index == axis else 1 for index in range(integers.ndim)])


def mean_error(kind: int, exact: np.ndarray, rounded: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """What the error of the weights adds to each output channel, from the means of the input's channels."""
    if exact.shape != rounded.shape:
        return None
    error = rounded - exact
    if kind == BuiltinOperator.DEPTHWISE_CONV_2D:  # [1, height, width, channels * multiplier]
        sums = error.sum(axis=(0, 1, 2))
        return None if len(sums) % len(mean) else sums * np.repeat(mean, len(sums) // len(mean))
    sums = error.reshape(len(error), -1, error.shape[-1]).sum(axis=1)  # [outputs, inputs of one group]
    groups = len(mean) // sums.shape[1]
    if groups * sums.shape[1] != len(mean) or not groups or len(sums) % groups:
        return None
    parts = np.einsum("goc,gc->go", sums.reshape(groups, -1, sums.shape[1]), mean.reshape(groups, -1))
    return parts.reshape(-1)


def of_any_rank(uniform_quantize):
    """ai-edge-quantizer 0.10.0 refuses one scale for a constant of another rank, such as a Pad's value."""

    def wrapped(data, params, *rest, **more):
        if np.size(params.scale) == 1 and np.ndim(params.scale) != np.ndim(data):
            one = (1,) * np.ndim(data)
            scale, zero = np.reshape(params.scale, one), np.reshape(params.zero_point, one)
            params = dataclasses.replace(params, scale=scale, zero_point=zero)
        return uniform_quantize(data, params, *rest, **more)

    return wrapped


def calibrate(request: dict) -> tuple[dict[str, Seen], list[list[np.ndarray]]]:
    """Histograms of every float activation, and the outputs of the first samples."""
    interpreter = tfl_interpreter_utils.create_tfl_interpreter(
        request["model"], use_xnnpack=True, num_threads=1, preserve_all_tensors=True
    )
    inputs = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    outputs = [detail["index"] for detail in interpreter.get_output_details()]
    constant = constants(request["model"])
    watched = {
        detail["name"]: (detail["index"], Seen(detail["name"], -1))
        for detail in interpreter.get_tensor_details()
        if detail["name"] and detail["name"] not in constant and detail["dtype"] is np.float32
    }
    wanted = []
    for feed in feeds(request):
        for name, value in feed.items():
            interpreter.set_tensor(inputs[name], value)
        interpreter.invoke()
        for name, (index, histogram) in list(watched.items()):
            try:
                histogram.add(interpreter.get_tensor(index))
            except ValueError:  # a temporary without content
                del watched[name]
        if room(wanted, JUDGED, request["int8"]["memory_mb"]):
            wanted.append([interpreter.get_tensor(index) for index in outputs])
    return {name: histogram for name, (_, histogram) in watched.items()}, wanted


def constants(model: str) -> set[str]:
    flat = tfl_flatbuffer_utils.read_model(model)
    return {
        tensor.name.decode() if isinstance(tensor.name, bytes) else tensor.name
        for graph in flat.subgraphs
        for tensor in graph.tensors
        if flat.buffers[tensor.buffer].data is not None
    }


def signal_to_noise(data: bytes, request: dict, wanted: list[list[np.ndarray]]) -> float:
    """Of the worst float output, in dB over all judged samples."""
    interpreter = load(data)
    inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
    outputs = interpreter.get_output_details()
    signal, noise = np.zeros(len(outputs)), np.full(len(outputs), 1e-30)
    for feed, reference in zip(feeds(request), wanted, strict=False):
        for name, value in feed.items():
            interpreter.set_tensor(inputs[name]["index"], quantized(value, inputs[name]))
        interpreter.invoke()
        for number, (detail, value) in enumerate(zip(outputs, reference, strict=True)):
            if value.dtype.kind == "f":
                got = widened(interpreter.get_tensor(detail["index"]), detail)
                signal[number] += np.square(value, dtype=np.float64).sum()
                noise[number] += np.square(value.astype(np.float64) - got).sum()
    ratios = 10.0 * np.log10(np.maximum(signal, 1e-30) / noise)
    return float(ratios[signal > 0.0].min()) if (signal > 0.0).any() else 0.0


def quantized(value: np.ndarray, detail: dict) -> np.ndarray:
    scale, zero = detail["quantization"]
    if not scale or value.dtype.kind != "f":
        return value.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(value / np.float32(scale)) + zero, limits.min, limits.max).astype(detail["dtype"])


def widened(value: np.ndarray, detail: dict) -> np.ndarray:
    scale, zero = detail["quantization"]
    return (value.astype(np.float64) - zero) * scale if scale else value.astype(np.float64)


def load(data: bytes) -> Interpreter:
    try:
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
    except Exception as error:
        raise SystemExit(f"what ai-edge-quantizer wrote cannot be loaded by LiteRT: {one_line(error)}") from error
    return interpreter


def signature(model: str) -> str:
    names = list(Interpreter(model).get_signature_list())
    if len(names) != 1:
        raise ValueError(f"the file has {len(names)} signatures, one is needed")
    return names[0]


def feeds(request: dict):
    """One dictionary a sample."""
    names = request["inputs"]
    for values in zip(*(rows(Path(request["samples"], f"{i}.npy")) for i in range(len(names))), strict=True):
        yield dict(zip(names, values, strict=True))


def surface(before: list[dict], after: list[dict]) -> dict[str, dict]:
    """What became of the float file's inputs or outputs, by their names there; the order stays, names may not."""
    if len(before) != len(after):
        raise SystemExit(f"ai-edge-quantizer wrote {len(after)} inputs or outputs, the file had {len(before)}")
    return {old["name"]: described(new) for old, new in zip(before, after, strict=True)}


def described(detail: dict) -> dict:
    scale, zero = detail["quantization"]
    dtype = np.dtype(detail["dtype"]).name
    measured = dtype in ("int8", "uint8", "int16") and scale > 0
    return {
        "name": detail["name"],
        "dtype": dtype,
        "scale": float(scale) if measured else None,
        "zero_point": int(zero) if measured else 0,
    }


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


if __name__ == "__main__":
    main()

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
tensor folder in the file's own layout, with ``inputs``, the tensor names in its order, ``int8``, the fields of
Int8Options, ``layers``: names in the file -> first outputs of the source's nodes, ``scales``: those that a quantized
source brings, see `qdq_pairs`, and ``recipes``: the only ones to try) or ``fp16`` (weights stored as float16 and
widened at run time, float32 at the surface). Writes ``model.tflite``; the result's ``inputs`` and ``outputs`` tell, for
each name of the float file, the name, dtype, scale and zero point in the new one.

The tool's own calibration smooths minimum and maximum over the samples, which cuts what few samples have. Ranges are
gathered and chosen here as in quantize_onnx.py, and as there, what rounding the weights does to the mean of each
output channel is taken out of the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

Three recipes are tried in this order until one is good:
``full`` (everything in integers), ``lean`` (sums, products and activation functions in float: what
normalisations and squeeze-and-excite need) and ``dynamic`` (int8 weights, activations quantized as they come). The
effort ``fast`` takes the first recipe that works and the first rule for ranges; ``high`` tries the first two always,
and weights that are rounded for the least error of sums (`tflite_rounding`).

A source's own scales are kept (`tflite_scales`): of tensors without one the range is measured, layers whose weights
have none stay in float, and no bias is corrected.

16-bit activations run on LiteRT's reference kernels only (PP-OCR cls takes 17 times as long as in float): layers
that are to be `wide` stay in float.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor
from ai_edge_quantizer.qtyping import BuiltinOperator, TensorType, TFLOperationName
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

sys.path.insert(0, str(Path(__file__).parent))
from activations import Seen
from tflite_fp16 import fp16
from tflite_reading import readable
from tflite_rounding import optimise
from tflite_running import beside_xnnpack, calibrate, feeds, load, one_line, signal_to_noise, signature
from tflite_scales import Fixed, exactly, given_weights, kept, with_given
from tflite_weights import Chosen, Layer, correct, weighted
from tflite_writing import compact

RANGES = ("mse", "percentile", "minmax")  # tried in this order
HOPELESS = 8.0  # dB; a recipe that starts below it isn't tried further
BEST = {"normal": 25.0, "high": 60.0}  # dB; from here on the differences between ranges are chance
GOOD = {"normal": 16.0, "high": 30.0}  # dB; below it the next recipe is tried
CLEARLY = {"ranges": 0.5, "recipe": 1.0}  # dB by which a later try must be better

SURFACE = ("INPUT", "OUTPUT")
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED")
MOVING = (
    "AVERAGE_POOL_2D", "CONCATENATION", "GATHER", "GATHER_ND", "MAX_POOL_2D", "MIRROR_PAD", "PACK", "PAD", "PADV2",
    "RELU", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPACE_TO_DEPTH", "SPLIT",
    "STRIDED_SLICE", "TRANSPOSE", "UNPACK",
)  # fmt: skip
TABLES = ("GATHER",)  # embedding tables
# Not quantized by any recipe: divisions, roots and differences, whose results need more than 256 steps, and SOFTMAX,
# which XNNPACK has in float only.
COMPUTING = ("ADD", "BATCH_MATMUL", "GELU", "HARD_SWISH", "LOGISTIC", "MAXIMUM", "MEAN", "MUL", "TANH")


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    facts: dict = {}
    try:
        request["model"] = readable(request["model"], Path(request["scratch"]))
        data = fp16(request["model"]) if request["precision"] == "fp16" else int8(request, facts)
    except Exception as error:
        raise SystemExit(f"ai-edge-quantizer can't quantize this model: {one_line(error)}") from error
    data = compact(data)
    (out / "model.tflite").write_bytes(data)
    before, after = Interpreter(request["model"]), load(data)
    result = {
        **facts,
        "inputs": surface(before.get_input_details(), after.get_input_details()),
        "outputs": surface(before.get_output_details(), after.get_output_details()),
        "float": in_float(data),
        "beside_xnnpack": beside_xnnpack(data),
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


class Try(NamedTuple):
    """A file that was written, and how near it is on the calibration samples."""

    ratio: float
    recipe: str
    rule: str | None
    data: bytes


def int8(request: dict, facts: dict) -> bytes:
    """The quantized file; `facts` get what was chosen."""
    uniform_quantize_tensor.uniform_quantize = of_any_rank(uniform_quantize_tensor.uniform_quantize)
    options = request["int8"]
    rules = RANGES if options["ranges"] == "auto" else (options["ranges"],)
    scopes, found = floating(request, {*options["keep_float"], *options["wide"]})
    layers = weighted(request["model"])
    histograms, wanted = calibrate(request)
    facts.update(kept_float=found, rounding="nearest")
    if request.get("scales"):
        return with_own_scales(request, scopes, layers, histograms, wanted, facts)
    tried = recipes(scopes, options["surface"])
    if request.get("recipes"):
        tried = {name: tried[name] for name in request["recipes"]}
    if options["effort"] == "fast":
        return first(request, tried, rules[0], histograms, layers, facts)
    # Where layers stay in float, a gate was missed that is higher than what is good for most.
    good = dict.fromkeys(GOOD, GOOD["high"]) if found else GOOD
    best = search(request, tried, rules, histograms, layers, wanted, options["effort"], good)
    if best is None:
        raise ValueError("no recipe fits its operators")
    if options["effort"] == "high":
        chosen = optimise(request, layers, options["memory_mb"])
        again = (best.rule,) if best.rule is not None else rules[:1]
        for _, data in candidates(request, tried[best.recipe], again, histograms, layers, chosen):
            ratio = signal_to_noise(data, request, wanted)
            if ratio > best.ratio:
                best = Try(ratio, best.recipe, best.rule, data)
                facts["rounding"] = "compensated"
    facts.update(sqnr_db=round(best.ratio, 2), recipe=best.recipe, ranges=best.rule)
    return best.data


def with_own_scales(
    request: dict,
    scopes: list[str],
    layers: dict[bytes, Layer],
    histograms: dict[str, Seen],
    wanted: list[list[np.ndarray]],
    facts: dict,
) -> bytes:
    """The file with the scales that the source brings; only what has none is chosen here."""
    scales = request["scales"]
    chosen = given_weights(layers, scales["weights"])
    known = with_given(histograms, scales["activations"])
    in_float = [*scopes, *scopes_of(request, layers.keys() - chosen.keys())]
    in_integers = recipes(in_float, request["int8"]["surface"])
    del in_integers["dynamic"]
    best: Try | None = None
    for name, recipe in in_integers.items():
        for _, data in candidates(request, recipe, ("minmax",), known, layers, chosen):
            try:
                ratio = signal_to_noise(data, request, wanted)
            except RuntimeError:
                break
            if best is None or ratio > best.ratio + CLEARLY["recipe"]:
                best = Try(ratio, name, None, data)
    if best is None:
        raise ValueError("no recipe fits its operators")
    same, other = kept(best.data, scales["activations"])
    facts.update(
        sqnr_db=round(best.ratio, 2), recipe=best.recipe, ranges="given", own_scales=same, other_scales=other,
        asymmetric=scales["asymmetric"],
    )  # fmt: skip
    return best.data


def scopes_of(request: dict, weights: Collection[bytes]) -> list[str]:
    """Patterns of the operators that read these weights."""
    flat = tfl_flatbuffer_utils.read_model(request["model"])
    return [
        "^" + re.escape(tfl_flatbuffer_utils.get_tensor_name(graph.tensors[operator.outputs[0]])) + ";"
        for graph in flat.subgraphs
        for operator in graph.operators
        if len(operator.inputs) > 1 and graph.tensors[operator.inputs[1]].name in weights
    ]


def first(
    request: dict,
    tried: dict[str, list],
    rule: str,
    histograms: dict[str, Seen],
    layers: dict[bytes, Layer],
    facts: dict,
) -> bytes:
    """The first recipe that the tool and LiteRT take, unjudged."""
    for name, rules in tried.items():
        for _, data in candidates(request, rules, (rule,), histograms, layers, {}):
            try:
                signal_to_noise(data, request, [])
            except RuntimeError:
                continue
            facts.update(sqnr_db=None, recipe=name, ranges=rule)
            return data
    raise ValueError("no recipe fits its operators")


def search(
    request: dict,
    tried: dict[str, list],
    rules: tuple[str, ...],
    histograms: dict[str, Seen],
    layers: dict[bytes, Layer],
    wanted: list[list[np.ndarray]],
    effort: str,
    good: dict[str, float],
) -> Try | None:
    """The best recipe and rule; a later one must be clearly better. `good` is when no other recipe is tried."""
    best: Try | None = None
    for name, recipe in tried.items():
        for rule, data in candidates(request, recipe, rules, histograms, layers, {}):
            try:
                ratio = signal_to_noise(data, request, wanted)
            except RuntimeError:  # an integer kernel that refuses these values; the next recipe leaves it alone
                break
            if best is None or ratio > best.ratio + CLEARLY["ranges" if name == best.recipe else "recipe"]:
                best = Try(ratio, name, rule, data)
            if ratio < HOPELESS or best.ratio >= BEST[effort]:
                break
        enough = good["normal" if name == "lean" else effort]  # `dynamic` isn't all integers: for want of better only
        if best is not None and best.ratio >= enough:
            break
    return best


def floating(request: dict, names: set[str]) -> tuple[list[str], list[str]]:
    """Patterns of the operators that these layers became, and which of the layers were found.

    onnx2tf names what belongs to a node NODE_something, and a result TENSOR or TENSOR_something.
    """
    asked = {new: old for new, old in request["layers"].items() if old in names}
    if not asked:
        return [], []
    flat = tfl_flatbuffer_utils.read_model(request["model"])
    patterns, found = [], set()
    for graph in flat.subgraphs:
        for operator in graph.operators:
            inputs, outputs = (
                [tfl_flatbuffer_utils.get_tensor_name(graph.tensors[index]) for index in indices if index >= 0]
                for indices in (operator.inputs, operator.outputs)
            )
            parts = [name for name in inputs if re.match(r"n\d+_\d+_(?!input|output)", name)]
            owners = {re.match(r"n\d+_\d+", name).group() for name in parts} | {
                re.match(r"[^_]*", name).group() for name in outputs
            }
            if owners & asked.keys():
                found |= {asked[owner] for owner in owners & asked.keys()}
                patterns.append("^" + re.escape(outputs[0]) + ";")
    return patterns, sorted(found)


def recipes(floating: list[str], surface: str) -> dict[str, list]:
    """What to quantize and how, in the tool's terms; operators of the patterns `floating` are left alone.

    Inputs and outputs are integers in `full`, where `surface` says so.
    """
    full, lean, dynamic = (recipe_manager.RecipeManager() for _ in range(3))
    for operator in TFLOperationName:
        if operator.value in (*WEIGHTED, *MOVING, *COMPUTING) or (surface == "int8" and operator.value in SURFACE):
            full.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
        if operator.value in (*WEIGHTED, *MOVING):
            lean.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
        if operator.value == "DEPTHWISE_CONV_2D":
            dynamic.add_weight_only_config(".*", operator, num_bits=8)
        elif operator.value in WEIGHTED:
            dynamic.add_dynamic_config(".*", operator, num_bits=8)
        if operator.value in TABLES:
            dynamic.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
    for pattern in floating:
        for manager in (full, lean, dynamic):
            manager.add_quantization_config(
                pattern, TFLOperationName.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE
            )
    recipes = {"full": full, "lean": lean, "dynamic": dynamic}
    return {name: manager.get_quantization_recipe() for name, manager in recipes.items()}


def candidates(
    request: dict,
    recipe: list,
    rules: tuple[str, ...],
    histograms: Mapping[str, Seen | Fixed],
    layers: dict[bytes, Layer],
    chosen: Chosen,
):
    """Every try of one recipe: the rule for ranges (None where it needs no ranges), and the file."""
    worker = quantizer.Quantizer(request["model"], recipe)
    ranges = {}
    if worker.need_calibration:  # one sample shows which tensors the recipe asks about, and in what shape
        ranges = worker.calibrate({signature(request["model"]): [next(feeds(request))]}, num_threads=1)
    known = sorted(ranges.keys() & histograms.keys())
    for rule in rules if known else (None,):
        for name in known:
            low, high = histograms[name].chosen(rule)
            shape = np.shape(ranges[name]["min"])
            ranges[name] = {**ranges[name], "min": np.full(shape, low), "max": np.full(shape, high)}
        try:
            result = worker.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        except (RuntimeError, ValueError):  # an operator that can't be quantized; the next recipe leaves it alone
            return
        data = exactly(bytearray(result.quantized_model), histograms)
        yield rule, bytes(correct(data, layers, histograms, chosen))


def of_any_rank(uniform_quantize):
    """ai-edge-quantizer 0.10.0 refuses one scale for a constant of another rank, such as a Pad's value."""

    def wrapped(data, params, *rest, **more):
        if np.size(params.scale) == 1 and np.ndim(params.scale) != np.ndim(data):
            one = (1,) * np.ndim(data)
            scale, zero = np.reshape(params.scale, one), np.reshape(params.zero_point, one)
            params = dataclasses.replace(params, scale=scale, zero_point=zero)
        return uniform_quantize(data, params, *rest, **more)

    return wrapped


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


if __name__ == "__main__":
    main()

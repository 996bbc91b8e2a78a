"""Run a .tflite on samples: what its activations are, and how far its outputs are from others."""

from pathlib import Path

import numpy as np
from activations import Seen, room, rows
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer.utils import tfl_flatbuffer_utils, tfl_interpreter_utils

JUDGED = 32  # calibration samples that decide between candidates


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


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def beside_xnnpack(data: bytes) -> list[str]:
    """Operators that LiteRT's own kernels compute because XNNPACK doesn't take them: type and first output.

    After loading, LiteRT lists the file's operators and one DELEGATE for each part that XNNPACK took: what lies
    between the inputs and outputs of such a part is XNNPACK's.
    """
    interpreter = load(data)
    operators = interpreter._get_ops_details()
    names = {detail["index"]: detail["name"] for detail in interpreter.get_tensor_details()}
    own = [operator for operator in operators if operator["op_name"] != "DELEGATE"]
    makers = {int(index): place for place, operator in enumerate(own) for index in operator["outputs"]}
    taken: set[int] = set()
    for part in operators:
        if part["op_name"] != "DELEGATE":
            continue
        reached = {int(index) for index in part["inputs"]}
        waiting = [int(index) for index in part["outputs"]]
        while waiting:
            index = waiting.pop()
            if index in reached or index not in makers:
                continue
            reached.add(index)
            taken.add(makers[index])
            waiting += [int(source) for source in own[makers[index]]["inputs"]]
    return [
        f"{operator['op_name']} {names[int(operator['outputs'][0])]}"
        for place, operator in enumerate(own)
        if place not in taken
    ]

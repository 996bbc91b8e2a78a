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
"""Say what ncnn itself makes of every layer of an INT8 model, held against ncnn's float model.

Request: ``float`` and ``int8`` (.param and .bin of each), ``inputs`` (blob names), ``samples`` (tensor folder in ncnn's
own shapes), ``count`` (at most so many of them, evenly spaced), and of quantize_ncnn.py's result ``names``,
``quantized``, ``codings`` and ``evened`` (what each channel of a blob was divided by). The result's ``layers`` hold
for each ONNX layer what `int8_errors.Compared` tells.

A blob between quantized convolutions is int8, which ncnn hands out as whole numbers in float32. One that has a zero
point is, where its reader makes the integers, float less that constant. Both become what their reader takes them for.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from int8_errors import Compared, evenly
from ncnn_files import Layer, read_param
from ncnn_watch import Network, samples

COPIES = ("Split",)  # tops are copies of the bottom


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    layers = read_param(Path(request["float"][0]).read_text("utf-8"))
    codings = request["codings"]
    rows = {layer.name: layer for layer in layers if layer.name in request["names"]}
    reads = {name: origin(layers, layer.bottoms[0]) for name, layer in rows.items()}
    found = {
        name: Compared(
            how(layer, request), span(codings.get(reads[name]) if layer.name in request["quantized"] else None)
        )
        for name, layer in rows.items()
    }
    gives = {layer.tops[0] for layer in rows.values()}
    exact, made = Network(request["float"], request["inputs"]), Network(request["int8"], request["inputs"])
    for arrays in evenly(
        samples(request), len(np.load(Path(request["samples"], "0.npy"), mmap_mode="r")), request["count"]
    ):
        wanted = list(dict.fromkeys([*gives, *reads.values()]))
        values = {name: divided(v, request["evened"].get(name)) for name, v in exact.run(arrays, wanted, keep=True)}
        got = {name: decoded(value, codings.get(name)) for name, value in made.run(arrays, sorted(gives), keep=True)}
        for name, layer in rows.items():
            found[name].add(values[reads[name]], values[layer.tops[0]], got[layer.tops[0]])
    result = {"layers": {request["names"][name]: item.facts() for name, item in found.items()}}
    (Path(request["out"]) / "result.json").write_text(json.dumps(result))


def origin(layers: list[Layer], blob: str) -> str:
    """The blob that Split layers copied."""
    makers = {top: layer for layer in layers for top in layer.tops}
    while makers[blob].type in COPIES:
        blob = makers[blob].bottoms[0]
    return blob


def how(layer: Layer, request: dict[str, Any]) -> str:
    """What ncnn computes a layer in; it measures the inputs of some as it runs."""
    if layer.name not in request["quantized"]:
        return "float"
    return "int8" if layer.type in ("Convolution", "ConvolutionDepthWise", "InnerProduct") else "dynamic"


def span(coding: dict[str, Any] | None) -> tuple[float, float, float] | None:
    """The lowest and highest value that a blob's integers can hold, and their step."""
    if coding is None:
        return None
    ends = sorted(coding["sign"] * (end - coding["zero"]) / coding["scale"] for end in (-127, 127))
    return ends[0], ends[1], 1.0 / coding["scale"]


def divided(values: np.ndarray, factors: list[float] | None) -> np.ndarray:
    """A blob of the float model as the INT8 model has it: [channels, height, width], [rows, channels] or [channels]."""
    if factors is None:
        return np.array(values)
    channels = values.shape[-1] if values.ndim == 2 else len(values)
    by = np.array(factors[:channels], np.float32)
    return values / (by[:, None, None] if values.ndim == 3 else by)


def decoded(values: np.ndarray, coding: dict[str, Any] | None) -> np.ndarray:
    """A blob's values as its readers take them."""
    if coding is None or coding["form"] == "float":
        return np.array(values)
    integers = values if coding["form"] == "int8" else np.clip(np.rint(values * np.float32(coding["scale"])), -127, 127)
    return (coding["sign"] * (integers - coding["zero"]) / coding["scale"]).astype(np.float32)


if __name__ == "__main__":
    main()

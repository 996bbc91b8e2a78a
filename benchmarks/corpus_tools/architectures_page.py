"""docs/architectures.md from the results of `benchmarks/architectures.py`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

ENGINES = ("onnxruntime", "tflite", "ncnn")
BARE = ("bare onnx2tf", "bare pnnx")
KINDS = {
    "torch": "PyTorch, factory", "pt2": "PyTorch, .pt2", "torchscript": "PyTorch, TorchScript",
    "keras": "Keras, .keras",
    "h5": "Keras, .h5", "saved_model": "TensorFlow, SavedModel", "tflite": "TFLite", "onnx": "ONNX (light models)",
    "real": "real weights",
}  # fmt: skip
HEAD = """\
# Models and architectures

Written by `benchmarks/architectures.py --report`; its head says what each word means and where the models come from.
{count} of the {total} models of the set so far: architectures with random weights, TFLite files of packages, onnx's
light models, and models with real weights. Float32 (a quantized TFLite file: its own INT8), on the host, each against
its own framework's outputs, with a sample held out that verification doesn't see. The bare tools ran with their default
options on the ONNX file that edgepack imported; theirs counts as right in whatever order of axes it comes out.
"""


def write(path: Path, results: dict[str, dict[str, Any]], total: int) -> None:
    """Write the page; `total` is how many models the set has."""
    imported = {name: item for name, item in results.items() if item["import"]["status"] == "right"}
    some = sum(any(status(item, engine) == "right" for engine in ENGINES) for item in results.values())
    lines = [
        HEAD.format(count=len(results), total=total),
        "| | right | of | share | bar | refused | failed | dropped | WRONG |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    lines.append(f"| at least one engine | {some} | {len(results)} | {share(some, len(results))} | 98 % | | | | |")
    bars = {"onnxruntime": "100 % of what is imported", "tflite": "95 %", "ncnn": "85 %"}
    for column in (*ENGINES, *BARE):
        among = imported if column == "onnxruntime" else results
        counts = Counter(status(item, column) for item in among.values())
        tried = sum(counts.values()) - counts[""]
        wrong = counts["WRONG"] + counts["TRACEBACK"] if column in ENGINES else counts["wrong"]
        lines.append(
            f"| {column} | {counts['right']} | {tried} | {share(counts['right'], tried)} | {bars.get(column, '')} "
            f"| {counts['refused']} | {counts['failed']} | {counts['dropped']} | {wrong} |"
        )
    lines += ["", "A refused import counts for every engine but ONNX Runtime, which has nothing to run then.", ""]
    for kind, title in KINDS.items():
        chosen = {name: item for name, item in results.items() if item["kind"] == kind}
        if not chosen:
            continue
        lines += [f"## {title}", "", "| model | parameters | " + " | ".join((*ENGINES, *BARE)) + " |"]
        lines.append("|---|---|" + "---|" * len((*ENGINES, *BARE)))
        for name, item in chosen.items():
            cells = [cell(item, column) for column in (*ENGINES, *BARE)]
            count = f"{item['parameters']:,}" if "parameters" in item else ""
            lines.append(f"| {name} | {count} | " + " | ".join(cells) + " |")
        lines += [""]
    reasons = [
        f"- **{name}**, {column}: {status(item, column)}: {one_line(reason(item, column))}"
        for name, item in results.items()
        for column in (("import",) if name not in imported else ENGINES)
        if status(item, column) not in ("right", "")
    ]
    lines += ["## Reasons", "", *reasons]
    path.write_text("\n".join(lines) + "\n")


def status(item: dict[str, Any], column: str) -> str:
    if column not in (*item, *BARE) and item["import"]["status"] != "right":
        return str(item["import"]["status"])
    return str(item.get(column, {}).get("status", ""))


def reason(item: dict[str, Any], column: str) -> str:
    return str(item.get(column, item["import"]).get("reason", ""))


def cell(item: dict[str, Any], column: str) -> str:
    found = item.get(column, {})
    figure = f" ({found['figure']})" if found.get("figure") and found["status"] != "refused" else ""
    return status(item, column) + figure


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def one_line(text: str) -> str:
    text = re.sub(r"^The converter \w+ failed: ", "", " ".join(text.split()).replace("|", "/"))
    text = re.sub(r"(/[\w.+-]+){2,}", "FILE", text)
    return text if len(text) < 260 else text[:257] + "..."

"""docs/corpus.md from the results of `benchmarks/corpus.py`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ORDER = ("right", "refused", "failed", "dropped", "wrong", "WRONG", "TRACEBACK")
COLUMNS = ("onnxruntime", "tflite", "ncnn", "bare onnx2tf", "bare pnnx")
HEAD = """\
# The corpus of node tests

Written by `benchmarks/corpus.py --report`; its head says what each word means. {count} of the {total} node tests of
onnx.backend.test (every {every}th, evenly over all operators) as files, float32, on the host. A node test often gives
as an input what a real model has as a constant (weights, axes, sizes): neither bare tool can take that, and neither
can the engines through it. The bare tools ran with their default options on the same files; a result of theirs counts
as right in whatever order of axes it comes out. They have no step that would notice a wrong one.

`WRONG` is what edgepack would ship although the test's own outputs don't come out; the bar is 0. An import that is
refused counts for every engine.
"""


def write(path: Path, results: dict[str, dict[str, Any]], total: int, every: int) -> None:
    """Write the page."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for item in results.values():
        imported = item["import"]
        for name in COLUMNS:
            value = item.get(name) if "bare" in name or imported["status"] == "right" else imported
            if value is None:
                continue
            counts[name][value["status"]] += 1
            if value["status"] != "right" and "bare" not in name:
                reasons["import" if value is imported else name][family(value["reason"])] += 1
    lines = [HEAD.format(count=len(results), total=total, every=every)]
    lines += ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for status in ORDER:
        if any(counts[name][status] for name in COLUMNS) or status in ("WRONG", "TRACEBACK"):
            lines.append(f"| {status} | " + " | ".join(str(counts[name][status]) for name in COLUMNS) + " |")
    for name, found in reasons.items():
        lines += ["", f"## Why not: {name}", ""]
        lines += [f"- {count} x {reason}" for reason, count in found.most_common()]
    path.write_text("\n".join(lines) + "\n")


def family(reason: str, most: int = 140) -> str:
    """A reason without what differs from model to model."""
    text = " ".join(reason.split()).replace("|", "/")
    text = re.sub(r"^The converter \w+ failed: ", "", text)
    text = re.sub(r"(/[\w.-]+){2,}", "FILE", text)
    text = re.sub(r"'[^']*'", "'...'", text)
    return re.sub(r"(?<![A-Za-z])\d+(\.\d+)?(e[+-]\d+)?", "N", text)[:most]

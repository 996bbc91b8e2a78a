"""docs/corpus.md from the results of `benchmarks/corpus.py`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ORDER = ("right", "refused", "failed", "dropped", "wrong", "WRONG", "TRACEBACK")
ENGINES = {"onnxruntime": "bare onnxruntime", "tflite": "bare onnx2tf", "ncnn": "bare pnnx"}
COLUMNS = (*ENGINES, *ENGINES.values())
MOST = 12  # families of reasons that are listed
HEAD = """\
# The corpus of node tests

Written by `benchmarks/corpus.py --report`; its head says what each word means. {count} of the {total} node tests of
onnx.backend.test as files, float32, on the host. A node test often gives as an input what a real model has as a
constant (weights, axes, sizes): neither bare tool can take that, and neither can the engines through it. The bare
tools ran with their default options on the same files; a result of theirs counts as right in whatever order of axes it
comes out. They have no step that would notice a wrong one, and see the test's own inputs only; edgepack's are held
against the source on made-up inputs as well.

`WRONG` is what edgepack would ship although the test's own outputs don't come out; the bar is 0. An import that is
refused counts for every engine.
"""
TOLD = """\
## What `edgepack check` says beforehand

`edgepack check` takes a build's own steps for float32, so what it says of float32 is what happened.
`edgepack check --quick` converts nothing: it knows the import and the rules of `edgepack/operators_measured.toml`,
which were found from this corpus (docs/check.md says how, and what agreement means). Pairs of a model and an engine:

| | pairs | agree | said likely, wasn't right | said unlikely, was right |
|---|---|---|---|---|
"""


def write(path: Path, results: dict[str, dict[str, Any]], total: int) -> None:
    """Write the page."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for item in results.values():
        for name in COLUMNS:
            value = outcome(item, name)
            if value is None:
                continue
            counts[name][value["status"]] += 1
            if value["status"] != "right" and "bare" not in name:
                imported = value is not item["import"]
                if imported or name == COLUMNS[0]:  # an import counts once
                    reasons[name if imported else "import"][family(value["reason"])] += 1
    lines = [HEAD.format(count=len(results), total=total)]
    lines += ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for status in ORDER:
        if any(counts[name][status] for name in COLUMNS) or status in ("WRONG", "TRACEBACK"):
            lines.append(f"| {status} | " + " | ".join(str(counts[name][status]) for name in COLUMNS) + " |")
    lines.append("| tried | " + " | ".join(str(counts[name].total()) for name in COLUMNS) + " |")
    lines += _beside(results)
    lines += _told(results)
    for name, found in reasons.items():
        lines += ["", f"## Why not: {name}", ""]
        lines += [f"- {count} x {reason}" for reason, count in found.most_common(MOST)]
        rest = found.total() - sum(count for _, count in found.most_common(MOST))
        lines += [f"- {rest} x something else"] if rest else []
    path.write_text("\n".join(lines) + "\n")


def outcome(item: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What became of one test with one engine or bare tool; None when it wasn't tried."""
    found: dict[str, Any] | None = item.get(name) if "bare" in name or item["import"]["status"] == "right" else None
    return item["import"] if found is None and "bare" not in name and item["import"]["status"] != "right" else found


def _beside(results: dict[str, dict[str, Any]]) -> list[str]:
    """Test by test: what the bare tool got right and edgepack didn't."""
    lines = ["", "## Right with the bare tool alone, and not here", ""]
    for engine, bare in ENGINES.items():
        both = {n: (outcome(item, engine), outcome(item, bare)) for n, item in results.items()}
        tried = {n: (ours, theirs) for n, (ours, theirs) in both.items() if ours and theirs}
        gained = sum(o["status"] == "right" != t["status"] for o, t in tried.values())
        lost = {n: o for n, (o, t) in tried.items() if o["status"] != "right" == t["status"]}
        lines.append(f"- {engine}: {len(lost)} of {len(tried)} tests ({gained} are right here alone)")
        groups: dict[str, list[str]] = defaultdict(list)
        for name, value in lost.items():
            groups[f"{value['status']}: {family(value['reason'], 110)}"].append(name.removeprefix("test_"))
        for reason, names in sorted(groups.items(), key=lambda group: -len(group[1])):
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            lines.append(f"  - {reason} ({shown})")
    return lines


def _told(results: dict[str, dict[str, Any]]) -> list[str]:
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for item in results.values():
        for engine in ENGINES:
            value = outcome(item, engine)
            said = False if value is item["import"] else item.get("check", {}).get(engine)
            if value is None or said is None:
                continue
            right = value["status"] == "right"
            kind = "agree" if said == right else "likely" if said else "unlikely"
            for row in (engine, "all", *(["all that could be imported"] if value is not item["import"] else [])):
                rows[row][kind] += 1
    lines = ["", TOLD.rstrip("\n")]
    for row in (*ENGINES, "all", "all that could be imported"):
        n = rows[row].total()
        if n:
            share = f"{rows[row]['agree']} ({rows[row]['agree'] / n:.1%})"
            lines.append(f"| {row} | {n} | {share} | {rows[row]['likely']} | {rows[row]['unlikely']} |")
    return lines


def family(reason: str, most: int = 140) -> str:
    """A reason without what differs from model to model."""
    text = " ".join(reason.split()).replace("|", "/")
    text = re.sub(r"^The converter \w+ failed: ", "", text)
    text = re.sub(r"(/[\w.-]+){2,}", "FILE", text)
    text = re.sub(r"'[^']*'", "'...'", text)
    return re.sub(r"(?<![A-Za-z])\d+(\.\d+)?(e[+-]\d+)?", "N", text)[:most]

"""Build every model of models.json for one target and write docs/models.md.

    python benchmarks/models.py FOLDER_OF_PREPARE_MODELS [--scratch DIR] [--target rk3588] [--only NAME]... [--report]

Builds run one after the other with the `edgepack` beside this Python. Each result is kept as JSON in the scratch
folder; `--report` writes the page from those without building.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
HEAD = """\
# Real models

Written by `benchmarks/models.py`; `benchmarks/README.md` says how to run it again.

Every model below was built by `edgepack build MODEL --target {target}`, all engines and precisions, with real inputs
(what is generated, such as speech and drawn lines of text, is said so).
Calibration and verification inputs come from different photographs, files, topics or voices. Each variant ran on the
host with its real engine, and its outputs were compared with the **source framework's own** outputs; `self-test` is
the cross-compiled harness on one golden sample.

- **% of fp32**: size of the variant's files against the same engine's fp32. **Cosine** and **SQNR**: pooled over all
  samples, the worst output of the model. **Top-1**: samples whose largest value stays the same, for outputs that are
  one vector of at least three values (agreement with the source model, not accuracy).
- **Host ms** is one inference on the machine that built it, one thread, with other work running: it tells nothing of
  the device.
- **fp16** figures are of float16 weights with the host's float32 arithmetic. ncnn computes in float16 where it can:
  its self-test under emulation gave 32 to 55 dB on these models (`edgepack build` prints it beside each self-test).
- `dropped` is below the profile's bounds and never ships. Everything that wasn't built has its reason below its table.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("models-scratch"))
    parser.add_argument("--target", default="rk3588")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--engine", action="append", default=[], help="try some engines; writes no page")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    entries = json.loads((options.folder / "models.json").read_text())
    chosen = [e for e in entries if not options.only or e["name"] in options.only]
    if not options.report:
        for entry in chosen:
            build(entry, options.target, options.engine, options.scratch.absolute())
    if not options.engine:
        PAGE.write_text(page(entries, options.target, options.scratch))
        sys.stderr.write(f"{PAGE} written\n")


def slug(entry: dict[str, Any]) -> str:
    return "".join(c if c.isalnum() else "-" for c in entry["name"].lower())


def build(entry: dict[str, Any], target: str, engines: list[str], scratch: Path) -> None:
    """Build one model; its JSON, its talk and the time go to the scratch folder."""
    edgepack = Path(sys.executable).parent / "edgepack"
    more = [part for engine in engines for part in ("--engine", engine)]
    command = [
        edgepack, "build", entry["source"], "--target", target, *entry["args"], *more, "-o", scratch / "bundles",
        "--json",
    ]  # fmt: skip
    env = {**os.environ}
    if "PIP_FIND_LINKS" in env:
        env.setdefault("UV_FIND_LINKS", env["PIP_FIND_LINKS"])
    started = time.monotonic()
    name = slug(entry) + ("-" + "-".join(engines) if engines else "")
    with (scratch / f"{name}.log").open("w") as log:
        done = subprocess.run(command, cwd=entry["cwd"], env=env, stdout=subprocess.PIPE, stderr=log, check=False)
    seconds = time.monotonic() - started
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {"error": {"id": "-", "message": f"no JSON, exit {done.returncode}", "hint": ""}}
    (scratch / f"{name}.json").write_text(json.dumps({"exit": done.returncode, "document": document}, indent=1))
    sys.stderr.write(f"{entry['name']}: exit {done.returncode}, {seconds:.0f} s\n{summary(document)}")


def summary(document: dict[str, Any]) -> str:
    if document.get("error"):
        return f"    error {document['error']['id']}: {document['error']['message']}\n"
    lines = []
    for outcome in document["outcomes"]:
        row = cells(outcome, {})
        lines.append(f"    {'  '.join(row)}" + (f"  {outcome['reason']}" if outcome["reason"] else ""))
    return "\n".join(lines) + "\n"


def page(entries: list[dict[str, Any]], target: str, scratch: Path) -> str:
    parts = [HEAD.format(target=target), overview(entries, scratch)]
    for entry in entries:
        document = load(entry, scratch)
        parts += [f"## {entry['name']}\n", f"{entry['origin']}. Verified on {entry['note']}.\n"]
        if document is None:
            parts.append("Not built yet.\n")
        elif document.get("error"):
            error = document["error"]
            parts.append(f"Not built: **{error['id']}** {plain(error['message'])} {plain(error['hint'])}\n")
        else:
            parts.append(table(document))
    return "\n".join(parts)


def load(entry: dict[str, Any], scratch: Path) -> dict[str, Any] | None:
    path = scratch / f"{slug(entry)}.json"
    return json.loads(path.read_text())["document"] if path.is_file() else None


def overview(entries: list[dict[str, Any]], scratch: Path) -> str:
    """Model x variant, one word each."""
    names = [f"{e}-{p}" for e in ("onnxruntime", "tflite", "ncnn") for p in ("fp32", "fp16", "int8")]
    rows = ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for entry in entries:
        document = load(entry, scratch)
        if document is None or document.get("error"):
            rows.append(f"| {entry['name']} |" + " - |" * len(names))
            continue
        by = {o["variant"]: o for o in document["outcomes"]}
        rows.append(f"| {entry['name']} | " + " | ".join(word(by.get(name)) for name in names) + " |")
    return "\n".join(rows) + "\n\nBuilt variants show their SQNR in dB.\n"


def word(outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return "-"
    if outcome["status"] == "built":
        return f"{min(m['sqnr_db'] for m in outcome['verdict']['metrics']):.0f}"
    return outcome["status"]


def table(document: dict[str, Any]) -> str:
    sizes = {o["variant"].rsplit("-", 1)[0]: o["size"] for o in document["outcomes"] if o["variant"].endswith("-fp32")}
    rows = [
        "| variant | outcome | MB | % of fp32 | runtime MB | cosine | SQNR dB | top-1 | self-test | host ms |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    rows += ["| " + " | ".join(cells(outcome, sizes)) + " |" for outcome in document["outcomes"]]
    reasons = [
        f"- `{o['variant']}` {o['status']}: {plain(o['reason'])}"
        + (f" *{plain(o['hint'])}*" if plain(o["hint"]) else "")
        for o in document["outcomes"]
        if o["status"] != "built"
    ]
    kind = "made-up samples" if document["synthetic"] else "real samples"
    return "\n".join([*rows, "", f"{document['samples']} {kind}.", "", *reasons]).rstrip() + "\n"


def cells(outcome: dict[str, Any], sizes: dict[str, int]) -> list[str]:
    metrics = (outcome["verdict"] or {}).get("metrics") or []
    worst = min(metrics, key=lambda m: m["cosine"]) if metrics else None
    tops = [m["top1"] for m in metrics if m["top1"] is not None]
    test, base = outcome["self_test"], sizes.get(outcome["variant"].rsplit("-", 1)[0])
    tested = "-" if test is None else f"{'ok, ' if test['passed'] else ''}{test['how']}"
    return [
        outcome["variant"],
        outcome["status"],
        f"{outcome['size'] / 1e6:.2f}" if outcome["size"] else "-",
        f"{outcome['size'] / base:.0%}" if outcome["size"] and base else "-",
        f"{outcome['runtime_size'] / 1e6:.1f}" if outcome["runtime_size"] else "-",
        f"{math.floor(worst['cosine'] * 1e4) / 1e4:.4f}" if worst else "-",
        f"{min(m['sqnr_db'] for m in metrics):.1f}" if worst else "-",
        f"{min(tops):.2f}" if tops else "-",
        tested,
        f"{outcome['host_latency_ms']:.2f}" if outcome["host_latency_ms"] is not None else "-",
    ]


def plain(text: str) -> str:
    """One line of Markdown that shows nothing of this machine's folders."""
    kept = str(Path.home())
    text = text.partition("To repeat this step by hand:")[0].rstrip()
    return " ".join(text.replace(kept, "~").replace("|", "\\|").replace("<", "&lt;").split())


if __name__ == "__main__":
    main()

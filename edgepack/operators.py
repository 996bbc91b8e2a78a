"""What each engine does with ONNX operators, from two tables.

``operators.toml`` is written by hand: what is certain, so that a build needn't try. ``operators_measured.toml`` is
written by ``benchmarks/corpus.py --rules``: forms that never came out right there. A build tries them all the same (a
tool may do better with another model); they say beforehand what is unlikely, and afterwards which node was the cause.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgepack.node_facts import MODEL, described
from edgepack.types import Problem

INSTEAD = "Use another engine, or move this part of the model to the caller."
COMPUTED = "Make that input a constant of the model, or use another engine."
FORM = "Export the model with another form of this operator, or use another engine."


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("operators.toml").read_text("utf-8"))


def refused(engine: str) -> dict[str, str]:
    """Operators that `engine` certainly can't do, with the reason."""
    return dict(_table().get(engine, {}).get("refused", {}))


def stays_float(engine: str, operators: Iterable[str]) -> list[str]:
    """Which of `operators` compute in float32 when `engine` runs a model at INT8, sorted."""
    known = {*_table().get(engine, {}).get("int8", ()), *_table()["moves"], "Constant"}
    return sorted(set(operators) - known)


def problems(engine: str, path: Path, operators: Iterable[str]) -> list[Problem]:
    """One problem for each node of the ONNX file `path` whose operator `engine` refuses."""
    reasons = refused(engine)
    if not reasons.keys() & set(operators):
        return []
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return [
        Problem(
            node=node.name or (node.output[0] if node.output else ""),
            op=node.op_type,
            message=reasons[node.op_type],
            hint=INSTEAD,
        )
        for node in graph.node
        if node.op_type in reasons
    ]


@functools.cache
def _measured() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("operators_measured.toml").read_text("utf-8"))


def unlikely(engine: str, path: Path) -> list[Problem]:
    """One problem for each node of the ONNX file `path` in a form that never came out right with `engine`.

    The model must have been through the importer and the passes, as in the corpus.
    """
    rules = [(rule["op"], frozenset(rule["when"]), rule["seen"]) for rule in _measured().get(engine, [])]
    found = []
    for node in described(path) if rules else ():
        fits = next(((when, seen) for op, when, seen in rules if op == node.op and when <= node.facts), None)
        if fits is not None:
            when, seen = fits
            form = f" where {' and '.join(sorted(when))}" if when else ""
            what = "No model" if node.op == MODEL else f"No {node.op}"
            found.append(
                Problem(
                    node=node.name,
                    op="" if node.op == MODEL else node.op,
                    message=f"{what}{form} has come out right with {engine} yet: {seen}",
                    hint=COMPUTED if any("computed" in fact for fact in when) else FORM if when else INSTEAD,
                )
            )
    return found

"""What each engine does with ONNX operators, read from the one table ``operators.toml``."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgepack.types import Problem

INSTEAD = "Use another engine, or move this part of the model to the caller."


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

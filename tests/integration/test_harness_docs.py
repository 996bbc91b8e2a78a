"""docs/harness.md holds C that compiles, and names every kind of line."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from edgepack import modelheader
from edgepack.types import Model, TensorSpec
from tests.conftest import ROOT, need

DOCS = (ROOT / "docs" / "harness.md").read_text()


def test_the_c_example_compiles_as_c99(tmp_path: Path) -> None:
    compiler = need("gcc", "apt install gcc")
    image = TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8))
    scores = TensorSpec(name="y", dtype="float32", shape=(1, 10))
    model = Model(path=tmp_path, digest="0" * 64, opset=13, inputs=(image,), outputs=(scores,))
    (tmp_path / "edgepack_model.h").write_text(modelheader.render(model))
    (example,) = re.findall(r"^```c\n(.*?)^```", DOCS, re.M | re.S)
    (tmp_path / "example.c").write_text(example)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    include = ["-I", tmp_path, "-I", ROOT / "cpp_runtime" / "include" / "edgepack"]

    done = subprocess.run(
        [compiler, *strict, *include, tmp_path / "example.c"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_every_kind_of_line_is_in_the_table() -> None:
    schema = json.loads((ROOT / "cpp_runtime" / "schema" / "harness-lines.schema.json").read_text())
    named = {word for row in re.findall(r"^\| (`.*?) \|", DOCS, re.M) for word in re.findall(r"`(\w+)`", row)}

    assert set(schema["$defs"]) <= named, set(schema["$defs"]) - named

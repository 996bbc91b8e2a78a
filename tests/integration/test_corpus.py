"""A sample of ONNX's node tests through the real converters and engines: nothing wrong is shipped, nothing crashes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepack import process
from tests.conftest import ROOT, missing

EVERY, START = 400, 77


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if not sys.platform.startswith("linux"):
        missing("the fork servers need Linux")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(process, "run", process.run)  # put back afterwards
    import corpus

    corpus.forks.install()
    yield corpus
    for server in corpus.forks._servers.values():
        server.kill()
    for name in [n for n in sys.modules if n == "corpus" or n.startswith("corpus_tools")]:
        del sys.modules[name]


def test_no_sampled_node_test_gives_a_wrong_variant_or_a_traceback(tmp_path: Path, corpus: Any) -> None:
    folder = corpus.node_tests(tmp_path)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert len(names) > 1500
    right = 0
    for name in names[START::EVERY]:
        kept = tmp_path / "prepared" / name
        found = corpus.examine(folder / name, tmp_path / "work" / name, corpus.ENGINES, bare=False, kept=kept)
        for engine, value in found.items():
            assert value["status"] not in ("WRONG", "TRACEBACK"), (name, engine, value["reason"])
            assert value["status"] == "right" or value["reason"], (name, engine)
            right += value["status"] == "right"
        if found["import"]["status"] == "right":
            assert found["onnxruntime"]["status"] == "right", (name, found["onnxruntime"])
            assert corpus.predicted(found, kept)["check"]["onnxruntime"] is True
    assert right >= 4

"""Plugins are found by entry points, and their digest covers all that decides their results."""

from __future__ import annotations

import pytest

from edgepack import plugins
from edgepack.errors import UsageError


def test_a_digest_covers_the_helpers_that_a_plugin_imports_and_not_those_that_only_carry_work() -> None:
    code = plugins._code("edgepack.importers.torch")
    assert {"edgepack.importers.torch", "edgepack.importers.staging", "edgepack.importers.sniff"} <= set(code)
    assert not {"edgepack.process", "edgepack.errors"} & set(code)


def test_a_change_in_a_helper_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    importer = plugins.load("importers", "onnx")
    before = plugins.digest(importer, ())
    real = plugins.module_digest
    monkeypatch.setattr(
        plugins, "module_digest", lambda module: "changed" if module.endswith("external") else real(module)
    )
    assert plugins.digest(importer, ()) != before


def test_an_unknown_plugin_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="ncnn"):
        plugins.load("engines", "ncn")

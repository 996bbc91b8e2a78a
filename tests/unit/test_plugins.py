"""Plugins are found by entry points, and their digest covers all that decides their results."""

from __future__ import annotations

import pytest

from edgepack import plugins
from edgepack.errors import UsageError


def test_a_digest_covers_the_helpers_that_a_plugin_imports_and_not_those_that_only_carry_work() -> None:
    code = {path.name for path in plugins._code("edgepack.importers.torch")}
    assert {"torch.py", "staging.py", "sniff.py"} <= code
    assert not {"process.py", "errors.py"} & code


def test_a_change_in_a_helper_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    importer = plugins.load("importers", "onnx")
    before = plugins.digest(importer, ())
    real = plugins.sha256_file
    monkeypatch.setattr(plugins, "sha256_file", lambda path: "new" if path.name == "external.py" else real(path))
    assert plugins.digest(importer, ()) != before


def test_an_unknown_plugin_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="ncnn"):
        plugins.load("engines", "ncn")

"""The docs say what the code does."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_error_id_in_the_code_is_documented() -> None:
    code = "".join(path.read_text() for path in (ROOT / "edgepack").rglob("*.py"))
    used = set(re.findall(r'"(EP\d{3})"', code)) - {"EP000"}
    text = (ROOT / "docs" / "errors.md").read_text()
    documented = set(re.findall(r"EP\d{3}", text))
    for first, last in re.findall(r"EP(\d{3}) to EP(\d{3})", text):
        documented |= {f"EP{number}" for number in range(int(first), int(last) + 1)}

    assert used <= documented, sorted(used - documented)


def test_every_promise_names_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "guarantees.md").read_text())

    assert len(named) >= 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_nothing_names_a_registry_or_this_machine() -> None:
    folders = ("edgepack", "docs", "benchmarks", "targets", "cpp_runtime", "templates", ".ci")
    forbidden = re.compile(r"pypi\.org|files\.pythonhosted|deb\.debian|/work/|/opt/wheels|\.\./shared")
    for path in [p for f in folders for p in (ROOT / f).rglob("*")] + [ROOT / "README.md", ROOT / "Makefile"]:
        if path.is_file() and path.suffix not in (".pyc", ".png"):
            assert not forbidden.search(path.read_text(errors="replace")), path

"""A user's own function gives the samples: run in a process of its own, and whatever it does wrong is a sentence."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from edgepack import calibration, iterables
from edgepack.errors import CalibrationError, UsageError
from edgepack.types import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 4))
MASK = TensorSpec(name="mask", dtype="int64", shape=(1, 5))
HEAD = "import numpy as np\n"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module `mine` where edgepack runs."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "mine.py").write_text(HEAD + textwrap.dedent(text))

    return write


def collected(out: Path, *inputs: TensorSpec, limit: int = 20, seconds: float = 60.0, **options: object) -> Path:
    out.mkdir(exist_ok=True)
    iterables.collect("mine:give", inputs or (X,), options, out, limit=limit, seconds=seconds)
    return out


GIVES = {
    "a generator": "def give():\n    yield from np.arange(4 * 48, dtype=np.float32).reshape(4, 3, 4, 4)",
    "with the batch axis": "def give():\n    yield from np.arange(4 * 48, dtype=np.float32).reshape(4, 1, 3, 4, 4)",
    "a list": "give = list(np.arange(4 * 48, dtype=np.float32).reshape(4, 3, 4, 4))",
    "dicts": """
        def give():
            print("this is talk")
            for i in range(4):
                yield {"label": i, "x": np.arange(48 * i, 48 * i + 48, dtype=">f4").reshape(3, 4, 4)}
    """,
    "an object": """
        class give:
            def __iter__(self):
                return iter((np.arange(48 * i, 48 * i + 48.0, dtype=np.float32).reshape(3, 4, 4),) for i in range(4))
    """,
}


@pytest.mark.parametrize("how", GIVES)
def test_what_a_function_gives_becomes_samples(code, tmp_path: Path, how: str) -> None:
    code(GIVES[how])
    source = calibration.Source(path=collected(tmp_path / "given"), function="mine:give")

    assert calibration.gather(source, (X,), {}, tmp_path / "out") == 4
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "0.npy"), np.arange(4 * 48, dtype=np.float32).reshape(4, 1, 3, 4, 4)
    )


def test_an_endless_function_is_stopped_at_the_limit_and_that_is_said(
    code, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code("""
        def give():
            while True:
                yield {"x": np.ones((3, 4, 4), np.float32), "mask": np.ones(5, np.int64)}
    """)

    given = collected(tmp_path / "given", X, MASK, limit=7)

    assert len(np.load(given / "0.npy")) == 7 and np.load(given / "1.npy").shape == (7, 5)
    assert "stopped after 7 samples" in capsys.readouterr().err


BAD = {
    "raises": ("def give():\n    yield np.ones((3, 4, 4))\n    raise OSError('no such disk')",
               "failed at sample 1: OSError: no such disk"),
    "raises at once": ("def give():\n    return 1 / 0", r"Calling mine:give\(\) failed: ZeroDivisionError"),
    "exits": ("def give():\n    raise SystemExit(0)\n    yield", "failed at sample 0: SystemExit: 0"),
    "dies": ("import os\ndef give():\n    os._exit(0)", "gave no samples.*without writing a result"),
    "needs arguments": ("def give(path):\n    yield path", "missing 1 required positional argument"),
    "is not there": ("take = 1", "has no 'give'.*take"),
    "can't be imported": ("import nothing_of_that_name", "Importing mine failed: ModuleNotFoundError.*--python"),
    "gives nothing": ("give = []", "gave no sample"),
    "gives one number": ("give = 3", "gave int, not samples"),
    "gives text": ("give = 'abc'", "gave str, not samples"),
    "changes shape": ("give = [np.ones((3, 4, 4)), np.ones((3, 4, 5))]", "Sample 1 .* is <f8 .3, 4, 5. .*'x'"),
    "changes type": ("give = [np.ones((3, 4, 4)), np.ones((3, 4, 4), int)]", "Sample 1 .* is <i8"),
    "is ragged": ("give = [[[1, 2], [3]]]", "list of 2, but the model has 1 input"),
    "gives objects": ("give = [np.array([{}, None])]", "object, not plain numbers"),
    "gives strings": ("give = [np.array('a')]", "not plain numbers"),
    "gives labels too": ("give = [(np.ones((3, 4, 4)), 7)]", "tuple of 2.*without labels"),
    "lacks an input": ("give = [{'y': np.ones((3, 4, 4))}]", "has no 'x'; it has 'y'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_code_that_gives_no_samples_is_told_with_the_reason(code, tmp_path: Path, what: str) -> None:
    text, reason = BAD[what]
    code(text)
    with pytest.raises(CalibrationError, match=f"(?s){reason}") as caught:
        collected(tmp_path / "given")
        pytest.fail("it was taken")
    assert caught.value.id == "EP324" and caught.value.hint and "Traceback" not in caught.value.message


@pytest.fixture(autouse=True)
def _hint_is_part_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CalibrationError, "__str__", lambda self: f"{self.message} / {self.hint}")


def test_a_function_that_hangs_is_killed_after_its_time(code, tmp_path: Path) -> None:
    code("""
        import time
        def give():
            yield np.ones((3, 4, 4), np.float32)
            time.sleep(600)
    """)
    with pytest.raises(CalibrationError, match="time limit of 2 s"):
        collected(tmp_path / "given", seconds=2)


def test_a_wrong_shape_is_told_with_the_cure_after_one_sample(code, tmp_path: Path) -> None:
    code("def give():\n    while True:\n        yield np.ones((4, 4, 3), np.float32)")
    source = calibration.Source(path=collected(tmp_path / "given"), function="mine:give")

    with pytest.raises(CalibrationError, match=r"What mine:give gives has shape .* x.transpose"):
        calibration.gather(source, (X,), {}, tmp_path / "out")


def test_values_are_linted_like_any_others(code, tmp_path: Path) -> None:
    code("give = [np.full((3, 4, 4), np.nan, np.float32)]")
    source = calibration.Source(path=collected(tmp_path / "given"), function="mine:give")

    with pytest.raises(CalibrationError, match="Sample 0 of the input 'x' from mine:give has NaN"):
        calibration.gather(source, (X,), {}, tmp_path / "out")


def test_it_runs_under_the_interpreter_that_is_named(code, tmp_path: Path) -> None:
    link = tmp_path / "other-python"
    link.write_text(f'#!/bin/sh\nexport CHOSEN=1\nexec {sys.executable} "$@"\n')
    link.chmod(0o755)
    code("import os\ndef give():\n    yield np.full((3, 4, 4), float(os.environ['CHOSEN']), np.float32)")

    assert np.load(collected(tmp_path / "given", python=link) / "0.npy").max() == 1
    with pytest.raises(UsageError, match="is not a program"):
        collected(tmp_path / "given", python=tmp_path / "nowhere")


def test_edgepack_itself_never_imports_the_code(code, tmp_path: Path) -> None:
    code("give = [np.ones((3, 4, 4), np.float32)]")
    collected(tmp_path / "given")
    assert "mine" not in sys.modules


def test_a_build_calibrates_on_a_function_and_only_runs_it_again(edgepack, tmp_path: Path) -> None:
    from tests.models import tiny_classifier

    tiny_classifier(tmp_path / "tiny.onnx")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def give():\n"
        "    coarse = np.random.default_rng(3).standard_normal((40, 3, 4, 4), np.float32)\n"
        "    yield from coarse.repeat(4, axis=2).repeat(4, axis=3)\n"
    )
    argv = ["build", "tiny.onnx", "--target", "linux-x86_64", "--engine", "onnxruntime", "--precision", "int8",
            "--calib", "mine:give", "-o", tmp_path, "--json"]  # fmt: skip
    first = edgepack(*argv, cwd=tmp_path)
    assert first.code == 0, first.err
    again = edgepack(*argv, cwd=tmp_path)
    ran = [line for line in again.err.splitlines() if line.startswith("  ok")]
    assert len(ran) == 1 and "samples of mine:give" in ran[0]
    dry = edgepack(*argv, "--dry-run", cwd=tmp_path)
    assert {"step": "samples", "state": "would run"} in json.loads(dry.out)["steps"]

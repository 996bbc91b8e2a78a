"""Wrong input at the command line: a sentence, an id and an exit code, and nothing left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.models import samples, tiny_classifier

RK = ("--target", "rk3588")
ONE = ("build", "dynamic.onnx", *RK, "--input", "image=1x3x16x16")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_classifier(folder / "tiny.onnx")
    tiny_classifier(folder / "dynamic.onnx", batch="N")
    tiny_classifier(folder / "nan.onnx", poison=True)
    samples(folder / "calib.npz")
    samples(folder / "named.npz", input_name="picture")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes((folder / "tiny.onnx").read_bytes()[:3000])
    (folder / "text.onnx").write_text("this is no model\n")
    (folder / "lite.onnx").write_bytes(b"\x18\0\0\0TFL3" + bytes(64))
    (folder / "bad.toml").write_text('extends = "rk3588"\n\nmemory_md = 3\n')
    (folder / "pre.toml").write_text('[input.image]\nlayout = "NCHW"\nmeen = 3\n')
    return folder


WRONG = [
    ("empty model", ["build", "empty.onnx", *RK], 3, "0 bytes"),
    ("truncated model", ["build", "cut.onnx", *RK], 3, "cut"),
    ("text named onnx", ["build", "text.onnx", *RK], 3, "text"),
    ("TFLite named onnx", ["build", "lite.onnx", *RK], 3, "TFLite"),
    ("a directory", ["build", ".", *RK], 2, "directory"),
    ("no such model", ["build", "nowhere.onnx", *RK], 2, "doesn't exist"),
    ("NaN weights", ["build", "nan.onnx", *RK], 3, "w2"),
    ("a dynamic axis", ["build", "dynamic.onnx", *RK], 3, "--input image="),
    ("an unknown input", ["build", "dynamic.onnx", *RK, "--input", "imago=1x3x16x16"], 2, "image"),
    ("a malformed shape", ["build", "dynamic.onnx", *RK, "--input", "image=1,3"], 2, "NAME=SHAPE"),
    ("a malformed input set", ["build", "dynamic.onnx", *RK, "--input-set", "image=1x3x16x16"], 2, "SET:NAME=SHAPE"),
    ("an input set's bad name", [*ONE, "--input-set", "Two:image=2x3x16x16"], 2, "'Two' is no name"),
    ("an input set of no input", [*ONE, "--input-set", "two:imago=2x3x16x16"], 2, "Did you mean 'image'"),
    ("an input set of another rank", [*ONE, "--input-set", "two:image=2x3x16"], 2, "3 axes"),
    ("an input set of the same shapes", [*ONE, "--input-set", "two:image=1x3x16x16"], 2, "the same shapes"),
    ("data twice", ["build", "tiny.onnx", *RK, "--calib", "calib.npz", "--calib", "named.npz"], 2, "twice"),
    ("an unknown target", ["build", "tiny.onnx", "--target", "rk3589"], 2, "rk3588"),
    ("an unknown engine", ["build", "tiny.onnx", *RK, "--engine", "tflight"], 2, "tflite"),
    ("an unknown precision", ["build", "tiny.onnx", *RK, "--precision", "int4"], 2, "int4"),
    ("a wrong key in a profile", ["build", "tiny.onnx", "--target", "bad.toml"], 2, "bad.toml:3"),
    ("a wrong key in preprocess", ["build", "tiny.onnx", *RK, "--preprocess", "pre.toml"], 2, "mean"),
    ("INT8 without data", ["build", "tiny.onnx", *RK, "--precision", "int8"], 3, "--calib"),
    ("data under another name", ["build", "tiny.onnx", *RK, "--calib", "named.npz"], 3, "picture"),
    ("a bundle that is none", ["inspect", "."], 2, "not a bundle"),
    ("an unknown option", ["build", "tiny.onnx", *RK, "--frobnicate"], 2, "frobnicate"),
    ("an unknown command", ["bild"], 2, "build"),
    ("a factory that isn't there", ["build", "no.such:model", *RK, "--input", "x=1x3"], 3, "no.such"),
]


@pytest.mark.parametrize(("argv", "code", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_refused_with_a_sentence_an_id_and_its_exit_code(
    edgepack, files: Path, argv: list[str], code: int, says: str
) -> None:
    before = {p: p.stat().st_mtime_ns for p in files.iterdir()}

    called = edgepack(*argv, "--json", cwd=files)

    assert called.code == code, called.err
    assert "Traceback" not in called.err
    error = json.loads(called.out)["error"]
    assert error["exit_code"] == code and error["id"].startswith("EP")
    assert says in error["message"] + error["hint"]
    assert {p: p.stat().st_mtime_ns for p in files.iterdir()} == before


def test_help_names_every_command(edgepack) -> None:
    text = edgepack("--help").out

    for command in ("build", "run", "inspect", "targets", "doctor", "setup", "demo"):
        assert f"  {command}" in text


def test_targets_lists_the_boards_with_their_engines(edgepack) -> None:
    document = edgepack("targets", "--json").json

    found = {t["name"]: t for t in document["targets"]}
    assert len(found) >= 12
    assert found["rk3588"]["engines"] == ["onnxruntime", "tflite", "ncnn"]
    assert "atomics" in found["raspberrypi4"]["absent"]["tflite"]


def test_inspect_says_what_a_model_takes_and_gives(edgepack, files: Path) -> None:
    document = edgepack("inspect", files / "dynamic.onnx", "--json").json

    assert document["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["N", 3, 16, 16]}]
    assert document["operators"]["Conv"] == 2


def test_doctor_names_what_is_missing_and_how_to_get_it(edgepack) -> None:
    called = edgepack("doctor", "--json", PATH="/nowhere")

    checks = {(c["section"], c["name"]): c for c in called.json["checks"]}
    assert not checks["aarch64", "gnu"]["ok"] and "apt install g++" in checks["aarch64", "gnu"]["cure"]
    assert not checks["aarch64", "self-test"]["ok"] and "qemu-user" in checks["aarch64", "self-test"]["found"]
    assert checks["tools", "cmake"]["ok"]  # it came with edgepack


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, edgepack.cli; print([m for m in ('numpy', 'onnx', 'rich', 'jinja2') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_closed_stdout_is_no_error(files: Path) -> None:
    argv = f"{Path(sys.executable).parent / 'edgepack'} targets | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", argv], capture_output=True, text=True)

    assert "Traceback" not in done.stderr


def test_a_full_disk_is_told_with_numbers_and_the_sources_stay(files: Path, tmp_path: Path) -> None:
    """A file-size limit of the shell stands in for a full disk where no small file system can be mounted."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path]).returncode:
        pytest.skip("needs a mount of a small tmpfs, which needs root")
    try:
        done = subprocess.run(
            [Path(sys.executable).parent / "edgepack", "build", files / "tiny.onnx", *RK, "-o", tmp_path / "o",
             "--calib", files / "calib.npz", "--engine", "onnxruntime"],
            env={**os.environ, "EDGEPACK_CACHE": str(tmp_path / "cache")}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 4, done.stderr
        assert "MiB free" in done.stderr and "Traceback" not in done.stderr
        assert not list((tmp_path / "o").glob("*.edgepack"))
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", tmp_path], check=True)

"""Every fault of the outside world is an exit code and a sentence: the file, what is wrong, what is wanted.

Files of the wrong content are in test_cpp_runtime.py; here are libraries, disks, memory and closed files.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgepack import runtimes
from tests.conftest import need
from tests.integration.native import ASAN, Native, Ran, run

WANTED = "ONNX Runtime " + runtimes.pins()["onnxruntime"]["version"]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    for name in ("variants", "golden"):
        shutil.copytree(tiny_bundle / name, tmp_path / "bundle" / name)
    return tmp_path / "bundle"


def self_test(program: Path, bundle: Path, *more: object, engine: str = "onnxruntime", **how: object) -> Ran:
    variant = bundle / "variants" / f"{engine}-fp32"
    return run(program, "self-test", "--variant", variant, "--golden", bundle / "golden", *more, **how)


def refused(ran: Ran, *words: str) -> None:
    """Exit 3, an end line that says failed, and a last sentence with `words`."""
    assert not ran.sanitizer, ran.said
    assert ran.code == 3, ran.said
    assert not ran.lines or ran.lines[-1]["status"] == "failed"
    assert ran.last_words.startswith("edgepack: ")
    for word in words:
        assert word in ran.last_words


def test_without_its_library_the_harness_names_both_places_and_the_version(
    native: Native, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    alone = Path(shutil.copy2(native.program("onnxruntime", ASAN), tmp_path / "bin"))
    name = native.library("onnxruntime").name
    refused(self_test(alone, bundle), f"needs {WANTED}", f"{tmp_path}/bin/../lib/{name}", f"{tmp_path}/bin/{name}")

    (tmp_path / "bin" / name).symlink_to(native.library("onnxruntime"))
    assert self_test(alone, bundle).code == 0, "beside the harness is the second place"


def test_a_library_that_the_user_names_is_taken_and_no_other(native: Native, bundle: Path, tmp_path: Path) -> None:
    program = native.program("onnxruntime", ASAN)
    mine = tmp_path / "mine.so"
    refused(self_test(program, bundle, "--library", mine), str(mine), "No such file", WANTED)
    shutil.copy2(native.library("onnxruntime"), mine)
    assert self_test(program, bundle, "--library", mine).code == 0


def other_version(tmp_path: Path) -> Path:
    """A library that says of itself to be ONNX Runtime 1.19.2."""
    source = tmp_path / "other.c"
    source.write_text(
        "static const void* table(unsigned version) { static const void* t[300]; return version > 19 ? 0 : t; }\n"
        'static const char* version(void) { return "1.19.2"; }\n'
        "struct Base { const void* (*table)(unsigned); const char* (*version)(void); };\n"
        "const struct Base* OrtGetApiBase(void) { static const struct Base b = {table, version}; return &b; }\n"
    )
    subprocess.run([need("gcc", "apt install gcc"), "-shared", "-fPIC", source, "-o", tmp_path / "o.so"], check=True)
    return tmp_path / "o.so"


def no_engine(tmp_path: Path) -> Path:
    (tmp_path / "none.c").write_text("int nothing(void) { return 0; }\n")
    argv = [need("gcc", "apt install gcc"), "-shared", "-fPIC", tmp_path / "none.c", "-o", tmp_path / "none.so"]
    subprocess.run(argv, check=True)
    return tmp_path / "none.so"


def foreign(tmp_path: Path) -> Path:
    """An ELF library of another processor (only its header counts)."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, 243) + bytes(44)
    (tmp_path / "foreign.so").write_bytes(header)
    return tmp_path / "foreign.so"


def half(tmp_path: Path, library: Path) -> Path:
    (tmp_path / "half.so").write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    return tmp_path / "half.so"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder, _: other_version(folder), ["o.so is ONNX Runtime 1.19.2", "the bundle was built with"]),
        (lambda folder, _: no_engine(folder), ["none.so", "has no function OrtGetApiBase"]),
        (lambda folder, _: foreign(folder), ["foreign.so is for riscv64, this harness is for "]),
        (half, ["half.so is cut short or damaged"]),
        (lambda folder, _: _file(folder / "zero.so", b""), ["zero.so is empty"]),
        (lambda folder, _: _file(folder / "text.so", b"not a library" * 9), ["text.so is not a shared library"]),
        (lambda folder, _: folder, ["is not a regular file"]),
    ],
    ids=["other-version", "no-engine", "other-processor", "half", "empty", "text", "folder"],
)
def test_a_wrong_library_is_named_with_what_is_wanted_and_what_was_found(
    native: Native, bundle: Path, tmp_path: Path, make: Callable[[Path, Path], Path], words: list[str]
) -> None:
    library = make(tmp_path, native.library("onnxruntime"))

    ran = self_test(native.program("onnxruntime", ASAN), bundle, "--library", library)

    refused(ran, f"the harness needs {WANTED}, but ", str(library), *words)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "tflite"])
def test_an_empty_or_missing_model_file_is_named(native: Native, bundle: Path, engine: str) -> None:
    program = native.program(engine, ASAN)
    (model,) = [path for path in (bundle / "variants" / f"{engine}-fp32").iterdir() if path.name != "variant.txt"]
    model.write_bytes(b"")
    refused(self_test(program, bundle, engine=engine), str(model))
    model.unlink()
    refused(self_test(program, bundle, engine=engine), str(model))


def test_a_model_of_another_shape_than_the_descriptor_is_refused_with_both(native: Native, bundle: Path) -> None:
    text = bundle / "variants" / "onnxruntime-fp32" / "variant.txt"
    text.write_text(text.read_text().replace("1,3,16,16", "1,3,16,17"))
    refused(self_test(native.program("onnxruntime", ASAN), bundle), "[1, 3, 16, 16]", "[1, 3, 16, 17]")


def test_a_full_disk_is_an_error_for_stdout_and_for_outputs(native: Native, bundle: Path, tmp_path: Path) -> None:
    program = native.program("onnxruntime", ASAN)
    with Path("/dev/full").open("wb") as full:
        refused(self_test(program, bundle, stdout=full), "could not be written to standard output")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out_0.npy").symlink_to("/dev/full")
    refused(store(program, bundle, tmp_path / "out"), "out_0.npy: No space left on device")


def store(program: Path, bundle: Path, out: Path, **how: object) -> Ran:
    variant, inputs = bundle / "variants" / "onnxruntime-fp32", bundle / "golden" / "0"
    return run(program, "run", "--variant", variant, "--inputs", inputs, "--outputs", out, **how)


def test_a_pipe_that_nobody_reads_is_an_error_and_no_silent_end(native: Native, bundle: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        refused(self_test(native.program("onnxruntime", ASAN), bundle, stdout=writing), "standard output")
    finally:
        os.close(writing)


@pytest.mark.parametrize("closed", [(1,), (0, 1), (0, 1, 2)], ids=["out", "in-out", "all"])
def test_a_closed_stdout_never_lands_in_an_output_file(
    native: Native, bundle: Path, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    """The next file to be opened would get its number."""
    (tmp_path / "out").mkdir()
    ran = store(
        native.program("onnxruntime", ASAN),
        bundle,
        tmp_path / "out",
        stdout=None,
        preexec_fn=lambda: [os.close(number) for number in closed],
    )

    assert ran.code == 3
    assert 2 in closed or "could not be written to standard output" in ran.last_words
    assert np.load(tmp_path / "out" / "out_0.npy").shape == (1, 10)


def test_a_folder_that_can_t_be_written_is_named_and_a_read_only_bundle_is_fine(
    native: Native, bundle: Path, tmp_path: Path
) -> None:
    program = native.program("onnxruntime", ASAN)
    refused(store(program, bundle, tmp_path / "nowhere"), f"{tmp_path}/nowhere/out_0.npy: No such file or directory")
    (tmp_path / "closed").mkdir()
    for path in (tmp_path / "closed", bundle, *bundle.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        ran = store(program, bundle, tmp_path / "closed", preexec_fn=_obey_permissions)
        refused(ran, "closed/out_0.npy: Permission denied")
        assert self_test(program, bundle, preexec_fn=_obey_permissions, cwd=bundle).code == 0
    finally:
        for path in (tmp_path / "closed", bundle, *bundle.rglob("*")):
            path.chmod(0o755)


def _obey_permissions() -> None:
    """Root reads and writes everything, unless it may not: drop CAP_DAC_OVERRIDE for what is executed."""
    if os.geteuid() == 0:
        drop_from_bounding_set, capability = 24, 1
        assert ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0) == 0


@pytest.mark.parametrize("engine", ["null", "onnxruntime", "tflite"])
def test_too_little_memory_is_a_sentence_or_an_engine_that_dies_and_never_a_result(
    native: Native, bundle: Path, tmp_path: Path, engine: str
) -> None:
    """From what the program itself needs up to enough. Only an engine may end with a signal."""
    program = native.program(engine, "")
    if engine == "null":
        (bundle / "variants" / "null-fp32").mkdir()
        tensor = "dtype=float32 shape=134217728 engine_name=hex:61 engine_dtype=float32 engine_shape=134217728 perm=0"
        (bundle / "variants" / "null-fp32" / "variant.txt").write_text(
            "edgepack-variant 1\nengine name=null version=1 precision=fp32\nbound cosine=0.9\nfile path=none\n"
            f"input name=hex:61 {tensor}\noutput name=hex:62 {tensor}\n"
        )
    codes = set()
    for megabytes in (8, 12, 14, 16, 32, 40, 48, 64, 512):
        ran = self_test(program, bundle, engine=engine, preexec_fn=partial(_limit, megabytes << 20))
        assert ran.code is not None and (ran.code in (0, 3) or (engine != "null" and ran.code < 0)), ran.said
        assert (ran.code == 0) == bool(ran.lines and ran.lines[-1]["status"] == "ok")
        if ran.code == 3:
            assert ran.last_words.startswith(("edgepack: ", "terminate")), ran.said
        codes.add(ran.code)
    assert 3 in codes
    if engine != "null":
        assert 0 in codes


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size, size))

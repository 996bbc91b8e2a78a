"""The C++ runtime with the null engine, under AddressSanitizer and UndefinedBehaviorSanitizer.

Its own unit tests run by ctest; here the harness meets whole files: those of numpy and of `edgepack.bundle`, and
hostile ones. A sanitizer's finding ends the harness with a signal or code 1 and its report on stderr, which no test
accepts.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from edgepack import modelheader
from edgepack.bundle import write_variant
from edgepack.types import Artifact, Binding, Bound, Model, TensorSpec
from tests.conftest import ROOT, need

NASTY = 'x");system("id");("\n#include */ ??/ \x00é'
LINE = jsonschema.Draft202012Validator(
    json.loads((ROOT / "cpp_runtime" / "schema" / "harness-lines.schema.json").read_text())
)
SPEC = TensorSpec(name=NASTY, dtype="float32", shape=(1, 3, 4, 5))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder of the null harness and the unit tests, with sanitizers."""
    need("cmake", "apt install cmake")
    need("g++", "apt install g++")
    folder = tmp_path_factory.mktemp("cpp")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [
        "-DEDGEPACK_BACKEND=null",
        "-DEDGEPACK_ENGINE_VERSION=1",
        "-DEDGEPACK_SANITIZE=address,undefined",
        "-DEDGEPACK_TESTS=ON",
    ]
    command(["cmake", "-S", ROOT / "cpp_runtime", "-B", folder, *generator, "-DCMAKE_BUILD_TYPE=Debug", *options])
    command(["cmake", "--build", folder, "--parallel", "2"])
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A variant of the null engine (NHWC inside) with one golden sample, and an empty folder for outputs."""
    binding = Binding(name="e", dtype="float32", shape=(4, 5, 3), perm=(0, 2, 3, 1))
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "model.none").write_bytes(b"")
    write_variant(
        tmp_path / "variant",
        Artifact(folder=tmp_path / "artifact", files=("model.none",), inputs=(binding,), outputs=(binding,)),
        engine="null",
        engine_version="1",
        precision="fp32",
        bound=Bound(cosine=0.999, sqnr_db=20.0),
        inputs=(SPEC,),
        outputs=(SPEC,),
    )
    values = np.random.default_rng(7).normal(size=SPEC.shape).astype(SPEC.dtype)
    (tmp_path / "golden" / "0").mkdir(parents=True)
    np.save(tmp_path / "golden" / "0" / "in_0.npy", values)
    np.save(tmp_path / "golden" / "0" / "out_0.npy", values)
    (tmp_path / "out").mkdir()
    return tmp_path


def command(argv: list[Any]) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def harness(build: Path, *words: Any) -> tuple[int, list[dict[str, Any]], str]:
    """Run the harness; gives its exit code, its JSON lines and stderr.

    No sanitizer may have spoken, and every line must be as the schema says.
    """
    argv = [str(build / "edgepack-null"), *map(str, words)]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    said = done.stderr.decode("utf-8", "replace")
    assert "Sanitizer" not in said and "runtime error" not in said, said
    assert done.returncode in (0, 1, 2, 3), said
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        LINE.validate(line)
    return done.returncode, lines, said


def run(build: Path, work: Path) -> tuple[int, list[dict[str, Any]], str]:
    return harness(
        build, "run", "--variant", work / "variant", "--inputs", work / "golden" / "0", "--outputs", work / "out"
    )


def test_unit_tests_pass_under_sanitizers(build: Path) -> None:
    """ctest runs every unit test of cpp_runtime, and there are some."""
    done = subprocess.run(["ctest", "--output-on-failure"], cwd=build, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"100% tests passed.* out of [1-9]", done.stdout)


def test_the_source_s_names_types_and_order_come_through(build: Path, work: Path) -> None:
    """`info` gives back a name with quotes, newlines and a NUL byte for byte."""
    code, lines, _ = harness(build, "info", "--variant", work / "variant")

    assert code == 0
    assert [line["type"] for line in lines] == ["context", "load", "build", "cpu", "input", "output", "end"]
    assert bytes.fromhex(lines[4]["name_hex"]).decode() == NASTY
    assert (lines[4]["dtype"], lines[4]["shape"]) == ("float32", [1, 3, 4, 5])
    assert (lines[4]["engine_shape"], lines[4]["axes"]) == ([4, 5, 3], [0, 2, 3, 1])
    assert (lines[0]["schema"], lines[0]["engine"], lines[1]["precision"]) == (2, "null", "fp32")
    assert lines[-1]["status"] == "ok" and lines[-1]["peak_rss_bytes"] > 0


def test_run_gives_back_what_numpy_wrote(build: Path, work: Path) -> None:
    """Through the engine's layout and back, bit for bit, in a file that numpy reads."""
    code, _, said = run(build, work)

    assert code == 0, said
    expected = np.load(work / "golden" / "0" / "in_0.npy")
    actual = np.load(work / "out" / "out_0.npy", allow_pickle=False)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_self_test_and_bench_hold_the_golden_outputs(build: Path, work: Path) -> None:
    """Good outputs pass and are timed; one flipped sign fails both, and then there is no sample."""
    paths = ["--variant", work / "variant", "--golden", work / "golden"]
    code, lines, _ = harness(build, "self-test", *paths)
    assert code == 0
    assert [line["cosine"] for line in lines if line["type"] == "golden"] == [1.0]

    code, lines, _ = harness(build, "bench", *paths, "--min-seconds", "0", "--min-runs", "5")
    samples = [line["ns"] for line in lines if line["type"] == "sample"]
    assert code == 0
    assert len(samples) == 5 and all(isinstance(ns, int) and ns > 0 for ns in samples)

    np.save(work / "golden" / "0" / "out_0.npy", -np.load(work / "golden" / "0" / "out_0.npy"))
    code, lines, said = harness(build, "bench", *paths)
    assert code == 1 and "golden" in said
    assert lines[-1]["status"] == "failed" and not [line for line in lines if line["type"] == "sample"]


def test_nan_in_an_output_fails_and_is_valid_json(build: Path, work: Path) -> None:
    """A NaN where the reference has none is `finite: false`, and nothing on stdout is a bare NaN."""
    values = np.load(work / "golden" / "0" / "in_0.npy")
    values[0, 0, 0, 0] = np.nan
    np.save(work / "golden" / "0" / "in_0.npy", values)

    code, lines, _ = harness(build, "self-test", "--variant", work / "variant", "--golden", work / "golden")

    assert code == 1
    assert lines[2]["finite"] is False and lines[2]["status"] == "failed" and lines[2]["cosine"] is None


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((1, 3, 4, 5), np.float64), "holds float64"),
        (np.zeros((1, 3, 4, 6), np.float32), "holds float32 [1, 3, 4, 6], wanted is float32 [1, 3, 4, 5]"),
        (np.zeros((3, 4, 5), np.float32), "holds float32 [3, 4, 5]"),
        (np.asfortranarray(np.zeros((1, 3, 4, 5), np.float32)), "Fortran order"),
        (np.zeros((1, 3, 4, 5), ">f4"), "dtype '>f4'"),
        (np.zeros((1, 3, 4, 5), np.complex64), "dtype '<c8'"),
        (np.zeros((1, 3, 4, 5), [("a", "<f4")]), "can't be understood"),
    ],
    ids=["dtype", "shape", "rank", "fortran", "big-endian", "complex", "structured"],
)
def test_an_array_that_does_not_fit_is_refused_by_name(build: Path, work: Path, bad: Any, words: str) -> None:
    """Exit 3, a sentence with what was found, and no output file."""
    np.save(work / "golden" / "0" / "in_0.npy", bad)

    code, lines, said = run(build, work)

    assert code == 3
    assert words in said and "in_0.npy" in said
    assert lines[-1] | {"peak_rss_bytes": 0} == {"type": "end", "status": "failed", "peak_rss_bytes": 0}
    assert list((work / "out").iterdir()) == []


def test_a_pickled_array_is_never_opened(build: Path, work: Path) -> None:
    """An object array is refused at its dtype."""
    np.save(work / "golden" / "0" / "in_0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

    code, _, said = run(build, work)

    assert code == 3 and "dtype '|O'" in said


@pytest.mark.parametrize("which", ["golden/0/in_0.npy", "variant/variant.txt"])
def test_mutated_files_are_refused_or_read_but_never_crash(build: Path, work: Path, which: str) -> None:
    """Bytes flipped, cut out, doubled: exit 0 or 3 and a sentence, with the sanitizers watching."""
    good = (work / which).read_bytes()
    dice = random.Random(which)
    refused = 0
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(min(len(bad), 700))
            match dice.randrange(4):
                case 0:
                    bad[at] ^= 1 << dice.randrange(8)
                case 1:
                    del bad[at : at + dice.randint(1, 40)]
                case 2:
                    bad[at:at] = bad[at : at + dice.randint(1, 40)]
                case _:
                    bad[at : at + 1] = dice.choice([b"\n", b"9999999999", b"-1", b",", b"=", b" ", b"\xff", b"\0"])
        (work / which).write_bytes(bad)
        code, _, said = run(build, work)
        assert code in (0, 3)
        refused += code == 3
        assert (code == 3) == said.startswith("edgepack: ")
    assert refused > 20


def test_two_variants_are_timed_in_turns_and_operators_one_by_one(build: Path, work: Path) -> None:
    """`bench` with two variants and `profile`: whole outputs that hold the schema."""
    paths = ["--variant", work / "variant", "--golden", work / "golden"]

    code, lines, _ = harness(
        build, "bench", *paths, "--variant", work / "variant", "--min-seconds", "0", "--block-runs", "1"
    )
    turns = "".join("AB"[line["variant"]] for line in lines if line["type"] == "sample")
    assert code == 0 and turns == "ABBA" * 5
    assert [line["when"] for line in lines if line["type"] == "machine"] == ["before", "during", "after"]

    code, lines, _ = harness(build, "profile", *paths, "--runs", "3")
    operators = [line for line in lines if line["type"] == "operator"]
    assert code == 0 and sum(line["share"] for line in operators) == pytest.approx(1)
    assert sum(line["ns"] for line in operators) == lines[-2]["sum_ns"]


def test_a_variant_of_another_engine_names_the_right_harness(build: Path, work: Path) -> None:
    """The null harness is not ncnn's."""
    text = (work / "variant" / "variant.txt").read_text().replace("name=null", "name=ncnn")
    (work / "variant" / "variant.txt").write_text(text)

    code, _, said = run(build, work)

    assert code == 3 and "use bin/edgepack-ncnn" in said


def test_misuse_shows_the_usage(build: Path) -> None:
    """Exit 2, the reason first."""
    code, lines, said = harness(build, "self-test", "--variant", "v")

    assert (code, lines) == (2, [])
    assert said.startswith("edgepack: self-test needs --golden\nusage:")


@pytest.mark.parametrize("language", ["c99", "c++17"])
def test_the_generated_header_compiles_and_gives_back_the_names(tmp_path: Path, language: str) -> None:
    """No name becomes code: the program prints what the model said, under warnings as errors."""
    compiler = need("gcc" if language == "c99" else "g++", "apt install g++")
    names = [NASTY, "int", "", "a" * 20_000, "*/ int main(void) { return 1; } /*", '\\"\r\n??/']
    dtypes = ["float32", "int64", "bool", "float16", "uint8", "float64"]
    shapes: list[tuple[int, ...]] = [(1, 3, 224, 224), (), (2,), (1,) * 8, (5,), (3, 1)]
    specs = [TensorSpec(name=n, dtype=d, shape=s) for n, d, s in zip(names, dtypes, shapes, strict=True)]
    model = Model(path=tmp_path, digest="0" * 64, opset=13, inputs=tuple(specs[:5]), outputs=tuple(specs[5:]))
    (tmp_path / "edgepack_model.h").write_text(modelheader.render(model))
    prints = "".join(f"  fwrite(t_{i}_name, 1, sizeof t_{i}_name, stdout);\n" for i in range(len(names)))
    source = tmp_path / ("main.c" if language == "c99" else "main.cpp")
    source.write_text(
        '#include "edgepack.h"\n#include "edgepack_model.h"\n#include <stdio.h>\n'
        "static const long shape[] = t_0_shape;\nstatic float image[t_0_elements];\n"
        "int main(void) {\n"
        f"{prints}"
        "  return sizeof image == t_0_bytes && shape[3] == 224 && t_1_rank == 0 && t_1_dtype == EDGEPACK_INT64 &&\n"
        "                 t_5_bytes == 24 && EDGEPACK_MODEL_INPUTS == 5 && EDGEPACK_MODEL_OUTPUTS == 1\n"
        "             ? 0 : 1;\n}\n"
    )
    include = ["-I", tmp_path, "-I", ROOT / "cpp_runtime" / "include" / "edgepack"]
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command([compiler, f"-std={language}", *strict, *include, source, "-o", tmp_path / "main"])

    done = subprocess.run([tmp_path / "main"], capture_output=True, check=True)

    assert done.stdout == b"".join(name.encode() + b"\0" for name in names)


def test_the_headers_of_two_input_sets_go_into_one_source_file(tmp_path: Path) -> None:
    def model(width: int) -> Model:
        spec = TensorSpec(name="x", dtype="float32", shape=(1, width))
        return Model(path=tmp_path, digest="0" * 64, opset=13, inputs=(spec,), outputs=(spec,))

    for width, name in ((3, ""), (5, "640"), (7, "very-wide")):
        (tmp_path / f"edgepack_model{name and f'-{name}'}.h").write_text(modelheader.render(model(width), name))
    (tmp_path / "main.c").write_text(
        '#include "edgepack_model.h"\n#include "edgepack_model-640.h"\n#include "edgepack_model-very-wide.h"\n'
        "int main(void) {\n"
        "  return t_0_bytes == 12 && t_640_0_bytes == 20 && t_very_wide_1_bytes == 28 &&\n"
        "                 EDGEPACK_MODEL_VERY_WIDE_INPUTS == 1 && sizeof t_0_name + sizeof t_640_0_name == 4\n"
        "             ? 0 : 1;\n}\n"
    )
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unused-const-variable"]
    command([need("gcc", "apt install gcc"), *strict, tmp_path / "main.c", "-o", tmp_path / "main"])
    command([tmp_path / "main"])

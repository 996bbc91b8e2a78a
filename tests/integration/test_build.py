"""The main job from end to end on a small model: real converters, engines, compilers and emulator."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import need
from tests.integration.conftest import EDGEPACK
from tests.models import HOSTILE, samples, tiny_classifier, write_npz

ENGINES = ("onnxruntime", "tflite", "ncnn")
NINE = {f"{engine}-{precision}" for engine in ENGINES for precision in ("fp32", "fp16", "int8")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_classifier(folder / "tiny.onnx")
    samples(folder / "calib.npz", count=48)
    samples(folder / "samples.npz", count=16, seed=9)
    return folder


@pytest.fixture(scope="module")
def arguments(files: Path) -> list[object]:
    return ["build", files / "tiny.onnx", "--target", "rk3588", "--calib", files / "calib.npz",
            "--samples", files / "samples.npz", "-o", files / "out", "--json"]  # fmt: skip


@pytest.fixture(scope="module")
def built(edgepack, arguments: list[object]):
    need("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
    need("qemu-aarch64", "apt install qemu-user")
    called = edgepack(*arguments)
    assert called.code == 0, called.err
    return called


def test_all_nine_variants_of_rk3588_are_built_and_proven(built) -> None:
    outcomes = {name: item["status"] for name, item in built.outcomes.items()}
    reasons = {name: item["reason"] for name, item in built.outcomes.items() if item["reason"]}

    assert outcomes == dict.fromkeys(NINE, "built"), reasons
    assert built.json["samples"] == 16 and not built.json["synthetic"]


def test_the_cross_built_harness_passed_its_self_test_under_emulation(built) -> None:
    assert {name: (o["self_test"]["how"], o["self_test"]["passed"]) for name, o in built.outcomes.items()} == (
        dict.fromkeys(NINE, ("emulated", True))
    )


def test_profile_tells_the_time_of_every_operator_of_each_engine(edgepack, built) -> None:
    for variant in ("onnxruntime-fp32", "tflite-int8", "ncnn-fp16"):
        called = edgepack("profile", built.json["bundle"], "--variant", variant, "--runs", 2, "--json")
        assert called.code == 0, called.err
        facts = called.json

        assert (facts["status"], facts["how"], facts["runs"]) == ("ok", "emulated", 2)
        assert sum(operator["ns"] for operator in facts["operators"]) == facts["sum_ns"]
        assert any("conv" in kind["op"].lower() for kind in facts["kinds"])
        assert facts["reason"] or abs(facts["sum_ns"] - facts["total_ns"]) <= 0.05 * facts["total_ns"]


def test_int8_is_smaller_and_floats_are_exact_to_their_bound(built) -> None:
    for engine in ENGINES:
        int8, fp32 = (built.outcomes[f"{engine}-{p}"] for p in ("int8", "fp32"))
        assert fp32["verdict"]["metrics"][0]["cosine"] > 0.99999
        assert int8["verdict"]["metrics"][0]["cosine"] > 0.95
        assert int8["verdict"]["metrics"][0]["output"] == "scores"


def test_an_unchanged_build_runs_no_step_and_leaves_the_bundle_as_it_is(edgepack, built, arguments) -> None:
    manifest = Path(built.json["bundle"]) / "manifest.json"
    before = manifest.stat()

    again = edgepack(*arguments)

    assert again.json["digest"] == built.json["digest"]
    assert " ok " not in again.err
    assert manifest.stat().st_mtime_ns == before.st_mtime_ns


def test_a_dry_run_says_that_all_is_cached_and_touches_nothing(edgepack, built, arguments, cache: Path) -> None:
    before = sorted((str(p), p.stat().st_mtime_ns) for p in cache.rglob("*"))

    called = edgepack(*arguments, "--dry-run")

    assert called.code == 0
    assert {step["state"] for step in called.json["steps"]} == {"cached"}
    assert sorted((str(p), p.stat().st_mtime_ns) for p in cache.rglob("*")) == before


OF_THE_DATA = ("prepare samples", "try the samples", "build config")


def test_other_calibration_data_run_only_the_int8_steps_again(edgepack, built, arguments, files: Path) -> None:
    other = samples(files / "other.npz", count=48, seed=11)
    changed = [other if a == files / "calib.npz" else files / "out2" if a == files / "out" else a for a in arguments]

    called = edgepack(*changed, "--engine", "onnxruntime", "--engine", "tflite")

    ran = [line.split("ok", 1)[1].strip() for line in called.err.splitlines() if line.startswith("  ok")]
    assert called.code == 0
    assert ran and all("int8" in s or s.startswith(OF_THE_DATA) for s in ran), ran


def test_a_fresh_cache_gives_the_same_bytes(edgepack, built, arguments, files: Path, tmp_path: Path) -> None:
    two = [files / "fresh" if a == files / "out" else a for a in arguments]
    engines = ["--engine", "onnxruntime", "--engine", "tflite"]
    first = edgepack(*two, *engines)
    one = {p.name: p.read_bytes() for p in Path(first.json["bundle"]).rglob("*") if p.is_file()}

    # One step at a time, where the first had as many as there are cores.
    again = edgepack(*two, *engines, "--jobs", 1, EDGEPACK_CACHE=str(tmp_path / "cache"))

    assert again.json["digest"] == first.json["digest"]
    assert {p.name: p.read_bytes() for p in Path(again.json["bundle"]).rglob("*") if p.is_file()} == one


@pytest.mark.parametrize("variant", sorted(NINE))
def test_run_gives_the_models_own_names_and_values(edgepack, built, variant: str, tmp_path: Path) -> None:
    bundle = Path(built.json["bundle"])
    golden = bundle / "golden" / "0"
    write_npz(tmp_path / "in.npz", {"image": np.load(golden / "in_0.npy")})

    called = edgepack(
        "run", bundle, "--variant", variant, "--input", tmp_path / "in.npz", "--output", tmp_path / "o.npz"
    )

    assert called.code == 0, called.err
    with np.load(tmp_path / "o.npz") as outputs:
        assert outputs.files == ["scores"]
        wanted, got = np.load(golden / "out_0.npy"), outputs["scores"]
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    tolerance = 0.25 if variant.endswith("int8") else 0.01
    np.testing.assert_allclose(got, wanted, atol=tolerance * np.abs(wanted).max())


def test_a_variant_below_its_bound_is_dropped_with_the_figures_and_the_exit_code_says_so(
    edgepack, built, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "strict.toml").write_text('extends = "rk3588"\n[bounds.int8]\ncosine = 0.9999999\n')

    called = edgepack(
        "build", files / "tiny.onnx", "--target", tmp_path / "strict.toml", "--calib", files / "calib.npz",
        "--samples", files / "samples.npz", "--engine", "onnxruntime", "--no-repair", "-o", tmp_path, "--json",
    )  # fmt: skip

    outcome = called.outcomes["onnxruntime-int8"]
    assert (called.code, outcome["status"]) == (1, "dropped")
    assert "cosine" in outcome["reason"] and "0.9999999" in outcome["reason"]
    bundle = Path(called.json["bundle"])
    assert sorted(p.name for p in (bundle / "variants").iterdir()) == ["onnxruntime-fp16", "onnxruntime-fp32"]


def test_variants_that_miss_the_gate_are_dropped_and_the_exit_code_says_so_although_none_was_named(
    edgepack, built, arguments: list[object], files: Path, tmp_path: Path
) -> None:
    gate = ["--data", files / "samples.npz", "--min-sqnr", 190, "--no-repair", "-o", tmp_path]
    called = edgepack(*arguments, *gate)

    status = {name: item["status"] for name, item in called.outcomes.items()}
    assert called.code == 1
    assert status == {name: "built" if name.endswith("fp32") else "dropped" for name in NINE}
    figures = called.outcomes["ncnn-int8"]["gate"]
    assert figures["limit"] == 190 and 10 < figures["score"] < 60 and figures["samples"] == 16
    assert "evaluation samples, the gate is 190 dB" in called.outcomes["ncnn-int8"]["reason"]


def test_the_manifest_says_how_each_int8_variant_was_made(built) -> None:
    manifest = json.loads((Path(built.json["bundle"]) / "manifest.json").read_text())
    made = {item["name"]: item["int8"] for item in manifest["variants"]}

    assert made["ncnn-fp16"] is None and made["ncnn-int8"] is not None
    for engine in ENGINES:
        facts = made[f"{engine}-int8"]
        assert (facts["effort"], facts["ranges"], facts["kept_float"]) == ("normal", "auto", [])
        assert facts["size"] == facts["full_int8_size"] > 0


def test_hostile_tensor_names_build_and_come_back_unchanged(edgepack, built, tmp_path: Path) -> None:
    tiny_classifier(tmp_path / "evil.onnx", input_name=HOSTILE, output_name="class")
    calib = samples(tmp_path / "calib.npz", input_name=HOSTILE, count=32)

    called = edgepack(
        "build", tmp_path / "evil.onnx", "--target", "rk3588", "--calib", calib, "-o", tmp_path, "--json", cwd=tmp_path
    )

    assert called.code == 0, called.err
    assert {o["status"] for o in called.outcomes.values()} == {"built"}, called.err
    bundle = Path(called.json["bundle"])
    write_npz(tmp_path / "in.npz", {HOSTILE: np.load(bundle / "golden" / "0" / "in_0.npy")})
    for variant in ("onnxruntime-fp32", "tflite-int8", "ncnn-fp16"):
        ran = edgepack(
            "run", bundle, "--variant", variant, "--input", tmp_path / "in.npz", "--output", tmp_path / "o.npz"
        )
        assert ran.code == 0, ran.err
        with np.load(tmp_path / "o.npz") as outputs:
            assert outputs.files == ["class"]
    assert not (tmp_path / "canary").exists()
    header = bundle / "include" / "edgepack_model.h"
    assert "system" not in header.read_text()
    check = tmp_path / "check.c"
    check.write_text('#include "edgepack_model.h"\nint main(void) { return 0; }\n')
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{header.parent}", "-fsyntax-only"]
    for compiler, standard, language in (("gcc", "-std=c99", "c"), ("g++", "-std=c++17", "c++")):
        done = subprocess.run([compiler, standard, *strict, "-x", language, check], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_damaged_cache_entry_is_found_and_made_again(edgepack, built, arguments, cache: Path) -> None:
    for victim in cache.glob("steps/*/*/files/model.ort"):  # this build's and those of other tests
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)

    again = edgepack(*arguments)

    assert again.code == 0
    assert "damaged" in again.err
    assert again.json["digest"] == built.json["digest"]


def test_an_interrupt_leaves_no_half_bundle_and_no_process(files: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "EDGEPACK_CACHE": str(tmp_path / "cache")}
    argv = [
        EDGEPACK,
        "build",
        files / "tiny.onnx",
        "--target",
        "rk3588",
        "--engine",
        "onnxruntime",
        "-o",
        tmp_path / "o",
    ]
    child = subprocess.Popen(list(map(str, argv)), env=environment, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if "... run the source" in line:
            break
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()

    assert child.wait(30) == 130, rest
    assert "Interrupted" in rest
    assert not list((tmp_path / "o").glob("*")) if (tmp_path / "o").exists() else True
    assert not [p for p in (tmp_path / "cache" / "steps").glob("*/.*")]
    time.sleep(0.2)
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "cache")], capture_output=True, text=True).stdout
    assert left == ""


def test_the_manifest_of_a_bundle_holds_no_path_of_this_machine(built, files: Path) -> None:
    text = (Path(built.json["bundle"]) / "manifest.json").read_text()

    assert str(files) not in text and str(Path.home()) not in json.loads(text).values()

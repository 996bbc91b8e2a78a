"""Several shapes of one model in a bundle, and inputs of every kind and batch, through the whole road."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.conftest import need
from tests.models import tiny_reader, typed, write_npz

ENGINES = ("onnxruntime", "ncnn")
VARIANTS = {f"{engine}-{precision}{of}" for engine in ENGINES for precision in ("fp32", "int8") for of in ("", "@wide")}
# The sizes of the declaration that are the input's own follow each set.
DECLARED = """
[input.x]
shape = [1, 3, 16, 32]
resize = [16, 32]
mean = 127.5
std = 127.5
[input-set.wide.input.x]
shape = [1, 3, 16, 64]
"""
WIDTHS = {"": 32, "@wide": 64}
COUNTS = {"in": 7, "out": 5}  # tensors of `typed`


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader whose width is open, with an edgepack.toml and 34 pictures beside it."""
    need("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
    need("qemu-aarch64", "apt install qemu-user")
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "edgepack.toml").write_text(DECLARED)
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for number in range(34):
        pixels = random.integers(0, 256, (4, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 24)).save(folder / "pictures" / f"{number:02}.png")
    return tiny_reader(folder / "reader.onnx")


@pytest.fixture(scope="module")
def built(edgepack, model: Path):
    engines = [word for engine in ENGINES for word in ("--engine", engine)]
    called = edgepack(
        "build", model, "--target", "rk3588", "--calib", model.parent / "pictures", *engines, "--precision", "fp32",
        "--precision", "int8", "-o", model.parent / "out", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    return called


def test_every_variant_of_each_input_set_is_built_and_proven_by_the_harness(built) -> None:
    outcomes = {name: (o["status"], o["self_test"]["passed"]) for name, o in built.outcomes.items()}

    assert outcomes == dict.fromkeys(VARIANTS, ("built", True))
    (wide,) = built.json["input_sets"]
    assert (wide["name"], wide["inputs"][0]["shape"], wide["outputs"][0]["shape"]) == (
        "wide", [1, 3, 16, 64], [1, 8, 32]
    )  # fmt: skip
    assert wide["size"] == sum(o["size"] for o in built.outcomes.values() if o["input_set"] == "wide")


def test_int8_of_a_set_is_calibrated_on_the_pictures_at_its_own_size(built) -> None:
    manifest = json.loads((Path(built.json["bundle"]) / "manifest.json").read_text())
    (wide,) = manifest["input_sets"]

    assert wide["preprocess"]["x"]["resize"] == [16, 64] and manifest["preprocess"]["x"]["resize"] == [16, 32]
    assert wide["samples"]["calibration"] == manifest["samples"]["calibration"] > 0
    assert wide["samples"]["calibration_digest"] != manifest["samples"]["calibration_digest"]
    assert not wide["samples"]["synthetic"]


@pytest.mark.parametrize("of", ["", "@wide"])
def test_run_takes_the_variant_whose_shapes_are_those_of_the_arrays(
    edgepack, built, model: Path, of: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 16, WIDTHS[of])).astype(np.float32)
    write_npz(tmp_path / "in.npz", {"x": x})

    called = edgepack("run", built.json["bundle"], "--variant", "ncnn-fp32", "--input", tmp_path / "in.npz",
                      "--output", tmp_path / "out.npz", "--json")  # fmt: skip

    assert called.code == 0, called.err
    assert called.json["variant"] == f"ncnn-fp32{of}"
    (wanted,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["y"], wanted, atol=1e-3)


def test_arrays_that_fit_no_set_are_refused_with_every_shape(edgepack, built, tmp_path: Path) -> None:
    write_npz(tmp_path / "in.npz", {"x": np.zeros((1, 3, 16, 48), np.float32)})

    called = edgepack("run", built.json["bundle"], "--variant", "ncnn-fp32", "--input", tmp_path / "in.npz",
                      "--output", tmp_path / "out.npz")  # fmt: skip

    assert called.code == 2 and "EP241" in called.err
    assert "[1, 3, 16, 48]" in called.err and "ncnn-fp32@wide [[1, 3, 16, 64]]" in called.err


def test_the_harness_on_the_target_chooses_by_the_inputs_too(built, tmp_path: Path) -> None:
    bundle = Path(built.json["bundle"])
    variants = [word for of in WIDTHS for word in ("--variant", bundle / "variants" / f"ncnn-fp32{of}")]
    argv = ["qemu-aarch64", bundle / "bin" / "edgepack-ncnn", "run", *variants,
            "--inputs", bundle / "golden@wide" / "0", "--outputs", tmp_path]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=True)

    assert [json.loads(line).get("variant") for line in done.stdout.splitlines()] == [None, 1, None]
    assert np.load(tmp_path / "out_0.npy").shape == (1, 8, 32)


def test_a_set_that_the_model_can_not_have_fails_alone_and_the_exit_code_says_so(
    edgepack, built, model: Path, tmp_path: Path
) -> None:
    """Here one has a size that the model fixes, and another one gets arrays of the first shape."""
    x = np.random.default_rng(2).uniform(-1, 1, (34, 3, 16, 32)).astype(np.float32)
    write_npz(tmp_path / "narrow.npz", {"x": x})
    called = edgepack(
        "build", model, "--target", "rk3588", "--samples", tmp_path / "narrow.npz", "--engine", "onnxruntime",
        "--precision", "fp32", "--input-set", "tall:x=1x3x32x32", "-o", tmp_path, "--json",
    )  # fmt: skip

    assert called.code == 1, called.err
    base, wide, tall = (called.outcomes[f"onnxruntime-fp32{of}"] for of in ("", "@wide", "@tall"))
    assert (base["status"], wide["status"], tall["status"]) == ("built", "failed", "failed")
    assert "at the shapes of tall: EP211" in tall["reason"] and "1x3x32x32" in tall["reason"]
    assert "at the shapes of wide: EP320" in wide["reason"] and "narrow.npz" in wide["reason"]
    assert "--samples" in wide["hint"] and "wide:PATH" in wide["hint"]
    assert called.json["input_sets"] == []


def test_inputs_of_every_kind_a_state_and_a_batch_pass_each_engine_and_its_harness(edgepack, tmp_path: Path) -> None:
    """float32, a single value, int32, int64, bool, float16 and a state of [2, batch, 4]; several outputs."""
    need("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
    need("qemu-aarch64", "apt install qemu-user")
    model = typed(tmp_path / "typed.onnx", batch=2)
    called = edgepack("build", model, "--target", "rk3588", "--precision", "fp32", "-o", tmp_path, "--json")

    assert called.code == 0, called.err
    told = {name: (o["status"], o["self_test"]["passed"]) for name, o in called.outcomes.items()}
    assert told == dict.fromkeys(("onnxruntime-fp32", "tflite-fp32", "ncnn-fp32"), ("built", True)), called.outcomes
    golden = Path(called.json["bundle"]) / "golden" / "0"
    dtypes = {kind: [np.load(golden / f"{kind}_{i}.npy").dtype.name for i in range(n)] for kind, n in COUNTS.items()}
    assert dtypes == {
        "in": ["float32", "float32", "int32", "int64", "bool", "float16", "float32"],
        "out": ["float32", "float32", "int64", "bool", "float16"],
    }
    assert np.load(golden / "in_6.npy").shape == np.load(golden / "out_1.npy").shape == (2, 2, 4)

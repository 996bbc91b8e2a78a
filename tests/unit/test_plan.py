"""The plan: everything that can be refused is refused before any work."""

from pathlib import Path

import pytest

from edgepack import plan
from edgepack.errors import CalibrationError, UsageError
from edgepack.types import Bound, Precision, Status, Target

ALL = (Precision.FP32, Precision.FP16, Precision.INT8)


def target(**changes: object) -> Target:
    fields: dict[str, object] = {
        "name": "board",
        "description": "",
        "arch": "aarch64",
        "os": "linux",
        "libc": "glibc",
        "libc_version": "2.36",
        "glibcxx": "3.4.30",
        "cpu": "cortex-a76",
        "cpu_features": (),
        "clusters": (("cortex-a76", 4),),
        "engines": ("ncnn", "onnxruntime"),
        "absent": {"tflite": "its library needs LSE atomics"},
        "precisions": ALL,
        "memory_mb": 4096,
        "bounds": {p: Bound() for p in ALL},
        "emulator_cpu": "cortex-a76",
    }
    return Target(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "My model (v2).onnx"
    path.write_bytes(b"\x08\x07")
    return str(path)


def test_the_default_is_every_engine_and_precision_of_the_profile(model: str, tmp_path: Path) -> None:
    made = plan.make_plan(model, target(), calibration=tmp_path, output=tmp_path)

    assert [str(v) for v in made.variants] == [f"{e}-{p}" for e in ("ncnn", "onnxruntime") for p in ALL]
    assert made.destination == tmp_path / "My_model_v2-board.edgepack"


def test_an_engine_that_the_target_can_not_have_is_an_outcome_with_the_profiles_reason(model: str) -> None:
    refused = plan.make_plan(model, target()).refused

    reasons = {str(o.variant): (o.status, o.reason) for o in refused}
    assert reasons["tflite-fp32"] == (Status.UNSUPPORTED, "its library needs LSE atomics")


def test_int8_without_data_is_refused_and_says_which_flag_to_add(model: str) -> None:
    made = plan.make_plan(model, target())

    assert all(v.precision is not Precision.INT8 for v in made.variants)
    assert any("--calib" in o.hint and o.variant.precision is Precision.INT8 for o in made.refused)
    with pytest.raises(CalibrationError, match="needs real inputs"):
        plan.make_plan(model, target(), precisions=[Precision.INT8])


def test_an_unknown_engine_names_the_nearest_one(model: str) -> None:
    with pytest.raises(UsageError, match="Did you mean 'tflite'"):
        plan.make_plan(model, target(), engines=["tflight"])


def test_an_output_folder_that_is_no_bundle_is_left_alone(model: str, tmp_path: Path) -> None:
    occupied = tmp_path / "My_model_v2-board.edgepack"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("x")

    with pytest.raises(UsageError, match="not an edgepack bundle"):
        plan.make_plan(model, target(), output=tmp_path)
    assert (occupied / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize("flag", ["calibration", "samples", "weights"])
def test_a_missing_file_is_named(model: str, flag: str) -> None:
    with pytest.raises(UsageError, match="nowhere doesn't exist"):
        plan.make_plan(model, target(), **{flag: Path("nowhere")})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("x=1x3x224x224", ("x", (1, 3, 224, 224), None)),
        ("ids=1x128:int64", ("ids", (1, 128), "int64")),
        ("a=b=2", ("a=b", (2,), None)),
        ("sr=:int64", ("sr", (), "int64")),
        ('we"ird\nname=1x2', ('we"ird\nname', (1, 2), None)),
    ],
)
def test_input_shapes_are_read(text: str, parsed: tuple[str, tuple[int, ...], str | None]) -> None:
    assert plan.parse_input(text) == parsed


@pytest.mark.parametrize("text", ["x", "x=1x", "x=1,3", "=1x3", "x=-1x3", "x=0x3"])
def test_a_malformed_input_shape_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        plan.parse_input(text)


def test_named_variants_that_were_not_built_are_known(model: str) -> None:
    made = plan.make_plan(model, target(), engines=["ncnn", "tflite"], precisions=[Precision.FP32])

    assert [str(o.variant) for o in plan.named_failures(made, made.refused)] == ["tflite-fp32"]


def test_naming_an_engine_does_not_ask_for_its_int8_without_data(model: str) -> None:
    made = plan.make_plan(model, target(), engines=["ncnn"])

    assert plan.named_failures(made, made.refused) == []

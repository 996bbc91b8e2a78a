"""The user's data become samples once; what is odd about them is said in every build."""

from pathlib import Path

import numpy as np
import pytest

from edgepack import config, sampling
from edgepack.cache import Cache
from edgepack.errors import CalibrationError, UsageError
from edgepack.plan import BuildPlan, make_plan
from edgepack.types import Int8Options, Model, TensorSpec
from tests.models import samples, tiny_classifier

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 16, 16))
SCORES = TensorSpec(name="scores", dtype="float32", shape=(1, 10))


def model_at(path: Path) -> Model:
    return Model(path=path, digest="", opset=17, inputs=(IMAGE,), outputs=(SCORES,), operators=())


def plan_of(tmp_path: Path, **given: object) -> BuildPlan:
    tiny_classifier(tmp_path / "tiny.onnx")
    target = config.load_target("linux-x86_64")
    return make_plan(str(tmp_path / "tiny.onnx"), target, output=tmp_path, **given)  # type: ignore[arg-type]


def gathered(tmp_path: Path, **given: object) -> sampling.Samples:
    plan = plan_of(tmp_path, **given)
    return sampling.samples_of(plan, Cache(tmp_path / "cache"), model_at(tmp_path / "tiny.onnx"))


def test_held_out_samples_are_not_calibrated_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = gathered(tmp_path, calibration=samples(tmp_path / "c.npz", count=40))

    assert found.calibration is not None
    assert (found.calibration.count, found.verify_count, found.synthetic) == (24, 16, False)
    used, held = (np.load(folder / "0.npy") for folder in (found.calibration.path, found.verify))
    assert not {row.tobytes() for row in used} & {row.tobytes() for row in held}
    assert "warning" not in capsys.readouterr().err


def test_few_samples_serve_both_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gathered(tmp_path, calibration=samples(tmp_path / "c.npz", count=20))

    assert "fewer than 32: INT8 is calibrated and verified on the same ones" in capsys.readouterr().err


def test_measuring_with_calibration_samples_is_told_in_every_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"calibration": samples(tmp_path / "c.npz", count=40), "samples": samples(tmp_path / "v.npz", count=20)}
    with np.load(data["calibration"]) as archive:
        np.savez(data["samples"], image=archive["image"][10:30])
    for _ in range(2):
        gathered(tmp_path, **data)
        said = capsys.readouterr().err
        assert f"20 of the 20 samples of {tmp_path / 'v.npz'} are also in {tmp_path / 'c.npz'}" in said
        assert "(20 the same to the bit), such as sample 0 and sample 10" in said


def test_a_bound_of_memory_below_one_samples_need_is_refused_with_the_figure(tmp_path: Path) -> None:
    calib = samples(tmp_path / "c.npz")
    with pytest.raises(CalibrationError, match=r"--memory 40 is too little.* at least 80 MB") as caught:
        gathered(tmp_path, calibration=calib, int8=Int8Options(memory_mb=40))
    assert caught.value.id == "EP325"
    gathered(tmp_path, calibration=calib, int8=Int8Options(memory_mb=100))


def test_data_that_are_neither_a_file_nor_a_function_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--calib .*nowhere doesn't exist") as caught:
        plan_of(tmp_path, calibration=tmp_path / "nowhere")
    assert "module:function" in caught.value.hint
    assert plan_of(tmp_path, calibration=Path("package.module:function")).calibration is not None

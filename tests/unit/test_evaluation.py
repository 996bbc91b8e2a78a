"""The accuracy gate's options and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepack import evaluation
from edgepack.errors import CalibrationError, UsageError
from edgepack.lint import Report
from edgepack.plan import named_failures
from edgepack.types import GateResult, GateSpec, Outcome, Precision, Status, TensorSpec, Variant


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"metric": "top1", "max_drop": 1.0}, "need data"),
        ({"metric": "topp1", "max_drop": 1.0, "data": "."}, "no metric 'topp1'"),
        ({"metric": "sqnr", "max_drop": 1.0, "data": "."}, "no best value to drop from"),
        ({"metric": "top1", "data": "."}, "needs --max-drop"),
        ({"metric": "top1", "max_drop": 1.0, "min_sqnr": 20.0, "data": "."}, "no --min-sqnr"),
        ({"metric": "top1", "max_drop": 1.0, "data": "/nowhere"}, "doesn't exist"),
    ],
)
def test_a_gate_that_says_nothing_or_too_much_is_refused(spec: dict[str, object], said: str) -> None:
    if "data" in spec:
        spec = {**spec, "data": Path(str(spec["data"]))}
    with pytest.raises(UsageError, match=said):
        evaluation.check_spec(GateSpec(**spec))  # type: ignore[arg-type]


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def labels_of(folder: Path, classes: int | None = None, report: Report | None = None) -> np.ndarray | None:
    return evaluation._folder_labels(folder, classes, report or Report())


def test_fewer_folders_than_the_model_has_classes_are_told_with_the_number_that_the_first_gets(tmp_path: Path) -> None:
    report, numbered = Report(), Report()
    labels_of(pictures(tmp_path / "named", "cat/1.png", "dog/0.png"), 1000, report)
    labels_of(pictures(tmp_path / "numbered", "281/1.png", "282/0.png"), 1000, numbered)

    assert [text for kind, text in report.said if kind == "warning"] == [
        f"{tmp_path / 'named'} has 2 folders of classes and the model 1000 classes: the folders count as its first 2, "
        "'cat' as class 0. If they are others, name each folder by its number"
    ]
    assert not [text for kind, text in numbered.said if kind == "warning"]


def test_folders_of_classes_count_in_the_order_of_their_names(tmp_path: Path) -> None:
    labels = labels_of(pictures(tmp_path, "cat/1.png", "dog/0.png", "cat/2.png", "ape/9.png"))

    assert labels is not None and labels.tolist() == [0, 1, 1, 2]


def test_folders_named_by_whole_numbers_are_the_classes(tmp_path: Path) -> None:
    labels = labels_of(pictures(tmp_path, "10/a.png", "2/b.png"))

    assert labels is not None and sorted(labels.tolist()) == [2, 10]


def test_pictures_in_no_class_have_no_labels(tmp_path: Path) -> None:
    assert labels_of(pictures(tmp_path, "a.png", "b.png")) is None


def test_a_picture_beside_class_folders_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"stray\.png is not in a class"):
        labels_of(pictures(tmp_path, "cat/1.png", "stray.png"))


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 3), np.float32), labels=np.zeros((2, 10), np.float32))

    with pytest.raises(CalibrationError, match=r"labels .* float32 of shape \[2, 10\]"):
        evaluation._file_labels(tmp_path / "x.npz", (TensorSpec(name="image", dtype="float32", shape=(3,)),))


def test_an_input_named_labels_is_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", labels=np.zeros((2, 3), np.int64))

    assert evaluation._file_labels(tmp_path / "x.npz", (TensorSpec(name="labels", dtype="int64", shape=(3,)),)) is None


def test_a_missed_gate_fails_the_build_although_nobody_named_the_variant() -> None:
    gate = GateResult(
        metric="top1", unit="%", score=70.0, source=80.0, limit=79.0, samples=10, labelled=True, passed=False
    )
    missed = Outcome(variant=Variant(engine="ncnn", precision=Precision.INT8), status=Status.DROPPED, gate=gate)
    other = Outcome(variant=Variant(engine="ncnn", precision=Precision.FP16), status=Status.FAILED)

    class Plan:
        named: frozenset[Variant] = frozenset()
        input_sets: tuple[str, ...] = ()

    assert named_failures(Plan(), (missed, other)) == [missed]  # type: ignore[arg-type]

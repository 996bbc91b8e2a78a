"""Samples that repeat each other are found, also when they are only nearly the same, and told by name."""

from pathlib import Path

import numpy as np
import pytest

from edgepack import likeness
from edgepack.lint import Report
from edgepack.types import TensorSpec

PICTURE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 32, 24))
IDS = TensorSpec(name="ids", dtype="int64", shape=(1, 80))


def smooth(count: int, seed: int = 0) -> np.ndarray:
    """[count, 1, 3, 32, 24]: blocks of 4x4 pixels of one colour."""
    coarse = np.random.default_rng(seed).standard_normal((count, 1, 3, 8, 6))
    return coarse.repeat(4, axis=3).repeat(4, axis=4).astype(np.float32)


def prints(folder: Path, *arrays: np.ndarray, specs: tuple[TensorSpec, ...] = (PICTURE,)) -> likeness.Fingerprints:
    folder.mkdir()
    for index, array in enumerate(arrays):
        np.save(folder / f"{index}.npy", array)
    return likeness.fingerprints(folder, specs)


def said_of(found: likeness.Fingerprints) -> str:
    report = Report()
    likeness.check_distinct(found, "data", lambda index: f"picture {index}", report)
    return " ".join(text for _, text in report.said)


def test_different_pictures_are_not_alike(tmp_path: Path) -> None:
    assert said_of(prints(tmp_path / "in", smooth(40))) == ""


@pytest.mark.parametrize("change", [0.0, 0.02, 0.09])
def test_a_picture_with_a_little_noise_is_the_same_picture(tmp_path: Path, change: float) -> None:
    data = smooth(20)
    noise = np.random.default_rng(1).standard_normal(data.shape).astype(np.float32)
    again = np.concatenate([data, data[:10] + np.float32(change) * noise[:10]])

    said = said_of(prints(tmp_path / "in", again))

    assert "10 of the 30 samples of data nearly repeat another, such as picture 20 and picture 0" in said
    assert "20 different ones" in said and "wants some tens" not in said


def test_brightness_makes_another_picture(tmp_path: Path) -> None:
    data = smooth(20)

    assert said_of(prints(tmp_path / "in", np.concatenate([data, data + 1]))) == ""


def test_one_repeated_picture_among_many_is_not_worth_a_word_but_few_different_ones_are(tmp_path: Path) -> None:
    data = smooth(40)
    assert said_of(prints(tmp_path / "many", np.concatenate([data, data[:1]]))) == ""

    said = said_of(prints(tmp_path / "few", np.tile(data[:3], (10, 1, 1, 1, 1))))
    assert "27 of the 30" in said and "3 different ones, and wants some tens" in said


def test_whole_numbers_are_alike_only_when_equal_and_every_input_counts(tmp_path: Path) -> None:
    ids = np.tile(np.arange(80), (20, 1, 1)).astype(np.int64)
    pictures = smooth(20)
    specs = (PICTURE, IDS)
    assert said_of(prints(tmp_path / "a", pictures, ids, specs=specs)) == "", "the pictures differ"

    same = np.tile(pictures[:1], (20, 1, 1, 1, 1))
    ids[:, 0, 0] = np.arange(20)
    assert said_of(prints(tmp_path / "b", same, ids, specs=specs)) == "", "one id differs"

    ids[:] = ids[0]
    assert "19 of the 20" in said_of(prints(tmp_path / "c", same, ids, specs=specs))


def test_noise_in_place_of_pictures_is_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((20, *PICTURE.shape)).astype(np.float32)

    assert "look like random noise" in said_of(prints(tmp_path / "in", noise))


@pytest.mark.parametrize("size", [4, 256])
def test_evaluation_samples_inside_the_calibration_set_are_counted_and_named(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, report = smooth(30), Report()
    evaluation = np.concatenate([smooth(8, seed=1), data[9:10] * np.float32(1.01), data[4:6]])
    monkeypatch.setattr(likeness, "PIECE", size)
    prints(tmp_path / "evaluation", evaluation)

    likeness.check_disjoint(
        prints(tmp_path / "calibration", data),
        likeness.pieces(tmp_path / "evaluation", (PICTURE,), len(evaluation)),
        "samples of b are also in a",
        (lambda index: f"b/{index}", lambda index: f"a/{index}"),
        report,
    )

    assert [text for _, text in report.said] == [
        "3 of the 11 samples of b are also in a (2 the same to the bit), such as b/9 and a/4: "
        "figures measured with them flatter INT8"
    ]


def test_disjoint_sets_are_not_spoken_of(tmp_path: Path) -> None:
    report = Report()
    sets = (prints(tmp_path / "a", smooth(30)), [prints(tmp_path / "b", smooth(30, seed=2))])

    likeness.check_disjoint(*sets, "samples", (str, str), report)

    assert not report.said

"""Scores on evaluation data: what counts as right, and what can't be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack import metrics
from edgepack.errors import MetricError
from edgepack.types import TensorSpec

SCORES = (TensorSpec(name="scores", dtype="float32", shape=(1, 3)),)
REFERENCE = np.array([[[0, 1, 2]], [[3, 1, 2]], [[0, 5, 2]], [[0, 1, 9]]], np.float32)


def folders(tmp_path: Path, got: np.ndarray, reference: np.ndarray = REFERENCE) -> tuple[Path, Path]:
    for name, array in (("reference", reference), ("got", got)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", array)
    return tmp_path / "reference", tmp_path / "got"


def test_top1_with_labels_is_percent_of_right_answers(tmp_path: Path) -> None:
    assert metrics.score("top1", SCORES, *folders(tmp_path, REFERENCE), np.array([2, 0, 1, 0])) == 75.0


def test_top1_without_labels_is_agreement_with_the_float_model(tmp_path: Path) -> None:
    got = REFERENCE.copy()
    got[0] = [[9, 0, 0]]

    assert metrics.score("top1", SCORES, *folders(tmp_path, got), None) == 75.0


def test_of_equal_scores_the_first_counts(tmp_path: Path) -> None:
    got = np.full_like(REFERENCE, 0.5)

    assert metrics.score("top1", SCORES, *folders(tmp_path, got), np.array([0, 0, 0, 1])) == 75.0


def test_a_sample_with_nan_is_wrong_even_where_the_rest_is_right(tmp_path: Path) -> None:
    got = REFERENCE.copy()
    got[3, 0, 0] = np.nan

    assert metrics.score("top1", SCORES, *folders(tmp_path, got), None) == 75.0


def test_a_label_beyond_the_models_classes_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="labels go from 0 to 3, but the model has 3 classes"):
        metrics.score("top1", SCORES, *folders(tmp_path, REFERENCE), np.array([0, 1, 2, 3]))


def test_top1_of_a_detector_is_refused_with_what_it_gives() -> None:
    boxes = (TensorSpec(name="boxes", dtype="float32", shape=(1, 100, 4)),)

    with pytest.raises(MetricError, match=r"'boxes' float32 \[1, 100, 4\]"):
        metrics.scores_index(boxes)


def test_cosine_and_sqnr_are_pooled_and_exact_for_equal_outputs(tmp_path: Path) -> None:
    reference, got = folders(tmp_path, REFERENCE)

    assert metrics.score("cosine", SCORES, reference, got, None) == 1.0
    assert metrics.score("sqnr", SCORES, reference, got, None) == metrics.PERFECT_DB


def test_sqnr_is_signal_over_noise_in_decibels(tmp_path: Path) -> None:
    got = metrics.score("sqnr", SCORES, *folders(tmp_path, REFERENCE * np.float32(1.1)), None)

    assert got == pytest.approx(20.0, abs=1e-3)


def test_nan_of_a_variant_names_output_and_sample(tmp_path: Path) -> None:
    got = REFERENCE.copy()
    got[2, 0, 1] = np.inf

    with pytest.raises(MetricError, match="'scores' of evaluation sample 2"):
        metrics.score("cosine", SCORES, *folders(tmp_path, got), None)

"""Metrics and verdicts: wrong is never passed."""

import numpy as np
import pytest

from edgepack.types import Bound
from edgepack.verify import judge, measure

RNG = np.random.default_rng(0)
REFERENCE = RNG.standard_normal((16, 1, 10)).astype(np.float32)
BOUND = Bound(cosine=0.99, sqnr_db=20.0)


def verdict(output: np.ndarray, bound: Bound = BOUND, reference: np.ndarray = REFERENCE):
    return judge((measure("y", reference, output),), bound, len(reference))


def test_equal_outputs_pass_with_perfect_figures() -> None:
    metric = measure("y", REFERENCE, REFERENCE)

    assert (metric.cosine, metric.top1, metric.max_abs) == (pytest.approx(1.0), 1.0, 0.0)
    assert verdict(REFERENCE).passed


def test_sqnr_is_ten_log_ten_of_signal_over_noise() -> None:
    noise = np.full_like(REFERENCE, 0.1)
    expected = 10 * np.log10((REFERENCE.astype(float) ** 2).sum() / (noise.astype(float) ** 2).sum())

    assert measure("y", REFERENCE, REFERENCE + noise).sqnr_db == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (-REFERENCE, "cosine"),
        (REFERENCE * 2, "SQNR"),
        (np.zeros_like(REFERENCE), "cosine"),
        (np.where(np.arange(10) == 3, np.nan, REFERENCE).astype(np.float32), "NaN"),
        (np.roll(REFERENCE, 1, axis=2), "cosine"),
    ],
)
def test_wrong_outputs_fail_with_the_figure_that_says_why(wrong: np.ndarray, says: str) -> None:
    found = verdict(wrong)

    assert not found.passed
    assert says in found.reason


def test_one_bad_sample_among_many_good_ones_fails() -> None:
    output = REFERENCE.copy()
    output[5] = -output[5] * 0.05  # small enough that the pooled cosine hardly moves
    reference = REFERENCE.copy()
    reference[5] *= 0.05

    found = verdict(output, Bound(cosine=0.99), reference)

    assert not found.passed
    assert "worst sample" in found.reason


def test_top1_counts_samples_with_the_same_arg_max() -> None:
    output = REFERENCE.copy()
    output[:4] = -output[:4]

    assert measure("y", REFERENCE, output).top1 == pytest.approx(12 / 16)
    assert not verdict(output, Bound(cosine=-1.0, top1=0.8)).passed


def test_a_map_is_no_classifier() -> None:
    maps = RNG.standard_normal((2, 1, 8, 8)).astype(np.float32)

    assert measure("y", maps, maps).top1 is None


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        measure("y", REFERENCE, REFERENCE.reshape(16, 10, 1))


def test_all_zero_outputs_that_should_be_zero_are_equal() -> None:
    zeros = np.zeros((2, 4), np.float32)

    assert measure("y", zeros, zeros).cosine == 1.0
    assert measure("y", zeros, zeros + 1).cosine == 0.0


def test_a_sample_that_is_next_to_nothing_on_both_sides_is_not_judged_by_its_direction() -> None:
    reference, output = REFERENCE.copy(), REFERENCE.copy()
    reference[3] *= 1e-7
    output[3] = -reference[3]
    loud = REFERENCE.copy()

    assert verdict(output, Bound(cosine=0.9999), reference).passed
    assert not verdict(loud, Bound(cosine=0.9999), reference).passed


def test_one_infinity_in_both_hides_no_error() -> None:
    reference, output = REFERENCE.copy(), -REFERENCE
    reference[0, 0, 0] = output[0, 0, 0] = np.inf

    assert not verdict(output, reference=reference).passed
    assert verdict(reference.copy(), reference=reference).passed


def test_an_infinity_of_the_other_sign_or_a_number_in_its_place_is_wrong() -> None:
    reference = REFERENCE.copy()
    reference[0, 0, 0] = -np.inf
    for value in (np.inf, -1e38, np.nan):
        output = reference.copy()
        output[0, 0, 0] = value

        assert "infinite" in verdict(output, reference=reference).reason


def test_nan_of_the_source_must_be_nan_and_hides_no_error_beside_it() -> None:
    reference = REFERENCE.copy()
    reference[0, 0, :4] = np.nan

    assert verdict(reference.copy(), reference=reference).passed
    assert not verdict(-reference, reference=reference).passed
    assert not verdict(np.nan_to_num(reference), reference=reference).passed

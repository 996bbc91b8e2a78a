"""Integers for weights: what they do to a layer's sums."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepack

sys.path.insert(0, str(Path(edgepack.__file__).parent / "converters"))
rounding: Any = importlib.import_module("rounding")
RNG = np.random.default_rng(11)


def correlated(groups: int, inputs: int) -> np.ndarray:
    """A covariance [groups, inputs, inputs] whose inputs have much in common."""
    data = RNG.normal(0, 1, (groups, 4 * inputs, inputs)) @ RNG.normal(0, 1, (groups, inputs, inputs))
    return np.swapaxes(data, 1, 2) @ data / data.shape[1]


def decibels(weight: np.ndarray, integers: np.ndarray, factors: np.ndarray, covariance: np.ndarray) -> float:
    signal = ((weight @ covariance) * weight).sum()
    return float(10 * np.log10(signal / rounding.loss(weight, integers, factors, covariance).sum()))


@pytest.mark.parametrize("shape", [(1, 16, 200), (12, 1, 9), (3, 4, 70)])
def test_compensated_rounding_makes_the_sums_closer_than_the_nearest_integers(shape: tuple[int, int, int]) -> None:
    weight, covariance = RNG.normal(0, 1, shape), correlated(shape[0], shape[2])
    factors = rounding.whole_range(weight)
    plain = rounding.nearest(weight, factors)
    found = rounding.compensated(weight, factors, covariance)
    assert decibels(weight, found, factors, covariance) > decibels(weight, plain, factors, covariance) + 1
    assert found.dtype == np.int8 and np.abs(found.astype(int)).max() <= 127


def test_no_row_comes_out_worse_than_with_the_nearest_integers() -> None:
    weight, covariance = RNG.standard_cauchy((2, 8, 30)), correlated(2, 30)
    factors = rounding.least_error(weight, covariance)
    found, plain = rounding.compensated(weight, factors, covariance), rounding.nearest(weight, factors)
    loss = [rounding.loss(weight, each, factors, covariance) for each in (found, plain)]
    assert (loss[0] <= loss[1]).all()


def test_independent_inputs_leave_nothing_to_compensate() -> None:
    weight = RNG.normal(0, 1, (1, 5, 20))
    factors = rounding.whole_range(weight)
    assert (rounding.compensated(weight, factors, np.eye(20)[None]) == rounding.nearest(weight, factors)).all()


def test_inputs_that_never_change_and_dead_rows_give_finite_integers() -> None:
    weight, covariance = RNG.normal(0, 1, (1, 4, 10)), correlated(1, 10)
    weight[0, 1] = 0.0
    covariance[:, 3:6] = covariance[:, :, 3:6] = 0.0
    for known in (covariance, np.zeros((1, 10, 10))):
        factors = rounding.least_error(weight, known)
        assert np.isfinite(factors).all() and (factors > 0).all()
        found = rounding.compensated(weight, factors, known)
        assert (found[0, 1] == 0).all()
        assert np.abs(found / factors[:, :, None] - weight).max() < 1


def test_least_error_factors_clip_an_outlier_that_costs_more_than_it_is_worth() -> None:
    weight = np.append(RNG.normal(0, 1, 4000), 8.0)[None, None]
    whole, least = rounding.whole_range(weight), rounding.least_error(weight)
    assert least > whole
    loss = [np.square(rounding.nearest(weight, f) / f[:, :, None] - weight).sum() for f in (whole, least)]
    assert loss[1] < loss[0]


def test_the_same_weights_give_the_same_integers() -> None:
    weight, covariance = RNG.normal(0, 1, (1, 16, 64)), correlated(1, 64)
    factors = rounding.least_error(weight, covariance)
    first, second = (rounding.compensated(weight, factors, covariance) for _ in range(2))
    assert first.tobytes() == second.tobytes()

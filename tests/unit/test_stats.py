"""Percentiles only where samples justify them, intervals that cover, comparisons that survive heat."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import stats
from edgepack.bench import interleaved

times = st.lists(st.integers(1, 10**10), min_size=1, max_size=400)


def test_how_many_samples_a_percentile_needs() -> None:
    assert [stats.samples_needed(q) for q in (0.9, 0.95, 0.99)] == [29, 59, 299]
    for q in (0.0, 1.0):
        with pytest.raises(ValueError, match="between"):
            stats.samples_needed(q)


@pytest.mark.parametrize(("quantile", "least"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_a_percentile_of_too_few_samples_is_none(quantile: float, least: int) -> None:
    assert stats.percentile(range(least - 1), quantile) is None
    assert stats.percentile(range(least), quantile) is not None
    assert stats.percentile([], 0.5) is None


@given(times, st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.95, 0.99]))
def test_a_percentile_is_the_sample_that_numpy_calls_inverted_cdf(samples: list[int], quantile: float) -> None:
    found = stats.percentile(samples, quantile)

    if quantile > 0.5 and len(samples) < stats.samples_needed(quantile):
        assert found is None
    else:
        assert found == int(np.quantile(samples, quantile, method="inverted_cdf"))
        assert found in samples


@given(times, st.randoms())
def test_percentiles_and_intervals_dont_depend_on_the_order(samples: list[int], random: object) -> None:
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert stats.percentile(samples, 0.5) == stats.percentile(shuffled, 0.5)
    assert stats.quantile_interval(samples) == stats.quantile_interval(shuffled)


@given(st.lists(st.integers(1, 10**6), min_size=6, max_size=200, unique=True))
def test_an_interval_holds_its_quantile_and_moves_with_the_unit(samples: list[int]) -> None:
    low, high, coverage = stats.quantile_interval(samples) or (0.0, 0.0, 0.0)
    median = stats.percentile(samples, 0.5)

    assert median is not None
    assert low <= median <= high
    assert 0.95 <= coverage <= 1
    assert stats.quantile_interval([3 * each for each in samples]) == (3 * low, 3 * high, coverage)


def test_an_interval_of_too_few_samples_is_none() -> None:
    assert stats.quantile_interval(range(5)) is None
    assert stats.quantile_interval(range(6)) == (0, 5, pytest.approx(1 - 2 * 0.5**6))
    assert stats.quantile_interval([]) is None


@pytest.mark.parametrize("n", [6, 8, 25, 100])
@pytest.mark.parametrize("quantile", [0.5, 0.75])
def test_an_interval_covers_as_often_as_it_says(n: int, quantile: float) -> None:
    random = np.random.default_rng(n)
    truth = math.exp(math.sqrt(2) * _erfinv(2 * quantile - 1))  # of the log-normal distribution
    trials, said, hits = 2000, 0.0, 0
    for _ in range(trials):
        interval = stats.quantile_interval(np.exp(random.normal(size=n)), quantile)
        if interval is None:
            return
        said = interval[2]
        hits += interval[0] <= truth <= interval[1]

    assert said >= 0.95
    assert abs(hits / trials - said) < 0.015


def _erfinv(x: float) -> float:
    low, high = -6.0, 6.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle) < x else (low, middle)
    return low


def test_the_binomial_agrees_with_counting() -> None:
    cdf = stats._binomial_cdf(10, 0.3)

    for k in range(11):
        exact = sum(math.comb(10, i) * 0.3**i * 0.7 ** (10 - i) for i in range(k + 1))
        assert cdf[k] == pytest.approx(exact, abs=1e-12)
    assert stats._binomial_cdf(200_000, 0.99)[-1] == pytest.approx(1)


def test_warm_up_ends_where_the_runs_are_like_the_later_ones() -> None:
    cold = [200, 180, 160, 140, 120, 110]

    assert 4 <= stats.steady_start(cold + [100] * 50) <= 6
    assert stats.steady_start([100] * 50) == 0
    assert stats.steady_start([100, 100, 900, 100, 100] + [100] * 50) == 0, "a spike is no warm-up"
    assert stats.steady_start(list(range(1000, 2000, 10))) == 50, "at most half"
    assert stats.steady_start([5, 4]) == 0
    assert stats.steady_start([]) == 0


@given(times)
def test_warm_up_is_at_most_half(samples: list[int]) -> None:
    assert 0 <= stats.steady_start(samples) <= len(samples) // 2


rounds = st.lists(st.floats(-1, 1), min_size=1, max_size=40)


@given(rounds, rounds)
def test_swapping_the_variants_turns_the_verdict_round(a: list[float], b: list[float]) -> None:
    n = min(len(a), len(b))
    one, other = stats.compare(a[:n], b[:n]), stats.compare(b[:n], a[:n])

    assert {"faster": "slower", "slower": "faster", "tie": "tie"}[one.verdict] == other.verdict
    assert one.ratio == pytest.approx(1 / other.ratio)


@given(rounds)
def test_a_variant_is_a_tie_with_itself(a: list[float]) -> None:
    assert stats.compare(a, a).verdict == "tie"


def test_few_rounds_never_tell() -> None:
    told = stats.compare([0.0] * 7, [1.0] * 7)

    assert (told.verdict, told.low, told.high) == ("tie", None, None)
    assert stats.compare([], []).verdict == "tie"


def test_a_difference_that_nobody_would_act_on_is_a_tie() -> None:
    assert stats.compare([0.0] * 30, [math.log(1.009)] * 30).verdict == "tie"
    assert stats.compare([0.0] * 30, [math.log(1.011)] * 30).verdict == "slower"


def test_a_fifth_of_the_rounds_may_be_disturbed() -> None:
    n = stats.rounds_needed(stats.LEVEL)
    b = [math.log(1.05)] * n
    b[:4] = [-2.0] * 4

    assert stats.compare([0.0] * n, b).verdict == "slower"
    b[4] = -2.0
    assert stats.compare([0.0] * n, b).verdict == "tie"


def warming(random: np.random.Generator, order: list[int], effect: float) -> stats.Comparison:
    """A device that is 12 % slower when warm, with noise between processes (1 %)."""
    levels: dict[int, list[float]] = {0: [], 1: []}
    for position, case in enumerate(order):
        heat = 0.12 * (1 - math.exp(-position / 20))
        levels[case].append(math.log(1 + heat) + effect * case + random.normal(0, 0.01))
    a, b = (np.array(each).reshape(-1, 2).mean(axis=1) for each in levels.values())
    return stats.compare(a, b)


def test_interleaving_survives_a_warming_device_and_one_after_the_other_does_not() -> None:
    random = np.random.default_rng(7)
    mixed = [case for _, case in interleaved(2, stats.rounds_needed(stats.LEVEL / 2))]
    one_by_one = sorted(mixed)

    wrong = sum(warming(random, mixed, 0.0).verdict != "tie" for _ in range(400))
    found = sum(warming(random, mixed, math.log(1.05)).verdict == "slower" for _ in range(400))
    fooled = sum(warming(random, one_by_one, 0.0).verdict == "slower" for _ in range(400))

    assert wrong <= 8
    assert found >= 380
    assert fooled >= 396


def test_false_alarms_stay_rare_when_rounds_resemble_each_other() -> None:
    """Noise that lasts for several rounds hits both variants of a round alike."""
    random = np.random.default_rng(8)
    wrong = 0
    for _ in range(500):
        slow = np.cumsum(random.normal(0, 0.05, 30))
        wrong += stats.compare(slow + random.normal(0, 0.02, 30), slow + random.normal(0, 0.02, 30)).verdict != "tie"

    assert wrong <= 10


@given(st.integers(1, 9), st.integers(1, 30))
def test_a_round_runs_every_case_forwards_and_backwards(cases: int, turns: int) -> None:
    order = interleaved(cases, turns)

    assert len(order) == 2 * cases * turns
    for turn in range(turns):
        row = [case for at, case in order if at == turn]
        assert row == row[::-1] and sorted(row) == sorted(list(range(cases)) * 2)


def test_each_of_two_cases_is_first_in_half_of_the_rounds() -> None:
    first = [row[0] for row in (np.array(interleaved(2, 32))[:, 1].reshape(32, 4))]

    assert sum(first) == 16


def test_the_canary_sees_a_slowdown_of_all_cases_and_not_a_difference_between_them() -> None:
    table = np.log(np.array([[10.0] * 12, [20.0] * 12, [5.0] * 12]))
    assert stats.drift(stats.round_factors(table)) == pytest.approx(1)

    table[:, 6:] += math.log(1.3)
    assert stats.drift(stats.round_factors(table)) == pytest.approx(1.3)

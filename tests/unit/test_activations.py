"""What the quantizers gather about activations, without any engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import edgepack
from edgepack import converter

PATH = Path(edgepack.__file__).parent / "converters" / "activations.py"
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def activations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("activations", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error(values: np.ndarray, low: float, high: float) -> float:
    """Squared error of eight bits over [low, high], zero being one of the levels."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    back = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return float(np.square(back - values).sum())


@pytest.mark.parametrize("positive", [False, True])
def test_the_least_error_range_is_as_good_as_a_search_over_real_rounding(
    activations: ModuleType, positive: bool
) -> None:
    values = RNG.laplace(size=(8, 10_000)).astype(np.float32) + 0.3
    values = np.maximum(values, 0) if positive else values
    seen = activations.Seen("x", None)
    for row in values:
        seen.add(row)
    steps = np.linspace(0.2, 1.0, 17)
    lows = [0.0] if positive else [float(values.min()) * step for step in steps]
    best = min(error(values, low, float(values.max()) * step) for low in lows for step in steps)
    assert error(values, *seen.range(None)) < 1.03 * best
    assert error(values, *seen.range(None)) < error(values, *seen.range(0.0))


def test_ranges_do_not_depend_on_the_order_of_the_samples(activations: ModuleType) -> None:
    rows = [RNG.standard_normal(4000).astype(np.float32) * scale for scale in (0.01, 3.0, 700.0)]
    first, second = activations.Seen("x", None), activations.Seen("x", None)
    for row in rows:
        first.add(row)
    for row in reversed(rows):
        second.add(row)
    assert first.range(0.0) == second.range(0.0) == (min(r.min() for r in rows), max(r.max() for r in rows))
    assert first.range(1e-3) == pytest.approx(second.range(1e-3), rel=0.02)


def test_channel_means_are_those_of_all_samples(activations: ModuleType) -> None:
    values = RNG.standard_normal((6, 1, 5, 7, 7)).astype(np.float32)
    seen = activations.Seen("x", 1)
    for row in values:
        seen.add(row)
    np.testing.assert_allclose(seen.mean(), values.mean(axis=(0, 1, 3, 4)), atol=1e-6)


def test_what_pads_or_masks_is_no_value_and_infinity_is_an_error_with_a_name(activations: ModuleType) -> None:
    seen = activations.Seen("the mask", None)
    seen.add(np.array([1.0, -3.4e38, 2.0], np.float32))
    assert seen.range(0.0) == (1.0, 2.0)
    with pytest.raises(SystemExit, match="NaN or infinity in the mask"):
        seen.add(np.array([1.0, np.inf], np.float32))


def test_a_tensor_of_zeros_or_of_nothing_has_a_range(activations: ModuleType) -> None:
    for values in (np.zeros(10, np.float32), np.zeros(0, np.float32)):
        seen = activations.Seen("x", None)
        seen.add(values)
        for rule in ("mse", "percentile", "minmax", "average", "entropy"):
            assert seen.chosen(rule) == (0.0, 0.0)


def brute_entropy(values: np.ndarray, bins: int, width: float, step: int) -> float:
    """The threshold of Migacz's talk, bin by bin."""
    counts = np.histogram(np.abs(values), bins=bins, range=(0.0, bins * width))[0].astype(float)
    counts[0] = counts[1]
    losses = {}
    for kept in range(128, bins + 1, step):
        reference = counts[:kept].copy()
        reference[-1] += counts[kept:].sum()
        merged, coded = kept // 128, np.zeros(kept)
        for level in range(128):
            first = level * merged
            last = kept if level == 127 else first + merged
            filled = [i for i in range(first, last) if reference[i] > 0]
            for i in filled:
                coded[i] = counts[first:last].sum() / len(filled)
        p, q = reference / reference.sum(), coded / coded.sum()
        losses[kept] = sum(np.inf if q[i] == 0 else p[i] * np.log(p[i] / q[i]) for i in range(kept) if p[i] > 0)
    return min(losses, key=lambda kept: losses[kept]) * width


@pytest.mark.parametrize("positive", [False, True])
def test_every_rule_gives_the_textbooks_range(activations: ModuleType, positive: bool) -> None:
    values = RNG.laplace(size=(6, 4000)).astype(np.float32)
    values = np.maximum(values, 0.0) if positive else values
    seen = activations.Seen("x", None)
    for row in values:
        seen.add(row)
    width = 2.0 * seen.limit / activations.BINS
    assert seen.chosen("minmax") == (values.min(), values.max())
    smooth = (np.mean([row.min() for row in values]), np.mean([row.max() for row in values]))
    assert seen.chosen("average") == pytest.approx(smooth, rel=1e-5, abs=1e-6)
    cut = np.quantile(values, [0.5e-4, 1 - 0.5e-4])
    assert seen.chosen("percentile") == pytest.approx(cut, abs=float(2 * width + 0.02 * np.abs(values).max()))
    bins = int(np.abs(values).max() / width) + 1
    edge = brute_entropy(values, bins, width, activations.ENTROPY_STEP)
    low, high = seen.chosen("entropy")
    assert high == pytest.approx(min(edge, values.max()), abs=float(width))
    assert low == pytest.approx(max(-edge, values.min()), abs=float(width))
    assert seen.chosen("mse") == seen.range(None)


def test_a_moving_average_follows_the_newest_samples_when_there_are_many(activations: ModuleType) -> None:
    seen, low, high = activations.Seen("x", None), 0.0, 0.0
    for index in range(300):
        row = np.array([-1.0 - index / 100, 2.0 + index / 50], np.float32)
        seen.add(row)
        weight = max(0.01, 1 / (index + 1))
        low, high = low + weight * (row[0] - low), high + weight * (row[1] - high)
    assert seen.chosen("average") == pytest.approx((low, high), rel=1e-5)
    assert seen.chosen("average")[1] > 2.0 + 150 / 50  # beyond the plain mean


def test_rows_are_the_entries_of_the_file(activations: ModuleType, tmp_path: Path) -> None:
    for array in (RNG.standard_normal((3, 1, 2, 4)), np.arange(5, dtype=np.int32), np.zeros((0, 3))):
        np.save(tmp_path / "0.npy", array)
        got = list(activations.rows(tmp_path / "0.npy"))
        assert len(got) == len(array)
        for row, expected in zip(got, array, strict=True):
            assert row.shape == np.shape(expected) and row.dtype == array.dtype
            np.testing.assert_array_equal(row, expected)


def test_a_change_in_a_shared_module_changes_the_digest_of_the_scripts_that_import_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "FOLDER", tmp_path)
    (tmp_path / "user.py").write_text("import sys\nfrom shared import thing\n")
    (tmp_path / "other.py").write_text("import sys\n")
    (tmp_path / "shared.py").write_text("try:\n    from below import thing\nexcept ImportError:\n    pass\n")
    (tmp_path / "below.py").write_text("thing = 1\n")
    before = [converter.digest(name) for name in ("user", "other")]
    (tmp_path / "below.py").write_text("thing = 2\n")
    after = [converter.digest(name) for name in ("user", "other")]
    assert before[0] != after[0] and before[1] == after[1]

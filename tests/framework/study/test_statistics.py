"""Intervals cover what they promise, in simulations with a known truth; outliers and effect sizes against worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from framework.study.statistics import (
    FIRST_LOOK,
    MIN_BOOTSTRAP,
    confidence_halfwidth,
    effect_size,
    is_outlier,
    mean_interval,
    t_quantile,
)


@pytest.mark.parametrize("num", [2, 5, MIN_BOOTSTRAP, 12, 40])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_an_interval_covers_the_mean_in_95_percent(num: int, tails: str) -> None:
    """Heavy: every tenth value is of five times the spread, as on a machine with neighbours."""
    rng = np.random.default_rng(num)
    samples = rng.normal(size=(1500, num)) * np.where((rng.random((1500, num)) < 0.1) & (tails == "heavy"), 5, 1)
    intervals = [mean_interval(sample) for sample in samples]
    assert {interval.kind for interval in intervals} == {"t" if num < MIN_BOOTSTRAP else "bootstrap"}
    covered = np.mean([not interval.excludes(0.0) for interval in intervals])
    assert 0.935 <= covered <= 0.99  # three standard errors below 95 %


def test_the_plain_percentile_bootstrap_would_cover_too_little() -> None:
    """Why the percentiles are moved outwards, and why fewer than MIN_BOOTSTRAP values take Student's t."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(1500, 5))
    resampled = samples[:, rng.integers(0, 5, (500, 5))].mean(axis=-1)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.88


def test_intervals_are_the_same_every_time_and_lean_with_the_data() -> None:
    values = np.exp(np.random.default_rng(1).normal(size=20))
    first = mean_interval(values)
    assert first == mean_interval(values)
    half = confidence_halfwidth(values)
    assert first.low == pytest.approx(values.mean() - half) and first.high > values.mean() + half + 0.01 * half
    assert math.isnan(mean_interval([1.0]).low) and mean_interval([1.0]).kind == "none"


def test_quantiles_of_t() -> None:
    """Against R's qt(0.975, df)."""
    for degrees, expected in ((1, 12.7062), (9, 2.2622), (30, 2.0423), (31, 2.0395), (60, 2.0003), (1000, 1.9623)):
        assert t_quantile(degrees) == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize("precision", [0.35, 0.42, 0.5, 0.7, 1.0])
def test_repeating_until_the_interval_is_narrow_leaves_5_percent_of_false_alarms(precision: float) -> None:
    """Precision in units of the spread: between stopping at the first look and at the last of 60."""
    rng = np.random.default_rng(0)
    num_runs, most = 4000, 60
    samples = rng.normal(size=(num_runs, most))
    numbers = np.arange(1, most + 1)
    means = samples.cumsum(axis=1) / numbers
    spreads = np.sqrt(np.maximum((samples**2).cumsum(axis=1) - numbers * means**2, 0) / np.maximum(numbers - 1, 1))

    def false_alarms(quantiles: np.ndarray) -> float:
        halves = quantiles * spreads / np.sqrt(numbers)
        enough = (halves <= precision) & (numbers >= FIRST_LOOK) | (numbers == most)
        stop = enough.argmax(axis=1)
        rows = np.arange(num_runs)
        return float(np.mean(np.abs(means[rows, stop]) > halves[rows, stop]))

    sequential = np.array([t_quantile(max(1, min(n, FIRST_LOOK) - 1)) for n in numbers])
    assert confidence_halfwidth(samples[0], sequential=True) == pytest.approx(sequential[-1] * spreads[0, -1] / math.sqrt(most))
    assert false_alarms(sequential) <= 0.055 + 0.007  # two standard errors
    if precision == 0.42:
        ordinary = np.array([t_quantile(max(1, n - 1)) for n in numbers])
        assert false_alarms(ordinary) > 0.065, "which is why the degrees of freedom are those of the first look"


def test_effect_size_is_cohens_d_of_the_pairs() -> None:
    assert effect_size([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert effect_size([2.0, 2.0]) == math.inf and effect_size([-2.0, -2.0]) == -math.inf
    assert math.isnan(effect_size([0.0, 0.0])) and math.isnan(effect_size([1.0]))


def test_outliers_lie_beyond_the_whiskers_of_a_box_plot() -> None:
    """Quartiles of ln(1, 2, 4, 8, 16, v) for a large v: the whisker ends at ln(v) = 3.75 + 1.5 * 2.5 steps of ln 2."""
    usual = [1.0, 2.0, 4.0, 8.0, 16.0]
    beyond, within = 2.0**7.6, 2.0**7.4
    assert list(is_outlier([*usual, beyond])) == [False] * 5 + [True] and not is_outlier([*usual, within]).any()
    assert list(is_outlier([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, math.nan])) == [False] * 5 + [True, False]
    assert not is_outlier([1.0, 1.0, 1.0, 100.0]).any(), "four values do not say what is usual"
    assert not is_outlier([0.1 + 0.2, 0.3, 0.3, 0.3, 0.3]).any(), "equal up to rounding"
    assert list(is_outlier([-1.0, 0.0, 1.0, 0.0, 0.5, 9.0], log=False)) == [False] * 5 + [True]

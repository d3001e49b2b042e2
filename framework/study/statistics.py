"""Intervals, effect sizes and outliers of repeated measurements.

How often the intervals cover the truth is simulated in tests/framework/study/test_statistics.py, sequential repeats included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

NUM_RESAMPLES = 4000
MIN_BOOTSTRAP = 8
"""Values from which on the bootstrap is used: resamples of fewer are too much alike, and cover the mean too seldom."""
FIRST_LOOK = 10
"""Repeats before ``repeats=auto`` looks at the spread for the first time."""
MIN_OUTLIER = 5
"""Values from which on quartiles say what is usual."""

# 97.5 % quantiles of Student's t distribution for 1, 2, ... degrees of freedom.
_T_TABLE = """12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201 2.179 2.160 2.145 2.131 2.120 2.110 2.101 2.093
2.086 2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045 2.042"""
_T_975 = tuple(map(float, _T_TABLE.split()))


@dataclass(frozen=True)
class Interval:
    """Bounds of a 95 % confidence interval, NaN where there is none, and what they are: bootstrap, t, or none."""

    low: float
    high: float
    kind: str

    def excludes(self, value: float) -> bool:
        """Whether the interval says that the truth is not ``value``."""
        return self.low > value or self.high < value


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t distribution."""
    # From 31 degrees of freedom on, the first term of the expansion around the normal quantile is right to 0.004.
    return _T_975[degrees - 1] if degrees <= len(_T_975) else 1.960 + 2.372 / degrees


def confidence_halfwidth(values: Sequence[float] | np.ndarray, sequential: bool = False) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); NaN for fewer than two values, or
    an infinite one.

    ``sequential``: the number of values was decided while they came, by this very width. It depends on their spread alone, which
    for normal values says nothing about their mean; but one stops where the spread seems small, and so t counts only the degrees
    of freedom of the first look (after Stein's two stages, 1945)."""
    num = len(values)
    if num < 2 or not np.isfinite(values).all():
        return math.nan
    return _quantile(num, sequential) * float(np.std(values, ddof=1)) / math.sqrt(num)


def mean_interval(values: Sequence[float] | np.ndarray, sequential: bool = False) -> Interval:
    """95 % confidence interval of the mean of independent values; ``sequential`` as in ``confidence_halfwidth``.

    Student's t below MIN_BOOTSTRAP values. From there on a seeded bootstrap, its percentiles moved outwards by as much as t is
    wider than the normal distribution (expanded percentiles, Hesterberg 2015), and nowhere inside the t interval: plain
    percentiles of 8 values cover the mean of normal ones in 89 % of the cases."""
    x = np.asarray(values, dtype=float)
    half = confidence_halfwidth(x, sequential)
    if math.isnan(half):
        return Interval(math.nan, math.nan, "none")
    low, high = float(x.mean()) - half, float(x.mean()) + half
    num = len(x)
    if num < MIN_BOOTSTRAP:
        return Interval(low, high, "t")
    means = x[np.random.default_rng(0).integers(0, num, (NUM_RESAMPLES, num))].mean(axis=1)
    tail = NormalDist().cdf(-math.sqrt(num / (num - 1)) * _quantile(num, sequential))
    boot_low, boot_high = np.quantile(means, [tail, 1 - tail])
    return Interval(min(low, float(boot_low)), max(high, float(boot_high)), "bootstrap")


def _quantile(num: int, sequential: bool) -> float:
    return t_quantile((min(num, FIRST_LOOK) if sequential else num) - 1)


@dataclass(frozen=True)
class Changes:
    """From a base to what is compared with it, pair by pair: logarithms of the ratios, or, where a value is not positive, the
    differences. ``base`` is the mean of the bases."""

    values: np.ndarray
    is_ratio: bool
    base: float

    @classmethod
    def of(cls, values: np.ndarray, bases: np.ndarray) -> Changes:
        """Pairs with a value that is not finite are left out."""
        both = np.isfinite(values) & np.isfinite(bases)
        values, bases = values[both], bases[both]
        base = float(bases.mean()) if len(bases) else math.nan
        if (values > 0).all() and (bases > 0).all():
            return cls(np.log(values / bases), True, base)
        return cls(values - bases, False, base)

    def relative(self, change: float) -> float:
        """A mean of the values as a fraction of the base; infinite for a change from zero."""
        if self.is_ratio:
            return math.expm1(change)
        return change / abs(self.base) if self.base else math.copysign(math.inf, change)


def effect_size(differences: Sequence[float] | np.ndarray) -> float:
    """Cohen's d of paired differences: their mean in units of their standard deviation. NaN for fewer than two, or if all are
    zero."""
    if len(differences) < 2:
        return math.nan
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if spread <= 1e-12 * abs(mean) or spread == 0:  # all alike, up to rounding
        return math.copysign(math.inf, mean) if mean else math.nan
    return mean / spread


def is_outlier(values: Sequence[float] | np.ndarray, log: bool = True) -> np.ndarray:
    """Which values lie more than 1.5 interquartile ranges beyond the quartiles, of their logarithms unless they may be negative.
    NaN never does; zero does, where others are positive; fewer than MIN_OUTLIER values have none."""
    x = np.asarray(values, dtype=float)
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.log(x)
    usual = x[np.isfinite(x)]
    if len(usual) < MIN_OUTLIER:
        return np.zeros(len(x), dtype=bool)
    first, third = np.quantile(usual, [0.25, 0.75])
    reach = 1.5 * (third - first) + 1e-9 * max(1.0, abs(first))  # equal values differ by rounding
    return (x < first - reach) | (x > third + reach)

"""Repeats, confidence intervals and paired comparison on a table of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .sweep import differences_text, select, setting_columns, swept_columns

if TYPE_CHECKING:
    import pandas as pd

# 97.5 % quantiles of Student's t distribution for 1, 2, ... degrees of freedom.
_T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)


def confidence_halfwidth(values: Sequence[float] | np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); NaN for fewer than two values."""
    num = len(values)
    if num < 2:
        return math.nan
    # From 31 degrees of freedom on, the first term of the expansion around the normal quantile is right to 0.004.
    quantile = _T_975[num - 2] if num - 2 < len(_T_975) else 1.960 + 2.372 / (num - 1)
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(num)


def summarize(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per setting (what was swept, seeds aside): number of repeats, and mean and 95 % confidence half-width of each
    metric over them; the half-widths are left out if nothing was repeated."""
    finished, columns = _finished(runs, metrics)
    groups = _grouped(finished, columns)
    table = groups.size().to_frame("repeats")
    for metric in metrics:
        table[metric] = groups[metric].mean()
        if table["repeats"].max() > 1:
            table[f"{metric}.ci95"] = groups[metric].agg(confidence_halfwidth)
    return table.reset_index(drop=not columns)


def compare(runs: pd.DataFrame, metrics: Sequence[str], column: str, base: str) -> pd.DataFrame:
    """Ratios to the runs with ``column == base``, each run paired with the one that is equal in everything else that was swept
    (seeds too: both then served the same requests). One row per setting and other value of ``column``: number of pairs, and for
    each metric the geometric mean of the ratios, with the bounds of its 95 % confidence interval if there are several pairs. Runs
    without the column are left out.

    Raises ValueError if the column was not swept, or has no such value."""
    finished, columns = _finished(runs, metrics)
    if column not in columns:
        raise ValueError(f"{column!r} was not swept; the runs differ in {differences_text(finished)}")
    finished = finished[finished[column].notna()]
    is_base = finished.index.isin(select(finished, column, base).index)
    pair_by = [c for c in swept_columns(finished) if c != column]
    bases = finished.loc[is_base, [*pair_by, *metrics]]
    how = {"on": pair_by} if pair_by else {"how": "cross"}
    pairs = finished[~is_base].merge(bases, suffixes=("", ".base"), **how)
    for metric in metrics:
        pairs[metric] = np.log(pairs[metric] / pairs[f"{metric}.base"])
    groups = _grouped(pairs, columns)
    table = groups.size().to_frame("pairs")
    for metric in metrics:
        center, half = groups[metric].mean(), groups[metric].agg(confidence_halfwidth)
        table[f"{metric}.ratio"] = np.exp(center)
        if table["pairs"].max() > 1:
            table[f"{metric}.ratio.low"], table[f"{metric}.ratio.high"] = np.exp(center - half), np.exp(center + half)
    return table.reset_index()


def _grouped(runs: pd.DataFrame, columns: list[str]) -> Any:
    return runs.groupby(columns or np.zeros(len(runs)), dropna=False, sort=False)


def _finished(runs: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The runs that worked, and the columns that make a setting."""
    unknown = [metric for metric in metrics if metric not in runs]
    if unknown:
        known = ", ".join(c.removeprefix("metric.") for c in runs.columns if c.startswith("metric."))
        raise ValueError(f"no run has the metric {unknown[0].removeprefix('metric.')!r}; there are {known or 'none'}")
    return runs[runs["status"] == "ok"], setting_columns(runs)

"""Repeats, their outliers, and paired comparison on a table of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .labels import USUAL_METRICS
from .statistics import Changes, Interval, confidence_halfwidth, effect_size, is_outlier, mean_interval
from .sweep import AUTO, differences_text, is_repeat, select, setting_columns, swept_columns

if TYPE_CHECKING:
    import pandas as pd

_ENVIRONMENT = tuple(f"env.{name}" for name in ("kernelswap", "commit", "torch", "triton", "python", "cpu", "num_cpus", "device"))
_NTH, _ROW = "pair.nth", "pair.row"


def usual_metrics(runs: pd.DataFrame) -> list[str]:
    """Of USUAL_METRICS those that some run observed."""
    return [name for name in USUAL_METRICS if f"metric.{name}" in runs and runs[f"metric.{name}"].notna().any()]


def summarize(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per setting (what was swept, repeats aside): number of repeats that worked, how many of them are outliers (if any
    is), and mean and 95 % confidence half-width (Student's t) of each metric; the half-widths are left out if nothing was
    repeated."""
    _check_metrics(runs, metrics)
    finished, columns = runs[runs["status"] == "ok"], setting_columns(runs)
    groups = _grouped(finished, columns)
    table = groups.size().to_frame("repeats")
    flagged = outliers(runs, metrics) != ""
    if flagged.any():
        table["outliers"] = _grouped(finished.assign(outlier=flagged), columns)["outlier"].sum()
    for metric in metrics:
        table[metric] = groups[metric].mean()
        if table["repeats"].max() > 1:
            table[f"{metric}.ci95"] = groups[metric].agg(lambda values: confidence_halfwidth(values.dropna()))
    return table.reset_index(drop=not columns)


def outliers(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.Series:
    """Of every run the metrics in which it lies far from the other repeats of its setting, as text; they count all the same."""
    import pandas as pd

    _check_metrics(runs, metrics)
    found: dict[Any, list[str]] = {index: [] for index in runs.index}
    finished = runs[runs["status"] == "ok"]
    for _, group in _grouped(finished, setting_columns(runs)):
        for metric in metrics:
            for index in group.index[is_outlier(group[metric])]:
                found[index].append(metric.removeprefix("metric."))
    return pd.Series({index: ",".join(names) for index, names in found.items()}, dtype=str)


def compare(runs: pd.DataFrame, metrics: Sequence[str], column: str, base: str) -> pd.DataFrame:
    """The runs with another value of ``column`` beside those with ``column == base``, each paired with the one that is equal in
    everything else that was swept (repeat and seeds too: both then served the same requests), the first with the first where
    several are. What only the base has, such as the 0 drafts of no method, is part of being the base, and hinders no pair. Runs
    without the column are left out, failed ones and those without the metric are in no pair.

    One row per setting, other value of ``column`` and metric:

    runs, pairs     runs that were asked for, and how many of them are in a pair
    scale           ratio: the estimate is the geometric mean of the pairs' ratios to the base; difference: where a pair has a
                    value that is not positive, the mean of the differences
    estimate, low, high   with the bounds of its 95 % confidence interval, NaN for a single pair
    interval        what the bounds are: paired bootstrap, or t (Student's, for few pairs); of the logarithms of the ratios
    effect_size     Cohen's d of the paired differences (of logarithms, for ratios)
    outliers        pairs whose difference lies far from the others; they count all the same
    verdict         within noise where the interval holds no change; else by how much, in percent of the base

    Raises ValueError if the column was not swept, or has no such value."""
    import pandas as pd

    _check_metrics(runs, metrics)
    columns = setting_columns(runs)
    if column not in columns:
        raise ValueError(f"{column!r} was not swept; the runs differ in {differences_text(runs)}")
    runs = runs[runs[column].notna()]
    is_base = runs.index.isin(select(runs, column, base).index)
    others = [c for c in swept_columns(runs) if c != column and not _follows(runs, c, column)]
    pair_by = [c for c in others if not _is_of_base(runs, c, is_base)]
    runs = runs.copy()
    runs[_NTH], runs[_ROW] = runs.groupby([column, *others], dropna=False).cumcount(), runs.index
    pair_by.append(_NTH)
    worked = runs["status"] == "ok"
    pairs = runs[~is_base & worked].merge(runs.loc[is_base & worked, [*pair_by, *metrics]], on=pair_by, suffixes=("", ".base"))
    sequential = "repeats" in runs and bool((runs["repeats"] == AUTO).any())
    rows = []
    for setting, group in _grouped(runs[~is_base], columns):
        paired = pairs[pairs[_ROW].isin(group.index)]
        for metric in metrics:
            values, bases = (paired[name].to_numpy(dtype=float) for name in (metric, f"{metric}.base"))
            rows.append(
                dict(zip(columns, setting)) | {"metric": metric, "runs": len(group)} | _compared(values, bases, metric, sequential)
            )
    return pd.DataFrame(rows)


def environment_caveat(runs: pd.DataFrame) -> list[str]:
    """A sentence if the runs that worked differ in versions or machines, else none."""
    finished = runs[runs["status"] == "ok"]
    numbers = {c: finished[c].nunique() for c in finished.columns if c in _ENVIRONMENT}
    differing = [f"{column} ({number} values)" for column, number in numbers.items() if number > 1]
    return [f"The runs are not of one environment: {', '.join(differing)}."] if differing else []


def chance_caveat(compared: pd.DataFrame) -> list[str]:
    """A sentence if a table of ``compare`` has so many intervals that some mislead, else none."""
    num = int((compared["interval"] != "none").sum())
    text = f"{num} intervals at 95 %: about one in 20 excludes no change by chance. Decide by one metric, named beforehand."
    return [text] if num > 1 else []


def _compared(values: np.ndarray, bases: np.ndarray, metric: str, sequential: bool) -> dict[str, Any]:
    changes = Changes.of(values, bases)
    num = len(changes.values)
    interval, mean = mean_interval(changes.values, sequential), float(changes.values.mean()) if num else math.nan
    onto = math.exp if changes.is_ratio else float
    return {
        "pairs": num,
        "scale": "ratio" if changes.is_ratio else "difference",
        "estimate": onto(mean),
        "low": onto(interval.low),
        "high": onto(interval.high),
        "interval": interval.kind,
        "effect_size": effect_size(changes.values),
        "outliers": int(is_outlier(changes.values, log=False).sum()),
        "verdict": _verdict(interval, num, 100 * changes.relative(mean), metric),
    }


def _verdict(interval: Interval, num_pairs: int, percent: float, metric: str) -> str:
    if num_pairs < 2:
        return "no pair" if num_pairs == 0 else "one pair, no interval"
    if not interval.excludes(0.0):
        return "within noise"
    is_time = metric.endswith("_s") and "_per_s" not in metric
    word = ("slower" if is_time else "higher") if interval.low > 0 else ("faster" if is_time else "lower")
    return f"{abs(percent):.3g} % {word}" if math.isfinite(percent) else f"{word}, from zero"


def _follows(runs: pd.DataFrame, column: str, other: str) -> bool:
    """Whether a setting is the same wherever ``other`` is: the twenty numbers of a model follow from its name."""
    return not is_repeat(column) and bool((runs.groupby(other)[column].nunique(dropna=False) <= 1).all())


def _is_of_base(runs: pd.DataFrame, column: str, is_base: np.ndarray) -> bool:
    """Whether the base has one value of a setting, which no other run has."""
    values = runs.loc[is_base, column].unique()
    return not is_repeat(column) and len(values) == 1 and not runs.loc[~is_base, column].isin(values).any()


def _grouped(runs: pd.DataFrame, columns: list[str]) -> Any:
    return runs.groupby(columns or np.zeros(len(runs)), dropna=False, sort=False)


def _check_metrics(runs: pd.DataFrame, metrics: Sequence[str]) -> None:
    unknown = [metric for metric in metrics if metric not in runs]
    if unknown:
        known = ", ".join(c.removeprefix("metric.") for c in runs.columns if c.startswith("metric."))
        raise ValueError(f"no run has the metric {unknown[0].removeprefix('metric.')!r}; there are {known or 'none'}")

"""How metrics move when the time of one op is scaled: elasticities, d log metric / d log time of the op, with intervals.

An elasticity is taken between the factors nearest to 1, one below and one above (0.8 and 1.25 are as far from 1 on a logarithmic
scale, so that curvature cancels), else between the nearest one and 1. A part of the step that is a share s of its time has
elasticity s of what is proportional to the time of steps. If all times scale, so do TTFT and TPOT where requests wait for nobody
but the engine (closed loop, or all at once): then elasticities of all ops and of the host sum to 1. Where requests arrive at
given times, waiting in a queue grows faster than the steps do, and the sum may be more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .results import format_table
from .statistics import Interval, mean_interval

METRICS = ("ttft_mean_s", "tpot_mean_s", "goodput_per_s")
ALL = "all"
"""Stands for the sum over all parts in a table."""

Ratios = Mapping[tuple[str, float], Sequence[float]]
"""(part, factor) -> the metric over what it was unchanged, repeat by repeat. Parts: ops, and ``host``, the rest of a step."""


@dataclass(frozen=True)
class Elasticity:
    """Of a metric with respect to a part. ratios: factor -> mean of the metric over what it was unchanged."""

    metric: str
    part: str
    mean: float
    interval: Interval
    ratios: Mapping[float, float]


def elasticities(metric: str, ratios: Ratios) -> list[Elasticity]:
    """Of all parts, the largest first, then their sum. Repeats are paired: the sum is taken repeat by repeat."""
    parts = list(dict.fromkeys(part for part, _ in ratios))
    samples = {part: _samples({factor: values for (other, factor), values in ratios.items() if other == part}) for part in parts}
    found = []
    for part, values in samples.items():
        means = {factor: math.exp(_mean_log(v)) for (other, factor), v in ratios.items() if other == part}
        found.append(Elasticity(metric, part, float(np.mean(values)), mean_interval(values), means))
    found.sort(key=lambda each: -abs(each.mean))
    total = np.sum([samples[part] for part in parts], axis=0)
    return [*found, Elasticity(metric, ALL, float(total.mean()), mean_interval(total), {})]


def _mean_log(values: Sequence[float]) -> float:
    return float(np.log(values).mean()) if min(values) > 0 else math.nan


def _samples(by_factor: Mapping[float, Sequence[float]]) -> np.ndarray:
    """The elasticity of each repeat."""
    below, above = [f for f in by_factor if f < 1], [f for f in by_factor if f > 1]
    ends = [end for end in (max(below, default=None), min(above, default=None)) if end is not None]
    assert ends, "factors of 1 say nothing"
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.log(np.asarray(by_factor[end], dtype=float)) for end in ends]
    if len(ends) == 1:
        return logs[0] / math.log(ends[0])
    return (logs[1] - logs[0]) / math.log(ends[1] / ends[0])


def as_text(found: Sequence[Elasticity], shares: Mapping[str, float]) -> str:
    """A table. shares: of a step's time, per part."""
    factors = sorted({factor for each in found for factor in each.ratios})
    lines = [["metric", "part", "share of steps", "elasticity", "95 % interval", *(f"time x {factor:g}" for factor in factors)]]
    for each in found:
        share = f"{shares[each.part]:.1%}" if each.part in shares else "-"
        interval = "-" if math.isnan(each.interval.low) else f"{each.interval.low:.3f} to {each.interval.high:.3f}"
        ratios = [f"{each.ratios[factor]:.3f}" if factor in each.ratios else "-" for factor in factors]
        lines.append([each.metric, each.part, share, f"{each.mean:.3f}", interval, *ratios])
    return format_table(lines)


def as_rows(found: Sequence[Elasticity], shares: Mapping[str, float]) -> list[dict[str, float | str]]:
    """The same as rows of a csv file."""
    rows: list[dict[str, float | str]] = []
    for each in found:
        numbers = {"elasticity": each.mean, "low": each.interval.low, "high": each.interval.high}
        ratios = {f"ratio_x{factor:g}": value for factor, value in sorted(each.ratios.items())}
        row = {"metric": each.metric, "part": each.part, "share": shares.get(each.part, math.nan), **numbers, **ratios}
        rows.append({key: value if isinstance(value, str) else f"{value:.5g}" for key, value in row.items()})
    return rows

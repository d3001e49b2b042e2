"""How metrics move when the time of one op is scaled: elasticities, d log metric / d log time of the op, with intervals.

What a step takes is linear in each op's time, and so are TTFT and TPOT, as long as requests wait for nobody but the engine. The
elasticity is the slope, through no change, of the metric over what it was unchanged on the factor, least squares over all factors;
of a rate (goodput) it is that of its inverse, with the other sign. A part that is a share s of what a metric measures has
elasticity s. If all times scale, so do TTFT and TPOT in a closed loop, or with all requests at once: then elasticities of all ops
and of the host sum to 1. Where requests arrive at given times, waiting in a queue grows faster than steps do, and they may be more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .results import format_table
from .statistics import Interval, mean_interval

METRICS = ("ttft_p50_s", "tpot_p50_s", "goodput_per_s")
HOST = "host"
"""The part that is no op: the rest of a step."""
ALL_OPS, ALL = "all ops", "all ops and host"
"""Stand for sums over parts in a table."""

Ratios = Mapping[tuple[str, float], Sequence[float]]
"""(part, factor) -> the metric over what it was unchanged, repeat by repeat. Parts: ops, and HOST."""


@dataclass(frozen=True)
class Elasticity:
    """Of a metric with respect to a part. ratios: factor -> mean of the metric over what it was unchanged."""

    metric: str
    part: str
    mean: float
    interval: Interval
    ratios: Mapping[float, float]


def elasticities(metric: str, ratios: Ratios) -> list[Elasticity]:
    """Of all parts, the largest first, then of sums over them. Repeats are paired: a sum is taken repeat by repeat."""
    parts = list(dict.fromkeys(part for part, _ in ratios))
    is_rate = metric.endswith("_per_s")
    by_part = {part: {factor: values for (other, factor), values in ratios.items() if other == part} for part in parts}
    samples = {part: _samples(values, is_rate) for part, values in by_part.items()}
    found = []
    for part, values in samples.items():
        means = {factor: float(np.exp(np.log(each).mean())) for factor, each in by_part[part].items()}
        found.append(Elasticity(metric, part, float(np.mean(values)), mean_interval(values), means))
    found.sort(key=lambda each: -abs(each.mean))
    for name, summed in ((ALL_OPS, [part for part in parts if part != HOST]), (ALL, parts)):
        total = np.sum([samples[part] for part in summed], axis=0)
        found.append(Elasticity(metric, name, float(total.mean()), mean_interval(total), {}))
    return found


def _samples(by_factor: Mapping[float, Sequence[float]], is_rate: bool) -> np.ndarray:
    """The elasticity of each repeat."""
    factors = np.array(list(by_factor)) - 1
    assert factors.any(), "a factor of 1 says nothing"
    ratios = np.array(list(by_factor.values()), dtype=float)
    changes = 1 / ratios - 1 if is_rate else ratios - 1
    slopes = factors @ changes / (factors @ factors)
    return -slopes if is_rate else slopes


def as_text(found: Sequence[Elasticity], shares: Mapping[tuple[str, str], float]) -> str:
    """A table. shares: (metric, op) -> share of the time of all calls."""
    factors = sorted({factor for each in found for factor in each.ratios})
    lines = [["metric", "part", "share of calls", "elasticity", "95 % interval", *(f"time x {factor:g}" for factor in factors)]]
    for each in found:
        share = f"{shares[each.metric, each.part]:.1%}" if (each.metric, each.part) in shares else "-"
        interval = "-" if math.isnan(each.interval.low) else f"{each.interval.low:.3f} to {each.interval.high:.3f}"
        ratios = [f"{each.ratios[factor]:.3f}" if factor in each.ratios else "-" for factor in factors]
        lines.append([each.metric, each.part, share, f"{each.mean:.3f}", interval, *ratios])
    return format_table(lines)


def as_rows(found: Sequence[Elasticity], shares: Mapping[tuple[str, str], float]) -> list[dict[str, float | str]]:
    """The same as rows of a csv file."""
    rows: list[dict[str, float | str]] = []
    for each in found:
        numbers = {"elasticity": each.mean, "low": each.interval.low, "high": each.interval.high}
        ratios = {f"ratio_x{factor:g}": value for factor, value in sorted(each.ratios.items())}
        row = {
            "metric": each.metric,
            "part": each.part,
            "share": shares.get((each.metric, each.part), math.nan),
            **numbers,
            **ratios,
        }
        rows.append({key: value if isinstance(value, str) else f"{value:.5g}" for key, value in row.items()})
    return rows

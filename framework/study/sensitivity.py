"""How metrics move when the time of one op is scaled: elasticities, d log metric / d log time of the op, with intervals.

What a step takes is linear in each op's time, and so are TTFT and TPOT, as long as requests wait for nobody but the engine. The
elasticity is the slope, through no change, of the metric over what it was unchanged on the factor, least squares over all factors;
of a rate (goodput) it is that of its inverse, with the other sign. A part that is a share s of what a metric measures has
elasticity s. If all times scale, so do TTFT and TPOT in a closed loop, or with all requests at once: then elasticities of all ops
and of the host sum to 1. Where requests arrive at given times, waiting in a queue grows faster than steps do, and they may be more.

They come from rows, one of each run: part, factor, impl, is_base (``Setting`` of experiments/scaled_runs.py), repeat, METRICS, and
PART and OTHERS of them.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..op_times import HOST
from .results import format_table
from .statistics import Interval, mean_interval

METRICS = ("ttft_p50_s", "tpot_p50_s", "goodput_per_s")
PART, OTHERS = "{}.part_s", "{}.others_s"
"""Of a run: seconds of the part's calls in the steps that a metric is about, and those of all others."""
TWICE = "twice"
"""The impl that does its work twice."""
ALL_OPS, ALL = "all ops", "all ops and host"
"""Stand for sums over parts in a table."""

Ratios = Mapping[tuple[str, float], Sequence[float]]
"""(part, factor) -> the metric over what it was unchanged, repeat by repeat. Parts: ops, and HOST."""


def ratios(rows: Sequence[Mapping[str, Any]], metric: str, impl: str = "") -> dict[tuple[str, float], list[float]]:
    """(part, factor) -> the metric over that of the run without change beside it, by repeat, both at the same speed of the machine.
    Raises ValueError for a metric that was not observed in every run, or was 0."""

    def value(row: Mapping[str, Any]) -> float:
        if row.get(metric) in (None, 0.0) or math.isnan(row[metric]):
            raise ValueError(f"{metric} of {row['part']} x {row['factor']:g} is {row.get(metric)}: set other objectives (slo.*)")
        name = metric.removesuffix(PART.format(""))
        speed = row[OTHERS.format(name)] + (0.0 if impl else row[PART.format(name)]) if row.get(OTHERS.format(name)) else 1.0
        return row[metric] * speed if metric == "goodput_per_s" else row[metric] / speed

    bases = {(row["part"], row["repeat"], row["factor"]): value(row) for row in rows if row["is_base"]}
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        if not row["is_base"] and row["impl"] == impl:
            same, unchanged = ((row["part"], row["repeat"], factor) for factor in (row["factor"], 1.0))
            found[row["part"], row["factor"]].append(value(row) / bases.get(same, bases[unchanged]))
    return dict(found)


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


def agreement(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of each kernel that works twice: by how much longer its calls really took, what a metric did, and what it did under a delay
    of as much (from no delay to that of factor 2 a metric is linear in an op's time); the interval of the ratio of both is to hold
    1."""
    lines = [["metric", "op", "its calls took", "with the kernel", "with the delay", "ratio (95 %)", "agree"]]
    for metric in METRICS[:2]:
        true, delayed = ratios(rows, metric, TWICE), ratios(rows, metric)
        for (part, factor), values in true.items():
            key = PART.format(metric)
            own = [row for row in rows if row["part"] == part and row["factor"] in (1.0, factor)]
            if not all(row[key] for row in own):  # the metric is about steps that do not call it
                continue
            longer = statistics.median(ratios(own, key, TWICE)[part, factor])
            foretold = 1 + (np.array(delayed[part, factor]) - 1) * (longer - 1) / (factor - 1)
            interval = mean_interval(np.log(values) - np.log(foretold))
            means = [f"{np.exp(np.log(found).mean()):.3f}" for found in (values, foretold)]
            both = f"{math.exp(interval.low):.3f} to {math.exp(interval.high):.3f}"
            lines.append([metric, part, f"x {longer:.2f}", *means, both, "no" if interval.excludes(0.0) else "yes"])
    return lines


def shares(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """(metric, op) -> its share of the time of all calls in the steps that the metric is about, where nothing is changed."""
    part_s: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        if row["is_base"] and row["factor"] == 1.0 and row["part"] != HOST:
            for metric in METRICS:
                part_s[metric, row["part"]] += row[PART.format(metric)]
    totals = {metric: sum(s for (other, _), s in part_s.items() if other == metric) for metric in METRICS}
    return {(metric, part): s / totals[metric] for (metric, part), s in part_s.items()}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of runs that ``write_csv`` wrote; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    kinds: dict[str, Any] = {"part": str, "impl": str, "repeat": int, "is_base": "True".__eq__}
    return [{key: kinds[key](value) if key in kinds else float(value or "nan") for key, value in row.items()} for row in rows]

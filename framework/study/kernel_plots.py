"""Figures of kernels: under their rooflines, beside what a simulator says of them, and what each is worth to a workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .drawing import COLORS, FAINT, GRID, INK, legend_below, literal, new_figure, set_log
from .labels import quantity
from .sensitivity import ALL, ALL_OPS


def kernel_roofline(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Measured kernels under the ceilings of the device: TFLOP/s over FLOP per byte, both logarithmic. One marker per measurement:
    colour says op, shape says impl; of a single op colour says impl. ``rows``: the flat rows of a kernel benchmark, of one
    device."""
    table = pd.DataFrame(rows)
    table = table[table["median_us"].notna() & (table["flops"] > 0)]
    if table.empty:
        raise ValueError("no measured kernel computes anything, so there is no roofline to draw")
    intensity = table["flops"] / table["bytes"]
    figure, ((axes,),) = new_figure(9, 5.5)
    span = np.geomspace(intensity.min() / 2, intensity.max() * 2, 200)
    ceilings = {}
    for (dtype, group), style in zip(table.groupby("dtype"), cycle(("-", "--", ":", "-."))):
        bandwidth, peak = group["ceiling_tb_s"].median(), group["ceiling_tflops_s"].max()
        (line,) = axes.plot(span, np.minimum(span * bandwidth, peak), color=FAINT, linestyle=style, zorder=1)
        ceilings[f"{dtype}: {bandwidth:.2g} TB/s, {peak:.0f} TFLOP/s"] = line
    colored = "op" if table["op"].nunique() > 1 else "impl"
    colors = dict(zip(table[colored].unique(), cycle(COLORS)))
    markers = dict(zip(table["impl"].unique(), cycle("os^Dv<>pP*X")))
    size, alpha = (28, 0.8) if len(table) <= 200 else (8, 0.35)
    for (name, impl), group in table.groupby([colored, "impl"] if colored == "op" else ["impl", "impl"], sort=False):
        axes.scatter(
            intensity[group.index], group["tflops_s"], color=colors[name], marker=markers[impl], s=size, alpha=alpha, linewidths=0
        )
    axes.set(xlabel="Operations per byte moved (FLOP/byte)", ylabel="TFLOP/s")
    set_log(axes.xaxis)
    set_log(axes.yaxis)
    shapes = dict.fromkeys(colors, "o") if colored == "op" else markers
    dots = {name: Line2D([], [], color=color, marker=shapes[name], linestyle="") for name, color in colors.items()}
    named = {**ceilings, **dots}
    if colored == "op":
        named |= {name: Line2D([], [], color=FAINT, marker=marker, linestyle="") for name, marker in markers.items()}
    legend_below(figure, ([*named.values()], [literal(name) for name in named]))
    return figure


def predictions(rows: pd.DataFrame) -> Figure:
    """Times that a cost model foretells over those that were measured, both logarithmic: a point per row, coloured by op, in a band
    of 10 %. ``rows``: columns op, measured_us, predicted_us. The legend has the mean absolute error of each op."""
    rows = _with(rows, "op", "measured_us", "predicted_us")
    figure, ((axes,),) = new_figure(6.4, 6.6)
    times = rows[["measured_us", "predicted_us"]].to_numpy()
    ends = np.array([times.min() / 1.3, times.max() * 1.3])
    axes.fill_between(ends, ends / 1.1, ends * 1.1, color=GRID, linewidth=0, zorder=0.5)
    axes.plot(ends, ends, color=FAINT, linewidth=0.8, zorder=1)
    size, alpha = (28, 0.8) if len(rows) <= 200 else (9, 0.5)
    named: dict[str, Line2D] = {}
    for color, (op, group) in zip(cycle(COLORS), rows.groupby("op", sort=False)):
        error = (group["predicted_us"] / group["measured_us"] - 1).abs().mean()
        axes.scatter(group["measured_us"], group["predicted_us"], color=color, s=size, alpha=alpha, linewidths=0)
        named[literal(f"{op}: {error:.1%} off on average (n={len(group)})")] = Line2D(
            [], [], color=color, marker="o", markersize=4, linestyle=""
        )
    axes.set(xlabel="Measured (us)", ylabel="Simulated (us)", xlim=ends, ylim=ends)
    set_log(axes.xaxis)
    set_log(axes.yaxis)
    legend_below(figure, ([*named.values()], [*named]), "grey: within 10 %")
    return figure


def elasticities(rows: pd.DataFrame) -> Figure:
    """How much each part's time weighs in a metric: bars with 95 % intervals, a panel per metric, the largest of the first on top
    and sums below all. ``rows``: columns metric, part, elasticity, low, high."""
    rows = _with(rows, "metric", "part", "elasticity", "low", "high")
    metrics = list(rows["metric"].unique())
    first = rows[rows["metric"] == metrics[0]].set_index("part")["elasticity"].abs().sort_values()
    ordered = [*rows["part"][~rows["part"].isin(first.index)].unique(), *first.index]
    parts = [*(part for part in (ALL, ALL_OPS) if part in ordered), *(part for part in ordered if part not in (ALL, ALL_OPS))]
    width = 1.5 + 3.2 * len(metrics) + 0.065 * max(map(len, parts))
    figure, (row,) = new_figure(width, 1.1 + 0.27 * len(parts), num_columns=len(metrics), sharey=True)
    for axes, metric in zip(row, metrics):
        found = rows[rows["metric"] == metric].set_index("part").reindex(parts)
        middle = found["elasticity"].to_numpy()
        colors = [FAINT if part in (ALL, ALL_OPS) else COLORS[0] for part in parts]
        axes.barh([literal(part) for part in parts], middle, color=colors, height=0.62)
        spread = np.stack([middle - found["low"], found["high"] - middle])
        axes.errorbar(middle, range(len(parts)), xerr=spread, fmt="none", ecolor=INK, capsize=2, linewidth=1)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.set(xlabel=f"Elasticity of {quantity(metric).label.partition(' (')[0]}")
        axes.grid(visible=False, axis="y")
    return figure


def _with(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows, with the numbers that the figure needs. Raises ValueError where a column or all rows are missing."""
    if missing := [column for column in columns if column not in rows]:
        raise ValueError(f"the table lacks the columns {', '.join(missing)}; it has {', '.join(map(str, rows.columns))}")
    if rows.empty:
        raise ValueError("the table has no rows")
    return rows

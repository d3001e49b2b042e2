"""Figures from tables of runs and requests. Every function takes tables and returns a figure; nothing is shown or saved here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .results import is_repeat, swept_columns

COLORS = tuple(matplotlib.color_sequences["tab10"])


def latency(requests: pd.DataFrame, runs: pd.DataFrame | None = None, max_lines: int = 10) -> Figure:
    """Distributions (empirical cumulative) of TTFT and TPOT, one line per setting; repeats of a setting are pooled.

    ``requests`` as from ``collect_requests`` (or one requests.csv), ``runs`` as from ``collect``: names the lines by what
    differs between them. Raises ValueError for more than ``max_lines`` settings, which no eye can tell apart."""
    groups = _labelled_requests(requests, runs)
    if len(groups) > max_lines:
        raise ValueError(
            f"{len(groups)} settings differ in {', '.join(_axes_of(runs))}: at most {max_lines} lines can be read; "
            "plot a part of the table"
        )
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, column, title in zip(figure.subplots(1, 2), ("ttft_s", "tpot_s"), ("Time to first token", "Time per output token")):
        for color, (label, group) in zip(cycle(COLORS), groups.items()):
            values = group[column].dropna().to_numpy() * 1e3
            if len(values):
                axes.ecdf(values, color=color, label=f"{label} (n={len(values)})" if label else None)
        for percentile in (0.5, 0.9, 0.99):
            axes.axhline(percentile, color="0.85", linewidth=0.8, zorder=0)
        axes.set(xlabel=f"{title} (ms)", ylabel="Fraction of requests", ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 0.9, 0.99])
        _log_if_wide(axes)
    if any(groups):
        _legend_below(figure, *figure.axes[0].get_legend_handles_labels())
    return figure


def load(runs: pd.DataFrame, x: str = "workload.rate") -> Figure:
    """TTFT and TPOT against the offered load ``x``: median solid, 99th percentile dashed, one colour per remaining setting.
    Repeats are averaged; bars show their range."""
    runs = _finished(runs)
    if x in runs:
        runs = runs[np.isfinite(pd.to_numeric(runs[x]))]
    if x not in runs or runs[x].nunique() < 2:
        raise ValueError(f"a plot over {x} needs runs with at least two (finite) values of it: sweep it with -m {x}=...")
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, metric, title in zip(figure.subplots(1, 2), ("ttft", "tpot"), ("Time to first token", "Time per output token")):
        for color, (label, group) in zip(cycle(COLORS), _settings(runs, without=(x,))):
            for percentile, style in ((50, "-"), (99, "--")):
                values = (group[f"metric.{metric}_p{percentile}_s"] * 1e3).groupby(pd.to_numeric(group[x]))
                mean = values.mean()
                spread = np.stack([mean - values.min(), values.max() - mean])
                axes.errorbar(
                    mean.index,
                    mean,
                    spread,
                    color=color,
                    linestyle=style,
                    marker="o",
                    markersize=3.5,
                    capsize=2,
                    label=label if percentile == 50 else None,
                )
        axes.set(xlabel=_axis_label(x), ylabel=f"{title} (ms)")
        _log(axes, axes.yaxis)
        axes.grid(alpha=0.3, which="both")
    styles = [Line2D([], [], color="0.3", linestyle=s) for s in ("-", "--")]
    handles, labels = figure.axes[0].get_legend_handles_labels()
    shown = [(h, t) for h, t in zip(handles, labels) if t]
    _legend_below(figure, styles + [h for h, _ in shown], ["p50", "p99"] + [t for _, t in shown])
    return figure


def pareto(runs: pd.DataFrame) -> Figure:
    """Speed that a user sees over throughput of the system: all runs grey, the frontier (no run is better in both) marked."""
    runs = _finished(runs).dropna(subset=["metric.output_tokens_per_s", "metric.tokens_per_s_per_user"])
    if runs.empty:
        raise ValueError("no run has both a throughput and a speed per user: requests with two or more output tokens are needed")
    x, y = runs["metric.output_tokens_per_s"].to_numpy(), runs["metric.tokens_per_s_per_user"].to_numpy()
    best = frontier(x, y)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x, y, color="0.7", label="all runs", zorder=2)
    axes.plot(x[best], y[best], "o-", color=COLORS[0], label="frontier", zorder=3)
    columns = _axes_of(runs)
    for i in best:
        values = ", ".join(_text(runs.iloc[i][c]) for c in columns)
        axes.annotate(values, (x[i], y[i]), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="Throughput (output tokens/s)", ylabel="Speed per user (tokens/s/user)")
    axes.set(xlim=(0, x.max() * 1.15), ylim=(0, y.max() * 1.15))
    axes.grid(alpha=0.3)
    names = ", ".join(_names(columns).values())
    axes.legend(title=f"labels: {names}" if names else None, loc="lower left", fontsize=8, title_fontsize=8)
    return figure


def frontier(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> list[int]:
    """Indices of the points that no other point beats in both x and y, by rising x."""
    best: list[int] = []
    highest = -np.inf
    for i in np.lexsort((-np.asarray(y), -np.asarray(x))):
        if y[i] > highest:
            best.append(int(i))
            highest = y[i]
    return best[::-1]


def kernel_roofline(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Measured kernels under the ceilings measured with them: TFLOP/s over FLOP per byte, both logarithmic. One marker per
    measurement: colour says op, shape says impl. ``rows``: the flat rows of a kernel benchmark, of one device."""
    table = pd.DataFrame(rows)
    table = table[table["median_us"].notna() & (table["flops"] > 0)]
    if table.empty:
        raise ValueError("no measured kernel computes anything, so there is no roofline to draw")
    intensity = table["flops"] / table["bytes"]
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    span = np.geomspace(intensity.min() / 2, intensity.max() * 2, 200)
    for dtype, group in table.groupby("dtype"):
        bandwidth, peak = group["ceiling_tb_s"].median(), group["ceiling_tflops_s"].max()
        axes.plot(span, np.minimum(span * bandwidth, peak), color="0.4", zorder=1)
        axes.annotate(
            f"{dtype}: {bandwidth:.2g} TB/s, {peak:.3g} TFLOP/s",
            (span[-1], min(span[-1] * bandwidth, peak)),
            fontsize=8,
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
        )
    colors = dict(zip(table["op"].unique(), cycle(COLORS)))
    markers = dict(zip(table["impl"].unique(), cycle("os^Dv<>pP*X")))
    for (op, impl), group in table.groupby(["op", "impl"], sort=False):
        axes.scatter(intensity[group.index], group["tflops_s"], color=colors[op], marker=markers[impl], s=28, alpha=0.8, zorder=2)
    axes.set(xlabel="Operations per byte moved (FLOP/byte)", ylabel="TFLOP/s", xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    handles = [Line2D([], [], color=color, marker="o", linestyle="") for color in colors.values()]
    handles += [Line2D([], [], color="0.3", marker=marker, linestyle="") for marker in markers.values()]
    _legend_below(figure, handles, [*colors, *markers])
    return figure


def _labelled_requests(requests: pd.DataFrame, runs: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    if runs is None or "run" not in requests:
        return {"": requests}
    return {label: requests[requests["run"].isin(group["run"])] for label, group in _settings(_finished(runs))}


def _axes_of(runs: pd.DataFrame | None) -> list[str]:
    return [] if runs is None else [c for c in swept_columns(runs) if not is_repeat(c)]


def _settings(runs: pd.DataFrame, without: Sequence[str] = ()) -> Iterator[tuple[str, pd.DataFrame]]:
    """(label, its runs) for every setting; runs that differ only in ``without`` or in a seed belong together."""
    columns = [c for c in _axes_of(runs) if c not in without]
    if not columns:
        yield "", runs
        return
    for _, group in runs.groupby(columns, dropna=False, sort=True):
        yield _label(group.iloc[0], columns), group


def _label(row: pd.Series, columns: Sequence[str]) -> str:
    return ", ".join(f"{name}={_text(row[c])}" for c, name in _names(columns).items())


def _names(columns: Sequence[str]) -> dict[str, str]:
    """Column -> the last part of its name, or the whole where two would look the same."""
    short = {c: c.split(".")[-1] for c in columns}
    return {c: name if list(short.values()).count(name) == 1 else c for c, name in short.items()}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finished(runs: pd.DataFrame) -> pd.DataFrame:
    finished = runs[runs["status"] == "ok"]
    if finished.empty:
        raise ValueError("no run finished, so there is nothing to plot; the column error of the table says why")
    return finished


def _axis_label(column: str) -> str:
    return {"workload.rate": "Offered load (requests/s)", "workload.num_users": "Users"}.get(column, column)


def _log_if_wide(axes: Axes) -> None:
    """A logarithmic horizontal axis if the values span more than a factor of 50, else one that does not go below 0."""
    low, high = axes.get_xlim()
    values = [v for line in axes.lines for v in np.asarray(line.get_xdata(), dtype=float) if np.isfinite(v) and v > 1]
    if values and max(values) / min(values) > 50:
        _log(axes, axes.xaxis)
    else:
        axes.set_xlim(max(0.0, low), high)


def _log(axes: Axes, axis: Axis) -> None:
    """Logarithmic, with plain numbers at 1, 2, 5, 10 ..."""
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _legend_below(figure: Figure, handles: Sequence, labels: Sequence[str]) -> None:
    if labels:
        ncols = max(1, min(len(labels), 110 // (max(map(len, labels)) + 6)))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)

"""Figures from tables of runs and requests. Every function takes tables and returns a figure; nothing is shown or saved here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

from .joining import is_quality, join_quality
from .sweep import differences, differences_text, setting_columns, telling_columns, value_text

COLORS = tuple(matplotlib.color_sequences["tab10"])
MAX_LINES = len(COLORS)
"""Settings in one figure: more no eye can tell apart."""
MAX_KEYS = 4
"""Swept columns that a label names; of more, only those that tell the settings apart."""
LABEL_HEIGHT_INCHES = 0.17


def latency(requests: pd.DataFrame, runs: pd.DataFrame | None = None) -> Figure:
    """Distributions (empirical cumulative) of TTFT and TPOT, one line per setting; repeats of a setting are pooled.

    ``requests`` as from ``collect_requests`` (or one requests.csv), ``runs`` as from ``collect``: names the lines by what
    differs between them. Raises ValueError for more than MAX_LINES settings."""
    naming, groups = Naming({}), {"": requests}
    if runs is not None and "run" in requests:
        finished = _finished(runs)
        naming = Naming.of(finished)
        groups = {label: requests[requests["run"].isin(part["run"])] for label, part in naming.settings(finished).items()}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, column, title in zip(figure.subplots(1, 2), ("ttft_s", "tpot_s"), ("Time to first token", "Time per output token")):
        for color, (label, group) in zip(COLORS, groups.items()):
            values = group[column].dropna().to_numpy() * 1e3
            if len(values):
                axes.ecdf(values, color=color, label=f"{label} (n={len(values)})" if label else None)
        for percentile in (0.5, 0.9, 0.99):
            axes.axhline(percentile, color="0.85", linewidth=0.8, zorder=0)
        axes.set(xlabel=f"{title} (ms)", ylabel="Fraction of requests", ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 0.9, 0.99])
        _log_if_wide(axes)
    if any(groups):
        _legend_below(figure, *figure.axes[0].get_legend_handles_labels(), title=naming.note)
    return figure


def load(runs: pd.DataFrame, x: str = "workload.rate") -> Figure:
    """TTFT and TPOT against the offered load ``x``: median solid, 99th percentile dashed, one colour per remaining setting.
    Repeats are averaged; bars show their range."""
    runs = _with_columns(_finished(runs), [f"metric.{name}_p{p}_s" for name in ("ttft", "tpot") for p in (50, 99)])
    if x in runs:
        runs = runs[np.isfinite(pd.to_numeric(runs[x], errors="coerce"))]
    if x not in runs or runs[x].nunique() < 2:
        raise ValueError(f"a plot over {x} needs runs with at least two (finite) values of it: sweep it with -m {x}=...")
    naming = Naming.of(runs, without=(x,))
    settings = naming.settings(runs)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, metric, title in zip(figure.subplots(1, 2), ("ttft", "tpot"), ("Time to first token", "Time per output token")):
        for color, (label, group) in zip(COLORS, settings.items()):
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
    _legend_below(figure, styles + [h for h, _ in shown], ["p50", "p99"] + [t for _, t in shown], naming.note)
    return figure


def pareto(runs: pd.DataFrame) -> Figure:
    """Speed that a user sees over throughput of the system: all runs grey, the frontier (no run is better in both) marked."""
    speeds = ["metric.output_tokens_per_s", "metric.tokens_per_s_per_user"]
    runs = _with_columns(_finished(runs), speeds).dropna(subset=speeds)
    if runs.empty:
        raise ValueError("no run has both a throughput and a speed per user: requests with two or more output tokens are needed")
    x, y = runs["metric.output_tokens_per_s"].to_numpy(), runs["metric.tokens_per_s_per_user"].to_numpy()
    best = frontier(x, y)
    naming = Naming.of(runs)
    labels = [naming.label(runs.iloc[i]) for i in best]
    height = max(3.8, LABEL_HEIGHT_INCHES * len(best))  # of the axes, so that all labels find room beside them
    figure = Figure(figsize=(6 + 0.065 * max(map(len, labels)), height + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x, y, color="0.7", label="all runs", zorder=2)
    axes.plot(x[best], y[best], "o-", color=COLORS[0], label="frontier", zorder=3)
    axes.set(xlabel="Throughput (output tokens/s)", ylabel="Speed per user (tokens/s/user)")
    axes.set(xlim=(0, x.max() * 1.15), ylim=(0, y.max() * 1.15))
    axes.grid(alpha=0.3)
    if naming.keys:
        _label_beside(axes, x[best], y[best], labels, LABEL_HEIGHT_INCHES / height)
    _legend_below(figure, *axes.get_legend_handles_labels(), title=naming.note)
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


def quality(runs: pd.DataFrame) -> Figure:
    """KL divergence from the baseline (logarithmic, with its standard error) over the speed of serving, and over the memory that
    the weights take: a point per setting, repeats averaged. Serving runs are joined with the quality runs of their configuration;
    what no run knows has no axes. A divergence of 0 is drawn as a triangle below the others."""
    runs = _finished(runs)
    if not is_quality(runs).all():
        runs = join_quality(runs)
    kl, error = "metric.kl_mean", "metric.kl_mean_se"
    axes_of = {"metric.output_tokens_per_s": ("Throughput (output tokens/s)", 1.0), "metric.weight_bytes": ("Weights (MB)", 1e-6)}
    runs = _with_columns(runs, [kl, error, *axes_of]).dropna(subset=kl)
    shown = [column for column in axes_of if runs[column].notna().any()]
    if not shown:
        raise ValueError("no run knows a throughput or the memory of its weights: give the folder of the serving runs too")
    naming = Naming.of(runs)
    settings = [group for _, group in runs.groupby(list(naming.keys), dropna=False)] if naming.keys else [runs]
    points = pd.DataFrame([group[[kl, error, *shown]].mean() for group in settings])
    labels = [naming.label(group.iloc[0]) for group in settings]
    positive = points.loc[points[kl] > 0, kl]
    y = points[kl].where(points[kl] > 0, positive.min() / 3 if len(positive) else 1e-9).to_numpy()
    height = max(3.8, LABEL_HEIGHT_INCHES * len(labels))
    figure = Figure(figsize=(1.5 + 3.5 * len(shown) + 0.065 * max(map(len, labels)), height + 0.8), layout="constrained")
    for axes, column in zip(row := figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown):
        title, scale = axes_of[column]
        for i, color in zip(range(len(y)), cycle(COLORS)):
            marker = "o" if points[kl].iloc[i] > 0 else "v"
            axes.errorbar(points[column].iloc[i] * scale, y[i], points[error].iloc[i], color=color, marker=marker, capsize=2)
        axes.set(xlabel=title, yscale="log", ylim=(y.min() / 2, y.max() * 2), xlim=(0, points[column].max() * scale * 1.15))
        axes.grid(alpha=0.3)
    row[0].set_ylabel("KL divergence from the baseline (nats per token)")
    if naming.keys:
        x = (points[shown[-1]] * axes_of[shown[-1]][1]).to_numpy()
        _label_beside(row[-1], x, y, labels, LABEL_HEIGHT_INCHES / height)
    if naming.note:
        figure.suptitle(naming.note, fontsize=8)
    return figure


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
    ceilings = {}
    for (dtype, group), style in zip(table.groupby("dtype"), cycle(("-", "--", ":", "-."))):
        bandwidth, peak = group["ceiling_tb_s"].median(), group["ceiling_tflops_s"].max()
        (line,) = axes.plot(span, np.minimum(span * bandwidth, peak), color="0.4", linestyle=style, zorder=1)
        ceilings[f"{dtype}: {bandwidth:.2g} TB/s, {peak:.3g} TFLOP/s"] = line
    colors = dict(zip(table["op"].unique(), cycle(COLORS)))
    markers = dict(zip(table["impl"].unique(), cycle("os^Dv<>pP*X")))
    for (op, impl), group in table.groupby(["op", "impl"], sort=False):
        axes.scatter(intensity[group.index], group["tflops_s"], color=colors[op], marker=markers[impl], s=28, alpha=0.8, zorder=2)
    axes.set(xlabel="Operations per byte moved (FLOP/byte)", ylabel="TFLOP/s", xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    handles = [*ceilings.values(), *(Line2D([], [], color=color, marker="o", linestyle="") for color in colors.values())]
    handles += [Line2D([], [], color="0.3", marker=marker, linestyle="") for marker in markers.values()]
    _legend_below(figure, handles, [*ceilings, *colors, *markers])
    return figure


@dataclass(frozen=True)
class Naming:
    """How a figure names settings.

    keys    swept column -> how labels call it
    note    what to say of columns that differ too, and that no label names
    """

    keys: Mapping[str, str]
    note: str | None = None

    @classmethod
    def of(cls, runs: pd.DataFrame, without: Sequence[str] = ()) -> Naming:
        """Of what differs between ``runs``, ``without`` and seeds aside."""
        columns = [c for c in setting_columns(runs) if c not in without]
        named = columns if len(columns) <= MAX_KEYS else telling_columns(runs, columns)
        short = {c: c.split(".")[-1] for c in named}
        keys = {c: c if list(short.values()).count(name) > 1 else name for c, name in short.items()}
        return cls(keys, f"columns that differ with these: {len(columns) - len(named)}" if len(named) < len(columns) else None)

    def label(self, run: pd.Series) -> str:
        """key=value of what a run has."""
        return ", ".join(f"{key}={value_text(run[c])}" for c, key in self.keys.items() if pd.notna(run[c])) or (
            f"without {', '.join(self.keys.values())}" if self.keys else ""
        )

    def settings(self, runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Label -> its runs, for every setting. Raises ValueError for more than MAX_LINES."""
        if not self.keys:
            return {"": runs}
        groups = [group for _, group in runs.groupby(list(self.keys), dropna=False, sort=True)]
        if len(groups) > MAX_LINES:
            column, values = next(iter(differences(runs).items()))
            raise ValueError(
                f"{len(groups)} settings are too many for one figure, at most {MAX_LINES} lines can be told apart. The runs differ "
                f"in {differences_text(runs)}. Plot a part of them: --where {column}={values[0]}, or in Python "
                f"select(runs, {column!r}, {values[0]!r})"
            )
        return {self.label(group.iloc[0]): group for group in groups}


def _label_beside(axes: Axes, x: np.ndarray, y: np.ndarray, labels: Sequence[str], height: float) -> None:
    """Names points in a column right of the axes, whose limits are set, each at the height of its point or as near as the others
    leave room, with a line between. ``height``: of a label, as a fraction of that of the axes."""
    order = np.argsort(y)
    steps = height * np.arange(len(y))
    heights = (axes.transScale + axes.transLimits).transform(np.stack([x, y], 1))[:, 1]
    places = np.maximum.accumulate(heights[order] - steps) + steps
    places = np.minimum(places, 1 - steps[::-1])
    line = {"arrowstyle": "-", "color": "0.8", "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 2}
    for i, place in zip(order, places):
        axes.annotate(
            labels[i], (x[i], y[i]), (1.03, place), textcoords="axes fraction", va="center", fontsize=8, arrowprops=line, zorder=1
        )


def _finished(runs: pd.DataFrame) -> pd.DataFrame:
    finished = runs[runs["status"] == "ok"]
    if finished.empty:
        raise ValueError("no run finished, so there is nothing to plot; the column error of the table says why")
    return finished


def _with_columns(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A metric that no run has is one that none observed."""
    return runs.reindex(columns=runs.columns.union(list(metrics), sort=False))


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
    """Logarithmic, with plain numbers at 1, 2, 5, 10 ..., fewer of them where the values span more decades."""
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    num_decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if num_decades <= 2 else (1, 3) if num_decades <= 3 else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _legend_below(figure: Figure, handles: Sequence, labels: Sequence[str], title: str | None = None) -> None:
    if labels:
        ncols = max(1, min(len(labels), 110 // (max(map(len, labels)) + 6)))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8, title=title, title_fontsize=8
        )

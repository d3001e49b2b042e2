"""Figures from tables of runs and requests. Every function takes tables and returns a figure; nothing is shown or saved here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .drawing import (
    COLORS,
    FAINT,
    INK,
    LABEL_HEIGHT_INCHES,
    Naming,
    finished,
    label_beside,
    legend_below,
    log_if_wide,
    marks,
    new_figure,
    set_log,
    tick_swept,
    with_columns,
)
from .joining import is_quality, join_quality
from .labels import quantity

NUM_TIMES = 1000
"""Points in time of a timeline: more than a figure has pixels to show."""


def latency(requests: pd.DataFrame, runs: pd.DataFrame | None = None) -> Figure:
    """Distributions (empirical cumulative) of TTFT and TPOT, one line per setting; repeats of a setting are pooled.

    ``requests`` as from ``collect_requests`` (or one requests.csv), ``runs`` as from ``collect``: names the lines by what
    differs between them. Raises ValueError for more than MAX_LINES settings."""
    naming, groups = _requests_of_settings(requests, runs)
    figure, grid = new_figure(10, 4.2, num_columns=2)
    for axes, column, title in zip(grid.flat, ("ttft_s", "tpot_s"), ("Time to first token", "Time per output token")):
        for color, (label, group) in zip(COLORS, groups.items()):
            values = group[column].dropna().to_numpy() * 1e3
            if len(values):
                axes.ecdf(values, color=color, label=f"{label} (n={len(values)})" if label else None)
        axes.set(xlabel=f"{title} (ms)", ylabel="Fraction of requests", ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 0.9, 0.99])
        log_if_wide(axes)
    if any(groups):
        legend_below(figure, grid[0, 0].get_legend_handles_labels(), naming.note)
    return figure


def timeline(requests: pd.DataFrame, runs: pd.DataFrame | None = None) -> Figure:
    """How many requests wait for their first token, and how many are answering, over the time of the run: a line per setting, of
    its first repeat. Requests that were never answered are left out."""
    naming, groups = _requests_of_settings(requests, runs)
    figure, grid = new_figure(10, 5, num_rows=2, sharex=True)
    titles = {"arrival_s": "Waiting for the first token", "first_token_s": "Answering"}
    for axes, begin, end in zip(grid.flat, titles, ("first_token_s", "last_token_s")):
        for color, (label, group) in zip(COLORS, groups.items()):
            one = group[group["run"] == group["run"].iloc[0]] if "run" in group and len(group) else group
            one = one.dropna(subset=[begin, end])
            times = np.linspace(0, one["last_token_s"].max() if len(one) else 1.0, NUM_TIMES)
            begun, ended = (np.searchsorted(np.sort(one[column]), times, side="right") for column in (begin, end))
            axes.plot(times, begun - ended, color=color, linewidth=1.2, label=label or None)
        axes.set(ylabel=f"{titles[begin]}\n(requests)")
        axes.set_ylim(bottom=0)
    grid[-1, 0].set(xlabel="Time (s)")
    if any(groups):
        legend_below(figure, grid[0, 0].get_legend_handles_labels(), naming.note)
    return figure


def load(runs: pd.DataFrame, x: str = "workload.rate") -> Figure:
    """TTFT and TPOT against the offered load ``x``: median solid, 99th percentile dashed, one colour per remaining setting.
    Repeats are averaged; bars show their range."""
    runs = with_columns(finished(runs), [f"metric.{name}_p{p}_s" for name in ("ttft", "tpot") for p in (50, 99)])
    if x in runs:
        runs = runs[np.isfinite(pd.to_numeric(runs[x], errors="coerce"))]
    if x not in runs or runs[x].nunique() < 2:
        raise ValueError(f"a plot over {x} needs runs with at least two (finite) values of it: sweep it with -m {x}=...")
    naming = Naming.of(runs, without=(x,))
    settings = naming.settings(runs)
    figure, grid = new_figure(10, 4.2, num_columns=2)
    for axes, metric, title in zip(grid.flat, ("ttft", "tpot"), ("Time to first token", "Time per output token")):
        for color, (label, group) in zip(COLORS, settings.items()):
            for percentile, style in ((50, "-"), (99, "--")):
                values = (group[f"metric.{metric}_p{percentile}_s"] * 1e3).groupby(pd.to_numeric(group[x]))
                mean = values.mean()
                axes.errorbar(
                    mean.index,
                    mean,
                    np.stack([mean - values.min(), values.max() - mean]),
                    color=color,
                    linestyle=style,
                    label=label if percentile == 50 else None,
                    **marks(len(mean)),
                )
        axes.set_ylabel(f"{title} (ms)")
        set_log(axes.yaxis)
        tick_swept(axes, x, np.unique(pd.to_numeric(runs[x])))
    styles = [Line2D([], [], color=FAINT, linestyle=s) for s in ("-", "--")]
    handles, labels = grid[0, 0].get_legend_handles_labels()
    shown = [(h, t) for h, t in zip(handles, labels) if t]
    legend_below(figure, (styles + [h for h, _ in shown], ["p50", "p99"] + [t for _, t in shown]), naming.note)
    return figure


def pareto(runs: pd.DataFrame) -> Figure:
    """Speed that a user sees over throughput of the system: all runs grey, the frontier (no run is better in both) marked."""
    speeds = ["metric.output_tokens_per_s", "metric.tokens_per_s_per_user"]
    runs = with_columns(finished(runs), speeds).dropna(subset=speeds)
    if runs.empty:
        raise ValueError("no run has both a throughput and a speed per user: requests with two or more output tokens are needed")
    x, y = runs["metric.output_tokens_per_s"].to_numpy(), runs["metric.tokens_per_s_per_user"].to_numpy()
    best = frontier(x, y)
    naming = Naming.of(runs)
    labels = [naming.label(runs.iloc[i]) for i in best]
    height = max(3.8, LABEL_HEIGHT_INCHES * len(best))  # of the axes, so that all labels find room beside them
    figure, ((axes,),) = new_figure(6 + 0.065 * max(map(len, labels)), height + 1.3)
    axes.scatter(x, y, color=FAINT, alpha=0.4, label="all runs", zorder=2)
    axes.plot(x[best], y[best], "o-", color=COLORS[0], label="frontier", zorder=3)
    axes.set(xlabel="Throughput (output tokens/s)", ylabel="Speed per user (tokens/s/user)")
    axes.set(xlim=(0, x.max() * 1.15), ylim=(0, y.max() * 1.15))
    if naming.keys:
        label_beside(axes, x[best], y[best], labels, LABEL_HEIGHT_INCHES / height)
    legend_below(figure, axes.get_legend_handles_labels(), naming.note)
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


def quality(runs: pd.DataFrame, x: str = "output_tokens_per_s") -> Figure:
    """KL divergence from the baseline (logarithmic, with its standard error) over the speed of serving ``x``, and over the memory
    that the weights take: a point per setting, repeats averaged. Serving runs that know no divergence are joined with the quality
    runs of their configuration; what no run knows has no axes. A divergence of 0 is drawn as a triangle below the others."""
    kl, error, memory = "metric.kl_mean", "metric.kl_mean_se", "metric.weight_bytes"
    runs = finished(runs)
    ours = is_quality(runs)
    if not ours.all() and (ours.any() or kl not in runs):
        runs = join_quality(runs)
    columns = [f"metric.{x}", memory]
    runs = with_columns(runs, [kl, error, *columns]).dropna(subset=kl)
    shown = [column for column in columns if runs[column].notna().any()]
    if not shown:
        raise ValueError(f"no run knows {x} or the memory of its weights: give the folder of the serving runs too")
    naming = Naming.of(runs)
    settings = [group for _, group in runs.groupby(list(naming.keys), dropna=False)] if naming.keys else [runs]
    points = pd.DataFrame([group[[kl, error, *shown]].mean() for group in settings])
    labels = [naming.label(group.iloc[0]) for group in settings]
    positive = points.loc[points[kl] > 0, kl]
    y = points[kl].where(points[kl] > 0, positive.min() / 3 if len(positive) else 1e-9).to_numpy()
    height = max(3.8, LABEL_HEIGHT_INCHES * len(labels))
    width = 1.5 + 3.5 * len(shown) + 0.065 * max(map(len, labels))
    figure, (row,) = new_figure(width, height + 0.8, num_columns=len(shown), sharey=True)
    for axes, column in zip(row, shown):
        label, scale = quantity(column)
        for i, color in zip(range(len(y)), cycle(COLORS)):
            marker = "o" if points[kl].iloc[i] > 0 else "v"
            axes.errorbar(points[column].iloc[i] * scale, y[i], points[error].iloc[i], color=color, marker=marker, capsize=2)
        axes.set(xlabel=label, ylim=(y.min() / 2, y.max() * 2), xlim=(0, points[column].max() * scale * 1.15))
        set_log(axes.yaxis)
    row[0].set_ylabel("KL divergence from the baseline (nats per token)")
    if naming.keys:
        points_x = (points[shown[-1]] * quantity(shown[-1]).scale).to_numpy()
        label_beside(row[-1], points_x, y, labels, LABEL_HEIGHT_INCHES / height)
    if naming.note:
        figure.suptitle(naming.note, fontsize=8, color=INK)
    return figure


def _requests_of_settings(requests: pd.DataFrame, runs: pd.DataFrame | None) -> tuple[Naming, dict[str, pd.DataFrame]]:
    """Label -> the requests of a setting; one without a name if nothing says which there are."""
    if runs is None or "run" not in requests:
        return Naming({}), {"": requests}
    worked = finished(runs)
    naming = Naming.of(worked)
    return naming, {label: requests[requests["run"].isin(part["run"])] for label, part in naming.settings(worked).items()}

"""Figures of any metric over what a study swept: lines over numbers, bars over names, cells over two columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from .drawing import (
    COLORS,
    FAINT,
    INK,
    LABEL_HEIGHT_INCHES,
    Naming,
    finished,
    label_beside,
    legend_below,
    literal,
    marks,
    new_figure,
    set_log,
    tick_swept,
)
from .labels import PER_DEVICE, column_quantity, number_text, quantity
from .statistics import confidence_halfwidth
from .sweep import differences_text, setting_columns, telling_columns, value_text

DEFAULT_METRICS = ("ttft_p50_s", "tpot_p50_s", "bits_per_byte")
"""Of these the ones that were observed are drawn, if none are named."""
MAX_BARS = 40
MAX_PANELS = 6
WIDE = 16
"""Values over so large a factor are shown on a logarithmic axis."""


def lines(runs: pd.DataFrame, x: str | None = None, y: str | None = None) -> Figure:
    """A panel per metric of ``y`` over the swept numbers of column ``x`` (default: the one with most of them): a line per setting
    of the other swept columns, named at its end. Repeats are averaged, with the 95 % confidence interval of the mean. Where runs
    have a metric NAME_bound beside NAME, that is dashed."""
    runs = finished(runs)
    x = x or _swept_numbers(runs)
    runs = runs.assign(**{x: pd.to_numeric(runs[x], errors="coerce")}) if x in runs else runs
    runs = runs[np.isfinite(runs[x])] if x in runs else runs
    if x not in runs or runs[x].nunique() < 2:
        raise ValueError(f"lines over {x} need runs with at least two numbers of it: sweep it with -m {x}=...")
    metrics = _observed(runs, y)
    naming = Naming.of(runs, without=(x,))
    settings = naming.settings(runs)
    height = max(3.4, LABEL_HEIGHT_INCHES * len(settings))
    width = 1 + 3.8 * len(metrics) + 0.065 * max(map(len, settings))
    figure, (row,) = new_figure(width, height + 0.6, num_columns=len(metrics))
    for axes, metric in zip(row, metrics):
        label, scale = quantity(metric)
        for color, group in zip(COLORS, settings.values()):
            means = metric_values(group, metric).dropna().mul(scale).groupby(group[x]).agg(["mean", confidence_halfwidth])
            axes.errorbar(means.index, means["mean"], means["confidence_halfwidth"], color=color, **marks(len(means)))
        _draw_bound(axes, runs, x, metric, scale)
        axes.set_ylabel(label)
        _scale(axes, x, np.unique(runs[x]))
    _name_lines(figure, row[-1], settings, naming, LABEL_HEIGHT_INCHES / height)
    return figure


def bars(runs: pd.DataFrame, y: str | None = None) -> Figure:
    """A bar per setting and a panel per metric of ``y``, the highest of the first metric on top. Repeats are averaged, with the
    95 % confidence interval of the mean."""
    runs = finished(runs)
    metrics = _observed(runs, y)
    naming = Naming.of(runs)
    settings = naming.settings(runs, at_most=MAX_BARS)
    order = sorted(settings, key=lambda label: metric_values(settings[label], metrics[0]).mean())
    width = 2 + 3.2 * len(metrics) + 0.065 * max(map(len, order))
    figure, (row,) = new_figure(width, 1.0 + 0.27 * len(order), num_columns=len(metrics), sharey=True)
    for axes, metric in zip(row, metrics):
        label, scale = quantity(metric)
        values = [metric_values(settings[name], metric).dropna().to_numpy() * scale for name in order]
        means = np.array([v.mean() if len(v) else np.nan for v in values])
        halves = np.array([confidence_halfwidth(v) for v in values])
        axes.barh(order, means, color=COLORS[0], height=0.62)
        axes.errorbar(means, range(len(order)), xerr=halves, fmt="none", ecolor=INK, capsize=2, linewidth=1)
        ends = means + np.nan_to_num(halves)
        for i in np.flatnonzero(np.isfinite(means)):
            axes.annotate(
                number_text(means[i]), (ends[i], i), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
            )
        axes.set(xlabel=label, xlim=(min(0.0, np.nanmin(means)), np.nanmax(ends) * 1.18 or 1.0))
        axes.grid(visible=False, axis="y")
    if naming.note:
        figure.suptitle(naming.note, fontsize=8, color=INK)
    return figure


def heatmap(runs: pd.DataFrame, x: str, y: str, z: str = "tpot_p50_s") -> Figure:
    """The metric ``z`` over two swept columns, in colour and in numbers: a panel per setting of the others, all of one scale.
    Repeats are averaged; an empty cell has no run."""
    runs = finished(runs)
    swept = differences_text(runs)
    for column in (x, y):
        if column not in setting_columns(runs):
            raise ValueError(f"{column!r} was not swept, so there are no cells over it; the runs differ in {swept}")
    (metric,) = _observed(runs, z)
    naming = Naming.of(runs, without=(x, y))
    settings = naming.settings(runs, at_most=MAX_PANELS)
    label, scale = quantity(metric)
    runs = runs.assign(cell=metric_values(runs, metric) * scale)
    columns, rows = (sorted(runs[key].dropna().unique(), key=_by_value) for key in (x, y))
    low, high = runs["cell"].min(), runs["cell"].max()
    norm = LogNorm(low, high) if low > 0 and high / low > WIDE else Normalize(low, high)
    size = (max(2.6, 0.62 * len(columns)), max(1.8, 0.34 * len(rows)))
    figure, (panels,) = new_figure(1.8 + size[0] * len(settings), 1.1 + size[1], num_columns=len(settings), sharey=True)
    for axes, (name, group) in zip(panels, settings.items()):
        cells = runs.loc[group.index].pivot_table(index=y, columns=x, values="cell", aggfunc="mean").reindex(rows, columns=columns)
        mesh = axes.pcolormesh(cells.to_numpy(), cmap="cividis", norm=norm, edgecolors="none")
        for (i, j), value in np.ndenumerate(cells.to_numpy()):
            if np.isfinite(value):
                color = "#ffffff" if norm(value) < 0.55 else "#0b0b0b"
                axes.text(j + 0.5, i + 0.5, number_text(value, 3), ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(np.arange(len(columns)) + 0.5, [literal(value_text(v)) for v in columns])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [literal(value_text(v)) for v in rows])
        axes.grid(visible=False)
        axes.set(xlabel=column_quantity(x).label, title=name)
    panels[0].set_ylabel(column_quantity(y).label)
    bar = figure.colorbar(mesh, ax=list(panels), label=label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=8)
    bar.ax.yaxis.label.set(color=INK, fontsize=9)
    if isinstance(norm, LogNorm):
        set_log(bar.ax.yaxis)
    return figure


def metric_values(runs: pd.DataFrame, metric: str) -> pd.Series:
    """A metric of every run; one that ends in "/gpu" divided by the devices that served."""
    values = runs[f"metric.{metric.removesuffix(PER_DEVICE)}"]
    if not metric.endswith(PER_DEVICE):
        return values
    return values / runs[["parallel.tp", "parallel.pp", "parallel.dp"]].astype(float).prod(axis=1)


def _observed(runs: pd.DataFrame, metrics: str | None) -> list[str]:
    """The metrics that are named, each observed in some run; else the usual ones that were."""

    def is_observed(name: str) -> bool:
        column = f"metric.{name.removesuffix(PER_DEVICE)}"
        return column in runs and bool(runs[column].notna().any())

    names = metrics.split(",") if metrics else [name for name in DEFAULT_METRICS if is_observed(name)] or [*DEFAULT_METRICS]
    for name in names:
        if not is_observed(name):
            known = ", ".join(c.removeprefix("metric.") for c in runs.columns if c.startswith("metric.") and runs[c].notna().any())
            raise ValueError(f"no run has observed {name!r}; there are {known or 'none'}")
    return names


def _swept_numbers(runs: pd.DataFrame) -> str:
    """Of the columns that tell the settings apart, the one with the most numbers."""
    columns = telling_columns(runs, setting_columns(runs))
    counts = {c: pd.to_numeric(runs[c], errors="coerce").nunique() for c in columns}
    if max(counts.values(), default=0) < 2:
        raise ValueError("lines need a column of numbers with at least two values; none was swept. Draw bars instead")
    return max(counts, key=lambda c: counts[c])


def _draw_bound(axes: Axes, runs: pd.DataFrame, x: str, metric: str, scale: float) -> None:
    """What nothing can exceed (or fall below): one dashed line, of all settings."""
    column = f"metric.{metric}_bound"
    if column not in runs or runs[column].isna().all():
        return
    bound = (runs[column] * scale).groupby(runs[x]).mean().dropna()
    axes.plot(bound.index, bound, color=FAINT, linestyle="--", linewidth=1.2, zorder=1.5)
    axes.annotate("bound", (bound.index[0], bound.iloc[0]), (0, 4), textcoords="offset points", fontsize=8, color=FAINT)


def _scale(axes: Axes, column: str, swept: np.ndarray) -> None:
    """Logarithmic axes for wide ranges; else a vertical one from 0, unless all values are close together."""
    if swept.min() > 0 and swept.max() / swept.min() >= WIDE:
        axes.set_xscale("log")
    tick_swept(axes, column, swept)
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and drawn.min() > 0 and drawn.max() / drawn.min() >= WIDE:
        set_log(axes.yaxis)
    elif len(drawn) and 0 <= drawn.min() < 0.6 * drawn.max():
        axes.set_ylim(bottom=0)


def _name_lines(figure: Figure, axes: Axes, settings: dict[str, pd.DataFrame], naming: Naming, height: float) -> None:
    """Beside the ends of the lines of the last panel; below, where one of them has no end there."""
    lines = [container.lines[0] for container in axes.containers if isinstance(container, ErrorbarContainer)]
    points = [np.stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)], 1) for line in lines]
    ends = [drawn[np.isfinite(drawn).all(1)][-1:] for drawn in points]
    if naming.keys and all(len(end) for end in ends):
        x, y = np.concatenate(ends).T
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        label_beside(axes, x, y, list(settings), height, COLORS)
    elif naming.keys:
        legend_below(figure, (lines, list(settings)))
    if naming.note:
        figure.suptitle(naming.note, fontsize=8, color=INK)


def _by_value(value: object) -> tuple[bool, float, str]:
    number = pd.to_numeric(value, errors="coerce")  # type: ignore[call-overload]
    return (bool(np.isnan(number)), 0.0 if np.isnan(number) else float(number), str(value))

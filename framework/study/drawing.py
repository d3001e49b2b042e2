"""What all figures have in common: colours, axes without ornament, names of settings, labels beside lines and points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from .labels import column_quantity
from .sweep import differences, differences_text, setting_columns, telling_columns, value_text

COLORS = ("#1369bf", "#bf7c39", "#39bf7c", "#7e17e6", "#993d0f", "#626773", "#bfa313", "#aca3bf", "#7ea1e6", "#73593f")
"""Found by search: any two are at least 18 apart in CIELAB, also as seen without red, green or blue cones (Machado et al. 2009),
and all can be read on white and on black."""
INK, FAINT, GRID = "#24292f", "#6e7782", "#d0d7de"
"""Of words, of axes and of what only guides the eye. A page replaces them by those of its own light or dark."""
MAX_LINES = len(COLORS)
"""Settings in one figure: more no eye can tell apart."""
MAX_KEYS = 4
"""Swept columns that a label names; of more, only those that tell the settings apart."""
MAX_MARKS = 60
LABEL_HEIGHT_INCHES = 0.17


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
        return literal(
            ", ".join(f"{key}={value_text(run[c])}" for c, key in self.keys.items() if pd.notna(run[c]))
            or (f"without {', '.join(self.keys.values())}" if self.keys else "")
        )

    def settings(self, runs: pd.DataFrame, at_most: int = MAX_LINES) -> dict[str, pd.DataFrame]:
        """Label -> its runs, for every setting. Raises ValueError for more than ``at_most``."""
        if not self.keys:
            return {"": runs}
        groups = [group for _, group in runs.groupby(list(self.keys), dropna=False, sort=True)]
        if len(groups) > at_most:
            column, values = next(iter(differences(runs).items()))
            raise ValueError(
                f"{len(groups)} settings are too many for one figure, at most {at_most} can be told apart. The runs differ "
                f"in {differences_text(runs)}. Plot a part of them: --where {column}={values[0]}, or in Python "
                f"select(runs, {column!r}, {values[0]!r})"
            )
        return {self.label(group.iloc[0]): group for group in groups}


def literal(text: str) -> str:
    """Text that is drawn as it is: matplotlib takes what stands between two dollars for a formula."""
    return text.replace("$", r"\$")


def new_figure(width: float, height: float, num_rows: int = 1, num_columns: int = 1, **share: Any) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches, and its axes [num_rows, num_columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False, **share)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=8)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            text.set(color=INK, fontsize=9)
    return figure, grid


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that worked. Raises ValueError if there is none."""
    worked = runs[runs["status"] == "ok"]
    if worked.empty:
        raise ValueError("no run finished, so there is nothing to plot; the column error of the table says why")
    return worked


def with_columns(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A metric that no run has is one that none observed."""
    return runs.reindex(columns=runs.columns.union(list(metrics), sort=False))


def label_beside(
    axes: Axes, x: np.ndarray, y: np.ndarray, labels: Sequence[str], height: float, colors: Sequence[str] | None = None
) -> None:
    """Names points in a column right of the axes, whose limits are set, each at the height of its point or as near as the others
    leave room, with a line between. ``height``: of a label, as a fraction of that of the axes."""
    order = np.argsort(y)
    steps = height * np.arange(len(y))
    heights = (axes.transScale + axes.transLimits).transform(np.stack([x, y], 1))[:, 1]
    places = np.maximum.accumulate(heights[order] - steps) + steps
    places = np.minimum(places, 1 - steps[::-1])
    line = {"arrowstyle": "-", "color": GRID, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 2}
    for i, place in zip(order, places):
        axes.annotate(
            labels[i],
            (x[i], y[i]),
            (1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colors[i] if colors else INK,
            arrowprops=line,
            zorder=1,
        )


def marks(num_points: int) -> dict[str, Any]:
    """How the points of a line are marked: not at all where there are too many to see them."""
    return {"marker": "o", "markersize": 3.5, "capsize": 2} if num_points <= MAX_MARKS else {}


def set_log(axis: Axis) -> None:
    """Logarithmic, with plain numbers at 1, 2, 5, 10 ..., fewer of them where the values span more decades."""
    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    num_decades = np.log10(high / low)
    subs = ((0.6, range(1, 10)), (2, (1, 2, 5)), (3, (1, 3)), (np.inf, (1,)))
    axis.set_major_locator(LogLocator(subs=next(chosen for most, chosen in subs if num_decades <= most)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def tick_swept(axes: Axes, column: str, swept: np.ndarray) -> None:
    """Names the horizontal axis, and puts its ticks where was measured, if that is at few values."""
    label, scale = column_quantity(column)
    axes.set_xlabel(label)
    if len(swept) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(swept.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value * scale:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def log_if_wide(axes: Axes) -> None:
    """A logarithmic horizontal axis if the values span more than a factor of 50, else one that does not go below 0."""
    low, high = axes.get_xlim()
    values = [v for line in axes.lines for v in np.asarray(line.get_xdata(), dtype=float) if np.isfinite(v) and v > 1]
    if values and max(values) / min(values) > 50:
        set_log(axes.xaxis)
    else:
        axes.set_xlim(max(0.0, low), high)


def legend_below(figure: Figure, named: tuple[Sequence, Sequence[str]], title: str | None = None) -> None:
    """Names lines and points (handles, labels) under the axes, in as many columns as there is room for."""
    handles, labels = named
    if labels:
        ncols = max(1, min(len(labels), 110 // (max(map(len, labels)) + 6)))
        legend = figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=ncols,
            frameon=False,
            fontsize=8,
            title=title,
            title_fontsize=8,
            labelcolor=INK,
        )
        legend.get_title().set_color(INK)

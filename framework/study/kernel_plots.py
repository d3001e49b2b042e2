"""Figures of kernels: under their rooflines, beside what a simulator says of them, and what each is worth to a workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .drawing import COLORS, FAINT, legend_below, new_figure, set_log


def kernel_roofline(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Measured kernels under the ceilings measured with them: TFLOP/s over FLOP per byte, both logarithmic. One marker per
    measurement: colour says op, shape says impl. ``rows``: the flat rows of a kernel benchmark, of one device."""
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
        ceilings[f"{dtype}: {bandwidth:.2g} TB/s, {peak:.3g} TFLOP/s"] = line
    colors = dict(zip(table["op"].unique(), cycle(COLORS)))
    markers = dict(zip(table["impl"].unique(), cycle("os^Dv<>pP*X")))
    for (op, impl), group in table.groupby(["op", "impl"], sort=False):
        axes.scatter(intensity[group.index], group["tflops_s"], color=colors[op], marker=markers[impl], s=28, alpha=0.8, zorder=2)
    axes.set(xlabel="Operations per byte moved (FLOP/byte)", ylabel="TFLOP/s")
    set_log(axes.xaxis)
    set_log(axes.yaxis)
    handles = [*ceilings.values(), *(Line2D([], [], color=color, marker="o", linestyle="") for color in colors.values())]
    handles += [Line2D([], [], color=FAINT, marker=marker, linestyle="") for marker in markers.values()]
    legend_below(figure, (handles, [*ceilings, *colors, *markers]))
    return figure

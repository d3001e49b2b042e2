"""Figures over what was swept: what is drawn are the numbers of the table."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from framework.study import sweep_plots
from framework.study.labels import quantity

from .test_plots import table

GOODPUT, TTFT = "metric.goodput_per_s", "metric.ttft_p50_s"


def repeated() -> pd.DataFrame:
    """Two policies at three loads, three repeats of each; goodput is known by heart."""
    rows = [
        {"workload.rate": rate, "scheduler.policy": policy, "seed": seed, GOODPUT: base * rate + seed, TTFT: rate / base}
        for policy, base in (("fcfs", 1.0), ("slo", 3.0))
        for rate in (1, 2, 8)
        for seed in (0, 1, 2)
    ]
    return table(**pd.DataFrame(rows))


def drawn(axes: Axes) -> list[np.ndarray]:
    return [container.lines[0].get_xydata() for container in axes.containers]


def test_lines_are_means_over_the_swept_column_with_intervals() -> None:
    figure = sweep_plots.lines(repeated(), y="goodput_per_s,ttft_p50_s")
    goodput, ttft = figure.axes
    assert np.allclose(drawn(goodput), [[(1, 2), (2, 3), (8, 9)], [(1, 4), (2, 7), (8, 25)]])
    assert np.allclose(drawn(ttft), [[(1, 1e3), (2, 2e3), (8, 8e3)], [(1, 1e3 / 3), (2, 2e3 / 3), (8, 8e3 / 3)]])
    # Student's t with 2 degrees of freedom, standard deviation 1, three repeats.
    (low, high) = goodput.containers[0].lines[1]
    assert np.allclose(high.get_ydata() - low.get_ydata(), 2 * 4.303 / math.sqrt(3), rtol=1e-3)
    assert goodput.get_xlabel() == "Offered load (requests/s)" and goodput.get_ylabel() == "Goodput (requests/s)"
    assert {text.get_text() for text in ttft.texts} == {"policy=fcfs", "policy=slo"}
    assert list(goodput.xaxis.get_ticklocs()) == [1, 2, 8]


def test_lines_find_the_column_with_most_numbers_and_leave_out_what_is_none() -> None:
    runs = repeated().astype({"workload.rate": float})
    runs.loc[runs["workload.rate"] == 8, "workload.rate"] = math.inf
    (axes,) = sweep_plots.lines(runs, y="goodput_per_s").axes
    assert np.allclose(drawn(axes)[0], [(1, 2), (2, 3)])
    with pytest.raises(ValueError, match="none was swept"):
        sweep_plots.lines(runs.drop(columns="workload.rate"))
    with pytest.raises(ValueError, match="at least two numbers"):
        sweep_plots.lines(runs, x="scheduler.policy")
    with pytest.raises(ValueError, match=r"no run has observed 'speed'; there are goodput_per_s, ttft_p50_s"):
        sweep_plots.lines(runs, y="speed")


def test_a_bound_is_a_dashed_line() -> None:
    runs = table(
        **{
            "cache.num_blocks": [100, 1000, 10000],
            "metric.prefix_hit_rate": [0.1, 0.3, 0.45],
            "metric.prefix_hit_rate_bound": [0.2, 0.4, 0.5],
        }
    )
    (axes,) = sweep_plots.lines(runs, y="prefix_hit_rate").axes
    (bound,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert np.allclose(bound.get_xydata(), [(100, 20), (1000, 40), (10000, 50)])
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "Prefix hit rate (%)")
    assert [text.get_text() for text in axes.texts] == ["bound"]


def test_an_axis_of_bytes_counts_in_gigabytes() -> None:
    (axes,) = sweep_plots.lines(
        table(**{"cache.memory_bytes": [2_000_000_000, 4_000_000_000], GOODPUT: [1.0, 2.0]}), y="goodput_per_s"
    ).axes
    assert axes.get_xlabel() == "Memory (GB)" and [t.get_text() for t in axes.get_xticklabels()] == ["2", "4"]
    assert quantity("ttft_priority_0_p99_s") == ("TTFT priority 0 p99 (ms)", 1e3)


def test_bars_are_ordered_means() -> None:
    runs = repeated()
    figure = sweep_plots.bars(runs[runs["workload.rate"] == 2], y="goodput_per_s,ttft_p50_s")
    goodput, ttft = figure.axes
    assert [text.get_text() for text in goodput.get_yticklabels()] == ["policy=fcfs", "policy=slo"]
    assert np.allclose([bar.get_width() for bar in goodput.patches], [3, 7])
    assert np.allclose([bar.get_width() for bar in ttft.patches], [2e3, 2e3 / 3])
    assert [text.get_text() for text in goodput.texts] == ["3", "7"]


def test_a_metric_per_gpu_is_divided_by_the_devices() -> None:
    runs = table(**{"parallel.tp": [1, 4, 2], "parallel.pp": [1, 1, 2], "parallel.dp": [8, 2, 2], GOODPUT: [16.0, 24.0, 4.0]})
    (axes,) = sweep_plots.bars(runs, y="goodput_per_s/gpu").axes
    assert np.allclose([bar.get_width() for bar in axes.patches], [0.5, 2, 3])
    assert axes.get_xlabel() == "Goodput (requests/s) per GPU"


def test_cells_of_a_heatmap_are_means_and_empty_where_nothing_ran() -> None:
    runs = repeated()
    runs = runs[(runs["workload.rate"] != 8) | (runs["scheduler.policy"] != "slo")]
    axes, bar = sweep_plots.heatmap(runs, x="workload.rate", y="scheduler.policy", z="goodput_per_s").axes
    (mesh,) = axes.collections
    cells = np.ma.filled(mesh.get_array(), np.nan)
    assert np.allclose(cells, [[2, 3, 9], [4, 7, np.nan]], equal_nan=True)
    assert [text.get_text() for text in axes.texts] == ["2", "3", "9", "4", "7"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "8"] and bar.get_ylabel() == "Goodput (requests/s)"
    with pytest.raises(ValueError, match=r"'model\.name' was not swept"):
        sweep_plots.heatmap(runs, x="workload.rate", y="model.name")


def test_text_of_users_is_no_formula() -> None:
    runs = table(**{"model.name": ["$\\frac{", "a$b$"], GOODPUT: [1.0, 2.0]})
    figure = sweep_plots.bars(runs, y="goodput_per_s")
    figure.savefig("/dev/null", format="svg")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [r"name=\$\frac{", r"name=a\$b\$"]

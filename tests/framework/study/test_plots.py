"""Figures: the lines are the numbers of the table."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from framework.cli import plot as plot_command
from framework.study import plots

from .test_results import write_sweep


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"status": "ok", **columns})


def test_latency_of_one_run_is_its_distribution() -> None:
    figure = plots.latency(pd.DataFrame({"ttft_s": [0.3, 0.1, 0.2], "tpot_s": [0.01, None, 0.02]}))
    ttft, tpot = figure.axes
    line = next(line for line in ttft.lines if line.get_drawstyle() == "steps-post")
    assert np.allclose(line.get_xdata()[1:], [100, 200, 300]) and np.allclose(line.get_ydata(), [0, 1 / 3, 2 / 3, 1])
    assert "(ms)" in ttft.get_xlabel() and "(ms)" in tpot.get_xlabel()
    assert np.allclose(next(line for line in tpot.lines if line.get_drawstyle() == "steps-post").get_xdata()[1:], [10, 20])


def test_latency_pools_repeats_and_names_settings() -> None:
    runs = table(run=["0", "1", "2"], **{"choice.sample": ["torch", "torch", "triton"], "seed": [1, 2, 1]})
    requests = pd.DataFrame({"run": ["0", "1", "2"], "ttft_s": [0.1, 0.2, 0.3], "tpot_s": [0.1, 0.1, 0.1]})
    legend = plots.latency(requests, runs).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["sample=torch (n=2)", "sample=triton (n=1)"]


def test_load_has_a_line_per_setting_and_percentile() -> None:
    runs = table(
        **{
            "workload.rate": [1, 2, 1, 2],
            "choice.sample": ["a", "a", "b", "b"],
            "metric.ttft_p50_s": [0.1, 0.2, 0.3, 0.4],
            "metric.ttft_p99_s": [1, 2, 3, 4],
            "metric.tpot_p50_s": [0.01, 0.02, 0.03, 0.04],
            "metric.tpot_p99_s": [0.1, 0.2, 0.3, 0.4],
        }
    )
    ttft, _ = plots.load(runs).axes
    solid = [c.lines[0] for c in ttft.containers if c.lines[0].get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in solid] == [[100, 200], [300, 400]]
    assert len(ttft.containers) == 4
    with pytest.raises(ValueError, match="at least two"):
        plots.load(runs[runs["workload.rate"] == 1])


def test_frontier_holds_what_nothing_beats() -> None:
    assert plots.frontier([1, 2, 3, 2, 3], [9, 5, 1, 6, 0.5]) == [0, 3, 2]
    rng = np.random.default_rng(0)
    x, y = rng.random(50), rng.random(50)
    beaten = [any((x > x[i]) & (y > y[i])) for i in range(50)]
    assert sorted(plots.frontier(x, y)) == [i for i in range(50) if not beaten[i]]


def test_pareto_marks_the_frontier() -> None:
    runs = table(
        **{
            "cache.block_size": [8, 16, 32],
            "metric.output_tokens_per_s": [1.0, 2.0, 0.5],
            "metric.tokens_per_s_per_user": [2.0, 1.0, 0.5],
        }
    )
    (axes,) = plots.pareto(runs).axes
    assert list(axes.lines[0].get_xdata()) == [1.0, 2.0]
    assert {text.get_text() for text in axes.texts} == {"8", "16"}


def test_nothing_to_plot_is_an_error() -> None:
    with pytest.raises(ValueError, match="no run finished"):
        plots.pareto(pd.DataFrame({"status": ["failed"]}))


def test_plot_command_writes_a_figure(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    parser = argparse.ArgumentParser()
    plot_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["plot", "latency", str(tmp_path)])
    assert args.run(args) == 0
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")

"""Figures: the lines are the numbers of the table."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from framework.cli import main
from framework.study import kernel_plots, plots, sweep_plots
from framework.study.plot_kinds import PLOT_KINDS, PlotKind

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


def test_metrics_that_no_run_observed() -> None:
    """One output token per request has no time per output token."""
    runs = table(**{"workload.rate": [1, 2], "metric.ttft_p50_s": [0.1, 0.2], "metric.ttft_p99_s": [0.1, 0.2]})
    ttft, tpot = plots.load(runs).axes
    assert list(ttft.containers[0].lines[0].get_ydata()) == [100, 200] and pd.isna(tpot.containers[0].lines[0].get_ydata()).all()
    with pytest.raises(ValueError, match="no run has both"):
        plots.pareto(runs)


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
    assert {text.get_text() for text in axes.texts} == {"block_size=8", "block_size=16"}


def sweep(num_rates: int = 12, num_models: int = 1) -> pd.DataFrame:
    """Runs that all lie on the frontier, and crowd at one end of it."""
    rows = []
    for i in range(num_rates * num_models):
        rate, model = i % num_rates + 1, i // num_rates
        speed = 1 / (i + 1)
        row: dict[str, object] = {"run": str(i), "workload.rate": rate, "model.name": f"organisation/model-{model}"}
        row |= {f"model.architecture.number_{n}": 1000 * model + n for n in range(20)}
        row |= {f"metric.{name}_p{p}_s": rate * p / 1e4 for name in ("ttft", "tpot") for p in (50, 99)}
        rows.append(row | {"metric.output_tokens_per_s": 100 - speed, "metric.tokens_per_s_per_user": speed})
    return table(**pd.DataFrame(rows))


def requests_of(runs: pd.DataFrame) -> pd.DataFrame:
    times = [{"run": run, "ttft_s": 0.002 * 9**i, "tpot_s": 0.003 * (i + 1)} for run in runs["run"] for i in range(6)]
    return pd.DataFrame(times).assign(arrival_s=0.0, first_token_s=1.0, last_token_s=2.0)


def measured_kernels() -> list[dict[str, object]]:
    row = {"median_us": 1.0, "flops": 1e9, "bytes": 1e7, "tflops_s": 1.0, "ceiling_tb_s": 3.0, "ceiling_tflops_s": 600.0}
    return [{**row, "op": f"op_{i}", "impl": f"impl_{i % 3}", "dtype": ("bfloat16", "float16")[i % 2]} for i in range(8)]


def quality_runs(num_schemes: int = 6) -> pd.DataFrame:
    """Two serving runs and a quality run of each scheme, which loses ever more; the last two lose almost as much."""
    losses = [*(10.0 ** (i - num_schemes) for i in range(1, num_schemes)), 0.101]
    rows: list[dict[str, object]] = []
    for i, loss in enumerate(losses):
        config = {"quant.scheme": f"scheme-{i}", "choice.default": "auto"}
        speeds = [{**config, "seed": seed, "metric.output_tokens_per_s": 100 + i + seed} for seed in (0, 2)]
        rows += [{**row, "metric.weight_bytes": 1e7 - 1e6 * i} for row in speeds]
        rows.append({**config, "window_tokens": 64, "metric.kl_mean": loss, "metric.kl_mean_se": loss / 10})
    return table(**pd.DataFrame(rows))


def test_quality_has_a_point_per_setting_in_both_axes() -> None:
    speed, memory = plots.quality(quality_runs()).axes
    found = [[tuple(container.lines[0].get_xydata()[0]) for container in axes.containers] for axes in (speed, memory)]
    losses = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.101]
    assert np.allclose(found[0], [(101 + i, loss) for i, loss in enumerate(losses)])
    assert np.allclose(found[1], [(10 - i, loss) for i, loss in enumerate(losses)])
    assert speed.get_yscale() == "log" and "MB" in memory.get_xlabel()
    assert {text.get_text() for text in memory.texts} == {f"scheme=scheme-{i}" for i in range(6)}


def test_quality_alone_is_drawn_over_memory_and_no_loss_has_a_place() -> None:
    runs = quality_runs()
    alone = runs[runs["window_tokens"].notna()].assign(**{"metric.weight_bytes": 5e6, "metric.output_tokens_per_s": np.nan})
    alone.loc[alone["quant.scheme"] == "scheme-0", "metric.kl_mean"] = 0.0
    (axes,) = plots.quality(alone).axes
    lines = [container.lines[0] for container in axes.containers]
    assert [line.get_marker() for line in lines] == ["v", *"ooooo"] and 0 < lines[0].get_ydata()[0] < 1e-4
    with pytest.raises(ValueError, match="no run knows output_tokens_per_s or the memory"):
        plots.quality(alone.drop(columns="metric.weight_bytes"))


def test_timeline_counts_who_waits_and_who_answers() -> None:
    requests = pd.DataFrame(
        {"arrival_s": [0.0, 1.0, 1.0, 5.0], "first_token_s": [2.0, 4.0, np.nan, 6.0], "last_token_s": [8.0, 6.0, np.nan, 10.0]}
    )
    waiting, answering = (axes.lines[0] for axes in plots.timeline(requests).axes)
    times = np.array([0.5, 1.5, 3.0, 5.5, 7.0, 9.0])
    counts = [line.get_ydata()[np.searchsorted(line.get_xdata(), times)] for line in (waiting, answering)]
    assert np.allclose(counts, [[1, 2, 1, 1, 0, 0], [0, 0, 1, 2, 2, 1]])


def test_timeline_shows_the_first_of_repeats() -> None:
    runs = table(run=["0", "1"], seed=[1, 2])
    requests = pd.DataFrame({"run": ["0", "1", "1"], "arrival_s": 0.0, "first_token_s": 1.0, "last_token_s": 2.0})
    assert [axes.lines[0].get_ydata().max() for axes in plots.timeline(requests, runs).axes] == [1, 1]


FIGURES = {
    "quality": lambda: plots.quality(quality_runs(9)),
    "pareto": lambda: plots.pareto(sweep(40)),
    "pareto_of_models": lambda: plots.pareto(sweep(6, 2)),
    "load": lambda: plots.load(sweep(4, 3)),
    "latency": lambda: plots.latency(requests_of(sweep(5, 2)), sweep(5, 2)),
    "timeline": lambda: plots.timeline(requests_of(sweep(5, 2)), sweep(5, 2)),
    "lines": lambda: sweep_plots.lines(sweep(4, 8), "workload.rate"),
    "bars": lambda: sweep_plots.bars(sweep(4, 8)),
    "heatmap": lambda: sweep_plots.heatmap(sweep(6, 4), "workload.rate", "model.name", "output_tokens_per_s"),
    "latency_of_one": lambda: plots.latency(requests_of(sweep(1))),
    "roofline": lambda: kernel_plots.kernel_roofline(measured_kernels()),
}


def drawn_texts(figure: Figure) -> dict[str, Bbox]:
    """Every text of a figure, with its place in pixels."""
    figure.savefig(io.BytesIO(), dpi=100)
    texts = [*figure.texts, *(text for legend in figure.legends for text in [*legend.get_texts(), legend.get_title()])]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()] if low <= tick.get_loc() <= high]
    # Without the line that joins an annotation to its point.
    boxes = {f"{i} {text.get_text()}": Text.get_window_extent(text) for i, text in enumerate(texts) if text.get_visible()}
    return {name: box for name, box in boxes.items() if name.split(" ", 1)[1]}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_another_or_leaves_the_figure(name: str) -> None:
    figure = FIGURES[name]()
    boxes = drawn_texts(figure)
    assert len(boxes) > 8
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not box.padded(-0.5).overlaps(other.padded(-0.5)), f"{a!r} and {b!r}"
    whole = figure.bbox.padded(1)
    outside = [text for text, box in boxes.items() if not (whole.contains(*box.min) and whole.contains(*box.max))]
    assert not outside


def test_labels_name_what_a_run_has() -> None:
    runs = sweep(2).assign(**{"choice.merge_attention": [None, "auto"], "choice.sample": ["torch", None]})
    legend = plots.latency(requests_of(runs), runs).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["rate=1 (n=6)", "rate=2 (n=6)"]
    (axes,) = plots.pareto(runs).axes
    assert [text.get_text() for text in axes.texts] == ["rate=2", "rate=1"]


def test_labels_of_two_models_are_their_names() -> None:
    legend = plots.latency(requests_of(sweep(1, 2)), sweep(1, 2)).legends[0]
    names = [text.get_text().partition(" ")[0] for text in legend.get_texts()]
    assert names == ["name=organisation/model-0", "name=organisation/model-1"]
    assert legend.get_title().get_text() == "columns that differ with these: 20"


@pytest.mark.parametrize("draw", [lambda runs: plots.latency(requests_of(runs), runs), plots.load])
def test_too_many_settings_are_an_error_that_says_which_part_to_plot(draw: Callable[[pd.DataFrame], Figure]) -> None:
    runs = sweep(2, 12)
    with pytest.raises(ValueError, match=r"model\.name \(.*\), workload\.rate \(1, 2\) and 20 more") as caught:
        draw(runs)
    assert "--where model.name=organisation/model-0," in str(caught.value) and len(str(caught.value)) < 450


def test_kinds_are_one_entry_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command and its help read the table."""
    write_sweep(tmp_path)
    kind = PlotKind("numbers of runs", "numbers:draw", options={"color": "of the bars"})
    monkeypatch.setitem(PLOT_KINDS, "numbers", kind)
    seen: list[object] = []

    def draw(runs: pd.DataFrame, color: str = "blue") -> Figure:
        seen.extend([len(runs), color])
        return Figure()

    monkeypatch.setitem(sys.modules, "framework.study.numbers", SimpleNamespace(draw=draw))
    assert main(["plot", "numbers", str(tmp_path), "--color", "red", "--where", "choice.sample=torch"]) == 0
    assert seen == [2, "red"] and (tmp_path / "numbers.png").is_file()
    for words, expected in ((["plot", "--help"], "numbers of runs"), (["plot", "numbers", "--help"], "of the bars")):
        with pytest.raises(SystemExit):
            main(words)
        assert expected in capsys.readouterr().out


def test_nothing_to_plot_is_an_error() -> None:
    with pytest.raises(ValueError, match="no run finished"):
        plots.pareto(pd.DataFrame({"status": ["failed"]}))


def test_plot_command_writes_a_figure(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    assert main(["plot", "latency", str(tmp_path)]) == 0
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")

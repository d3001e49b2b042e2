"""Figures of kernels: what is drawn are the numbers of the rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from framework.cli import main
from framework.study import kernel_plots
from framework.study.calibration.points import MAX_POINTS, write_points
from framework.study.plot_kinds import FigureSpec
from framework.study.sensitivity import ALL
from triton_kernels.devices import DEVICE_MODELS
from triton_kernels.lab.roofline import measured_rows
from triton_kernels.registry import Registry

ELASTICITIES = pd.DataFrame(
    {
        "metric": ["ttft_mean_s"] * 4 + ["tpot_mean_s"] * 4,
        "part": ["linear", "host", "attention", ALL] * 2,
        "elasticity": [0.2, 0.1, -0.6, 0.9, 0.5, 0.1, 0.2, 0.8],
        "low": [0.1, 0.05, -0.7, 0.8, 0.4, 0.0, 0.1, 0.7],
        "high": [0.4, 0.15, -0.55, 1.0, 0.6, 0.2, 0.3, 0.9],
    }
)


def test_elasticities_are_bars_with_their_intervals_the_sum_at_the_bottom() -> None:
    ttft, tpot = kernel_plots.elasticities(ELASTICITIES).axes
    assert [text.get_text() for text in ttft.get_yticklabels()] == [ALL, "host", "linear", "attention"]
    assert np.allclose([bar.get_width() for bar in ttft.patches], [0.9, 0.1, 0.2, -0.6])
    assert np.allclose([bar.get_width() for bar in tpot.patches], [0.8, 0.1, 0.5, 0.2])
    (spans,) = [collection.get_segments() for collection in ttft.collections]
    assert np.allclose([span[:, 0] for span in spans], [[0.8, 1.0], [0.05, 0.15], [0.1, 0.4], [-0.7, -0.55]])
    assert ttft.get_xlabel() == "Elasticity of TTFT mean"


def test_predictions_are_points_and_their_mean_error() -> None:
    rows = pd.DataFrame({"op": ["gemm", "gemm", "moe"], "measured_us": [10.0, 100.0, 50.0], "predicted_us": [11.0, 70.0, 50.0]})
    figure = kernel_plots.predictions(rows)
    (axes,) = figure.axes
    points = [collection.get_offsets().tolist() for collection in axes.collections if len(collection.get_offsets()) in (1, 2)]
    assert [[10.0, 11.0], [100.0, 70.0]] in points and [[50.0, 50.0]] in points
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["gemm: 20.0% off on average (n=2)", "moe: 0.0% off on average (n=1)"]
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_xlim() == axes.get_ylim()


def test_points_of_a_calibration_are_drawn_as_they_were_written(tmp_path: Path) -> None:
    times = np.log(np.linspace(1e-6, 400e-6, 400))
    samples = SimpleNamespace(op="linear", dtype="bfloat16", formats_text="group_rows=0", times=times[::-1])
    fit = SimpleNamespace(samples=samples, predicted=times[::-1] + np.log(1.05))
    write_points([fit], tmp_path / "points.csv")  # type: ignore[list-item]
    rows = pd.read_csv(tmp_path / "points.csv")
    assert len(rows) == MAX_POINTS and set(rows["formats"]) == {"group_rows=0"}
    assert rows["measured_us"].is_monotonic_increasing and tuple(rows["measured_us"].iloc[[0, -1]]) == (1.0, 400.0)
    assert np.allclose(rows["predicted_us"], 1.05 * rows["measured_us"], rtol=1e-3)
    legend = kernel_plots.predictions(rows).legends[0]
    assert legend.get_texts()[0].get_text() == f"linear: 5.0% off on average (n={MAX_POINTS})"


def test_a_roofline_of_one_op_tells_its_kernels_apart() -> None:
    """A GEMM of n x k weights for m tokens does 2 m n k operations."""
    op, device = Registry.load([]).ops["linear"], DEVICE_MODELS["h200"]
    rows = measured_rows(op, device)
    row = next(row for row in rows if str(row["case"]).startswith("512 tokens") and "in_features=4096" in str(row["case"]))
    sizes = dict(part.split("=") for part in str(row["case"]).replace(",", "").split() if "=" in part)
    flops = 2 * 512 * float(sizes["in_features"]) * float(sizes["out_features"])
    assert np.isclose(float(row["tflops_s"]), flops / float(row["median_us"]) / 1e6)
    two = [{**row, "impl": "a"}, {**row, "impl": "b", "tflops_s": 1.0}]
    figure = kernel_plots.kernel_roofline(two)
    a, b = figure.axes[0].collections
    assert not np.allclose(a.get_facecolor(), b.get_facecolor()) and b.get_offsets()[0][1] == 1.0
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:] == ["a", "b"]


def test_kinds_of_rows_are_drawn_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sensitivity.csv"
    ELASTICITIES.to_csv(path, index=False)
    assert main(["plot", "elasticities", str(path)]) == 0
    assert (tmp_path / "elasticities.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "predictions", str(path)]) == 2
    assert "lacks the columns op, measured_us, predicted_us; it has metric, part" in capsys.readouterr().err
    assert main(["plot", "predictions", str(tmp_path)]) == 2
    assert "is drawn from a csv file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is drawn from a csv file"):
        FigureSpec.parse("predictions")

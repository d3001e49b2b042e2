"""What a fit says of shapes that were left out of it, row by row, for a figure (``kernelswap plot predictions``)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .fitting import Fit

MAX_POINTS = 150
"""Of a fit: evenly spaced over its measured times."""


def write_points(fits: Sequence[Fit], path: Path) -> None:
    """A line per point: op, dtype, formats, microseconds measured, and predicted by a fit without the row's shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["op", "dtype", "formats", "measured_us", "predicted_us"])
        for fit in fits:
            samples = fit.samples
            shown = np.argsort(samples.times)[
                np.linspace(0, len(samples.times) - 1, min(len(samples.times), MAX_POINTS)).astype(int)
            ]
            for measured, predicted in zip(samples.times[shown], fit.predicted[shown]):
                microseconds = (f"{np.exp(log) * 1e6:.4g}" for log in (measured, predicted))
                writer.writerow([samples.op, samples.dtype, samples.formats_text, *microseconds])

"""How far predictions are from measured rows: per table, op, dtype and format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from ...executor.calibration import Calibration
from ..results import format_table, write_csv
from .fitting import Fit
from .samples import Samples, samples_of
from .tables import Table


@dataclass(frozen=True)
class Error:
    """Of some rows of a table.

    formats       dims for which other kernels run, as text
    rows          how many; of those ``unknown`` have no counterpart in the calibration and count nowhere
    shapes        how many different ones
    mape          mean of |predicted / measured - 1|, median likewise, and bias the mean of predicted / measured - 1; in percent
    extrapolated  share of the rows outside of what was measured for the calibration, in percent
    basis         "left-out shapes": each row predicted by a fit without its shape; "left-out cuts": there is one shape only, each
                  row predicted by a fit without its way to be cut; "as given": by the calibration as it is
    model         "interpolated" or "physics"; empty where a calibration was given
    """

    table: str
    op: str
    dtype: str
    formats: str
    impl: str
    rows: int
    shapes: int
    mape: float
    median: float
    bias: float
    extrapolated: float
    unknown: int
    basis: str
    model: str = ""


COLUMNS = tuple(field.name for field in fields(Error))


def check(tables: Sequence[Table], calibration: Calibration) -> list[Error]:
    """Of a calibration on any rows. Raises ValueError for rows of an op that nobody knows."""
    return [_check(samples, calibration) for table in tables for samples in samples_of(table.rows, calibration.costs)]


def _check(samples: Samples, calibration: Calibration) -> Error:
    points, index = np.unique(samples.points, axis=0, return_inverse=True)
    bound = [calibration.bound(samples.op, samples.dtype, samples.formats, point) for point in points]
    known = np.array([bound[i] is not None for i in index.ravel()])
    found = [model.seconds(work) for i, work in zip(index.ravel(), samples.works) if (model := bound[i]) is not None]
    logs, outside = np.log([seconds for seconds, _ in found]), np.array([flag for _, flag in found], dtype=bool)
    return _error(samples.where(known), logs, outside, "as given", unknown=int((~known).sum()), like=samples)


def check_fits(fits: Sequence[Fit]) -> list[Error]:
    """Of fits, on what was left out of them."""
    return [
        _error(each.samples, each.predicted, each.outside, f"left-out {each.left_out}", model=each.chosen, like=each.samples)
        for each in fits
    ]


def _error(
    samples: Samples, logs: np.ndarray, outside: np.ndarray, basis: str, *, like: Samples, unknown: int = 0, model: str = ""
) -> Error:
    relative, weights = np.expm1(logs - samples.times), samples.weights
    tables = dict.fromkeys(row.place.partition(",")[0] for row in like.rows)
    impls = np.unique(like.impls)
    values = (np.nan, np.nan, np.nan, np.nan)
    if len(samples):
        share = weights / weights.sum()
        mape, bias, beyond = (float((share * part).sum()) for part in (np.abs(relative), relative, outside))
        values = (100 * mape, 100 * float(np.median(np.abs(relative))), 100 * bias, 100 * beyond)
    impl = str(impls[0]) if len(impls) == 1 else f"{len(impls)} kernels"
    shapes = len(np.unique(like.labels))
    return Error(" ".join(tables), like.op, like.dtype, like.formats_text, impl, len(like), shapes, *values, unknown, basis, model)


def as_text(errors: Sequence[Error]) -> str:
    """The table to print; beneath it each op over all its rows."""
    head = ["table", "op", "dtype", "formats", "kernel", "rows", "shapes", "MAPE %", "median %", "bias %"]
    lines = [[*head, "extrapolated %", "unknown", "basis", "model"]]
    sums: dict[str, np.ndarray] = {}
    for error in errors:
        numbers = [f"{value:.1f}" for value in (error.mape, error.median, error.bias, error.extrapolated)]
        texts = [
            error.table,
            error.op,
            error.dtype,
            error.formats or "-",
            error.impl[:40] or "-",
            str(error.rows),
            str(error.shapes),
        ]
        lines.append([*texts, *numbers, str(error.unknown), error.basis, error.model or "-"])
        known = error.rows - error.unknown
        sums[error.op] = sums.get(error.op, np.zeros(2)) + (known * np.array([error.mape, 1]) if known else 0)
    ops = [[op, f"{rows:.0f}", f"{total / rows:.1f}" if rows else "-"] for op, (total, rows) in sums.items()]
    return f"{format_table(lines)}\n\n{format_table([['op', 'rows', 'MAPE %'], *ops])}"


def write_errors(errors: Sequence[Error], path: Path) -> None:
    """One line each, percentages with two digits."""
    rows = [{name: f"{v:.2f}" if isinstance(v, float) else v for name, v in asdict(error).items()} for error in errors]
    write_csv(path, rows, COLUMNS)

"""Fitting: per op, dtype and format physics alone, or physics and what was measured beside it, whichever foretells shapes that
were left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...executor.calibration import Calibration
from ...executor.kriging import Kriging
from ...executor.operator_model import OperatorModel
from ...executor.operators import CostFunction
from ...executor.physics import Physics, as_array
from .rows import Row
from .samples import Samples, samples_of

MIN_ROWS = 8
_SCATTERED_ROWS = 500
"""Up to so many every row is a point of the field; above, shapes are, with one value for each size of a grid."""
_MAX_NODES = 96
_HALF_OCTAVE = 2.0
_STREAMING = ("linear", "rms_norm", "silu_and_mul", "embedding")


@dataclass(frozen=True)
class Fit:
    """model: made from all rows. predicted f64 [N]: log of the seconds of each row of ``samples`` by models that were made
    without its shape (its fold), outside bool [N]: whether it lay outside of their range. chosen: the candidate, "physics" or
    "interpolated", and errors: the mean absolute percentage error of each. left_out: "shapes", or "cuts" where there is one shape
    only, whose ways to be cut (or whose sizes) leave one by one."""

    samples: Samples
    model: OperatorModel
    predicted: np.ndarray
    outside: np.ndarray
    chosen: str
    errors: Mapping[str, float]
    left_out: str


def calibrate(
    device: str,
    source: str,
    rows: Sequence[Row],
    costs: Mapping[str, CostFunction],
    ceilings: Mapping[str, float] | None,
    say: Callable[[str], None] = print,
) -> tuple[Calibration, list[Fit]]:
    """A calibration from the rows of one device. Groups with fewer than ``MIN_ROWS`` different calls are left out, and ``say`` is
    told. Raises ValueError where nothing is left."""
    fits, few = [], []
    for samples in samples_of(rows, costs):
        calls = len(np.unique(np.hstack([samples.points, samples.sizes]), axis=0))
        if calls < MIN_ROWS:
            few.append(
                f"{samples.title} has {len(samples)} rows" + (f" of {calls} different calls" if calls < len(samples) else "")
            )
        else:
            fits.append(fit(samples))
    if not fits:
        raise ValueError(f"too few rows to fit: {'; '.join(few) or 'there are none'}; an op needs at least {MIN_ROWS}")
    for line in few:
        say(f"left out: {line}, at least {MIN_ROWS} are needed")
    floor = min(float(np.exp(each.samples.times.min())) for each in fits)
    models = tuple(each.model for each in fits)
    return Calibration(device, source, models, floor, _stream_bandwidth(models, ceilings), ceilings, costs), fits


def _stream_bandwidth(models: Sequence[OperatorModel], ceilings: Mapping[str, float] | None) -> float:
    """Of the op that streams best known ones; never above what the device can copy."""
    order = {op: i for i, op in enumerate(_STREAMING)}
    best = min(models, key=lambda model: (order.get(model.op, len(order)), -model.physics.bytes_s))
    return min(best.physics.bytes_s, ceilings["copy_bytes_s"] if ceilings else np.inf)


def fit(samples: Samples) -> Fit:
    """The candidate whose error on left-out shapes is less, made from all rows."""
    folds, left_out = samples.folds(), "shapes"
    if len(np.unique(folds)) < 2:
        cuts = samples.points if len(np.unique(samples.points, axis=0)) > 1 else samples.sizes
        folds, left_out = np.unique(cuts, axis=0, return_inverse=True)[1].ravel(), "cuts"
    predicted = {name: np.empty(len(samples)) for name in ("physics", "interpolated")}
    outside = np.empty(len(samples), dtype=bool)
    hints: Kriging | None = None
    for fold in np.unique(folds):
        held = folds == fold
        model = make_model(samples.where(~held), hints)
        hints = model.field
        for name, candidate in (("physics", replace(model, field=None)), ("interpolated", model)):
            predicted[name][held], outside[held] = predict(candidate, samples.where(held))
    weights = samples.weights / samples.weights.sum()
    errors = {name: float((weights * np.abs(np.expm1(found - samples.times))).sum()) for name, found in predicted.items()}
    chosen = min(errors, key=errors.__getitem__)
    whole = make_model(samples)
    model = whole if chosen == "interpolated" else replace(whole, field=None)
    return Fit(samples, model, predicted[chosen], outside, chosen, errors, left_out)


def predict(model: OperatorModel, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """log of the seconds [N] of calls, and which lie outside of the model's range."""
    points, index = np.unique(samples.points, axis=0, return_inverse=True)
    bound = [model.bound(point) for point in points]
    found = [bound[i].seconds(work) for i, work in zip(index.ravel(), samples.works)]
    return np.log([seconds for seconds, _ in found]), np.array([flag for _, flag in found])


def make_model(samples: Samples, hints: Kriging | None = None) -> OperatorModel:
    """Physics, and the field of what was measured beside it. hints: a field whose kernel, lengths and noise are taken over."""
    works = as_array(samples.works)
    physics = Physics.fitted(works, samples.times, samples.weights)
    beside = samples.times - physics.log_seconds(works)
    gridded = len(samples) > _SCATTERED_ROWS
    sizes = _coarse(samples.sizes) if gridded else samples.sizes
    nodes = tuple(_nodes(axis, gridded) for axis in sizes.T)
    impl = samples.impls[0] if len(np.unique(samples.impls)) == 1 else ""
    if gridded:
        points, values, known, labels = _grid(samples, sizes, nodes, beside)
    else:
        points, values, labels = np.hstack([samples.points, sizes]), beside[:, None], samples.labels
        known = np.ones_like(values, dtype=bool)
    if len(np.unique(labels)) < 2:
        labels = np.arange(len(points))
    if hints is not None and hints.points.shape[1] == points.shape[1]:
        field = replace(hints, points=points, values=values)
    else:
        field = Kriging.tuned(points, values, known, labels)
    low, high = samples.points.min(0), samples.points.max(0)
    return OperatorModel(samples.op, samples.dtype, samples.formats, str(impl), physics, field, nodes, gridded, low, high)


def _coarse(sizes: np.ndarray) -> np.ndarray:
    """Sizes [N, S], those of an axis with very many rounded to half octaves."""
    rounded = np.round(sizes * _HALF_OCTAVE) / _HALF_OCTAVE
    return np.stack([axis if len(np.unique(axis)) <= _MAX_NODES else coarse for axis, coarse in zip(sizes.T, rounded.T)], 1)


def _nodes(axis: np.ndarray, gridded: bool) -> np.ndarray:
    measured = np.unique(axis)
    if gridded:
        return measured
    steps = np.arange(measured[0], measured[-1], 1 / _HALF_OCTAVE)
    return np.union1d(measured, steps) if len(measured) <= _MAX_NODES else np.append(steps, measured[-1])


def _grid(
    samples: Samples, sizes: np.ndarray, nodes: Sequence[np.ndarray], beside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shapes [P, D], their values [P, G] at all combinations of the nodes, which of them were measured, and labels [P]. What was
    not measured is that of the nearest size that was."""
    points, row = np.unique(samples.points, axis=0, return_inverse=True)
    row = row.ravel()
    lengths = [len(axis) for axis in nodes]
    column = np.ravel_multi_index([np.searchsorted(axis, values) for axis, values in zip(nodes, sizes.T)], lengths)
    values, weights = np.zeros((len(points), int(np.prod(lengths)))), np.zeros((len(points), int(np.prod(lengths))))
    np.add.at(values, (row, column), beside * samples.weights)
    np.add.at(weights, (row, column), samples.weights)
    known = weights > 0
    values[known] /= weights[known]
    cells = np.stack([axis.ravel() for axis in np.meshgrid(*nodes, indexing="ij")], 1)
    distance = np.abs(cells[:, None] - cells[None]).sum(-1)
    for shape in np.flatnonzero(~known.all(1)):
        seen, lacking = np.flatnonzero(known[shape]), np.flatnonzero(~known[shape])
        values[shape, lacking] = values[shape, seen[distance[np.ix_(lacking, seen)].argmin(1)]]
    first = np.array([np.flatnonzero(row == i)[0] for i in range(len(points))])
    return points, values, known, samples.labels[first]

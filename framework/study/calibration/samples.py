"""Rows as what a fit sees: groups of one op, dtype and format, and which of their rows belong to one shape."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...executor.operators import OPERATORS, CostFunction, Work, operator
from .rows import Row

NUM_FOLDS = 5
_FEW_SHAPES = 25
"""Below, every shape is a fold of its own."""


@dataclass(frozen=True)
class Samples:
    """N measured calls of one op, dtype and format, as arrays over them.

    points   f64 [N, D]: coordinates of the bound shape
    sizes    f64 [N, S]: what changes from call to call, as logarithms to base 2
    works    their work
    times    f64 [N]: log of the seconds
    weights  f64 [N]: how often each was called
    labels   [N]: its shape, over all ways that a layer is cut: rows of one label leave a fit together
    impls    [N]: names of kernels
    """

    op: str
    dtype: str
    formats: Mapping[str, float]
    points: np.ndarray
    sizes: np.ndarray
    works: tuple[Work, ...]
    times: np.ndarray
    weights: np.ndarray
    labels: np.ndarray
    impls: np.ndarray
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.times)

    def where(self, mask: np.ndarray) -> Samples:
        """Some of them."""
        picked = np.flatnonzero(mask)
        arrays = {name: getattr(self, name)[picked] for name in ("points", "sizes", "times", "weights", "labels", "impls")}
        return replace(self, works=tuple(self.works[i] for i in picked), rows=tuple(self.rows[i] for i in picked), **arrays)

    def folds(self) -> np.ndarray:
        """Number of the fold [N] of each: one fifth of the shapes by a hash of their names, or each shape by itself where
        there are few."""
        shapes, index = np.unique(self.labels, return_inverse=True)
        if len(shapes) < _FEW_SHAPES:
            return index
        return np.array([zlib.crc32(str(shape).encode()) % NUM_FOLDS for shape in shapes])[index]

    @property
    def formats_text(self) -> str:
        """``formats`` as a cell of a table."""
        return " ".join(f"{name}={value:g}" for name, value in self.formats.items())

    @property
    def title(self) -> str:
        """The group in words."""
        return " ".join(part for part in (self.op, self.dtype, self.formats_text) if part)


def samples_of(rows: Sequence[Row], costs: Mapping[str, CostFunction]) -> list[Samples]:
    """Rows by op, dtype and format. Where each shape was measured with one kernel only, but different shapes with different ones,
    by kernel too: then these are parts of the range that nothing connects. Raises ValueError for an op whose work is unknown and
    for dims that are missing."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    names: dict[tuple[str, int], tuple[str, ...]] = {}
    for row in rows:
        spec = operator(row.op, row.dims)
        if spec.cost is None and row.op not in costs:
            known = ", ".join(sorted({*costs, *OPERATORS}))
            raise ValueError(f"{row.place}: op {row.op!r} is unknown; there are {known}")
        shape = tuple(spec.shape)
        if names.setdefault((row.op, len(shape)), shape) != shape:
            raise ValueError(
                f"{row.place}: rows of {row.op} name different dims; expected the same in all, or more of them in some"
            )
        groups[row.op, row.dtype, shape, tuple(spec.format(row.dims, row.dtype).items())].append(row)
    return [part for (op, dtype, *_), members in groups.items() for part in _by_kernel(_samples(op, dtype, members, costs))]


def _samples(op: str, dtype: str, rows: Sequence[Row], costs: Mapping[str, CostFunction]) -> Samples:
    points, works, labels = [], [], []
    for row in rows:
        spec = operator(op, row.dims)
        try:
            points.append(spec.point(row.dims))
            works.append(spec.measure(costs.get(op), row.dims, row.runs))
        except (ValueError, KeyError, ZeroDivisionError, OverflowError) as error:
            raise ValueError(f"{row.place}: dims of {op}: {error}") from error
        labels.append(" x ".join(f"{value:g}" for value in spec.whole_shape(row.dims, row.runs)))
    return Samples(
        op,
        dtype,
        operator(op, rows[0].dims).format(rows[0].dims, dtype),
        np.array(points),
        np.array([work.sizes for work in works]),
        tuple(works),
        np.log([row.us * 1e-6 for row in rows]),
        np.array([row.count for row in rows]),
        np.array(labels),
        np.array([row.impl for row in rows]),
        tuple(rows),
    )


def _by_kernel(samples: Samples) -> list[Samples]:
    impls = np.unique(samples.impls)
    pairs = {*zip(samples.labels, samples.impls)}
    if len(impls) == 1 or len(pairs) > len({label for label, _ in pairs}):
        return [samples]
    return [samples.where(samples.impls == impl) for impl in impls]

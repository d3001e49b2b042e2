"""The fitted time of an op: its physics, and what was measured beside it, interpolated over shapes and sizes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .kriging import Kriging
from .operators import Work, operator
from .physics import Physics

_EDGE = 0.01
"""How far, in powers of two, a coordinate may lie outside and still count as measured."""


@dataclass(frozen=True)
class OperatorModel:
    """Of one op, dtype and format.

    impl      whose kernels were measured, where there are several for different shapes; else empty
    physics   seconds from work alone
    field     log(measured / physics) between the measured shapes; None: physics alone foretells left-out shapes better
    nodes     sizes (logarithms to base 2) at which the field is known, one axis each
    gridded   the field's points are shapes, its values all nodes; else its points are (shape, sizes)
    low, high least and greatest coordinates of the measured shapes
    """

    op: str
    dtype: str
    formats: Mapping[str, float]
    impl: str
    physics: Physics
    field: Kriging | None
    nodes: tuple[np.ndarray, ...]
    gridded: bool
    low: np.ndarray
    high: np.ndarray

    def bound(self, point: Sequence[float]) -> BoundModel:
        """At one shape, ready to be called."""
        at, nodes = np.array(point), [axis.tolist() for axis in self.nodes]
        outside = bool((at < self.low - _EDGE).any() or (at > self.high + _EDGE).any())
        surface = self._surface(at)
        spec = operator(self.op, {})
        spread = [i for i, name in enumerate(spec.shape) if name in spec.spread]
        for _ in range(int(at[spread].max()) if spread else 0):  # below one request: the same work spread over fewer heads
            at[spread] = np.maximum(at[spread] - 1, self.low[spread])
            surface.insert(0, self._surface(at)[0])
            nodes[0].insert(0, nodes[0][0] - 1)
        return BoundModel(self.physics, nodes, surface, outside)

    def _surface(self, point: np.ndarray) -> list[list[float]]:
        """log(measured / physics) at all nodes of the sizes; one row where there is one size."""
        lengths = [len(axis) for axis in self.nodes]
        shape = (1, *lengths)[-2:]
        if self.field is None:
            return np.zeros(shape).tolist()
        if self.gridded:
            return self.field(point[None])[0].reshape(shape).tolist()
        sizes = np.stack([axis.ravel() for axis in np.meshgrid(*self.nodes, indexing="ij")], 1)
        return self.field(np.hstack([np.tile(point, (len(sizes), 1)), sizes])).reshape(shape).tolist()

    def distance(self, point: Sequence[float]) -> float:
        """From the nearest measured shape, in powers of two summed over the dims."""
        at = np.array(point)
        if self.field is None:
            return float((np.maximum(self.low - at, 0) + np.maximum(at - self.high, 0)).sum())
        return float(np.abs(self.field.points[:, : len(at)] - at).sum(1).min())


class BoundModel:
    """Of one shape. ``seconds`` costs about 2 us."""

    def __init__(self, physics: Physics, nodes: Sequence[list[float]], surface: list[list[float]], outside: bool) -> None:
        self.physics, self.outside = physics, outside
        self._first: list[float] = nodes[0] if len(nodes) == 2 else [0.0]
        self._last, self._surface = nodes[-1], surface

    def seconds(self, work: Work) -> tuple[float, bool]:
        """(seconds of a call, whether it lies outside of what was measured). Outside, what was measured at the edge beside
        physics holds on."""
        sizes = work.sizes
        column, right, beyond = _between(self._last, sizes[-1])
        row, down, above = _between(self._first, sizes[0]) if len(sizes) == 2 else (0, 0.0, False)
        upper = self._surface[row]
        value = upper[column] if right == 0 else upper[column] * (1 - right) + upper[column + 1] * right
        if down:
            lower = self._surface[row + 1]
            below = lower[column] if right == 0 else lower[column] * (1 - right) + lower[column + 1] * right
            value += down * (below - value)
        return self.physics.seconds(work) * math.exp(value), self.outside or beyond or above


def _between(nodes: list[float], at: float) -> tuple[int, float, bool]:
    """(index of the node before, how far to the next, whether ``at`` is outside)."""
    if at <= nodes[0]:
        return 0, 0.0, at < nodes[0] - _EDGE
    if at >= nodes[-1]:
        return len(nodes) - 1, 0.0, at > nodes[-1] + _EDGE
    index = bisect_right(nodes, at) - 1
    return index, (at - nodes[index]) / (nodes[index + 1] - nodes[index]), False

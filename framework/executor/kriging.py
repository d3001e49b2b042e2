"""Kriging: values between scattered points, as weighted means of those at the points (a Gaussian process's posterior mean)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

KERNELS = ("rough", "smooth")
"""Of the distance r: exp(-sum r) (in one dimension: straight lines between neighbours), or Matern 3/2."""
_TUNED_COLUMNS = 40
_UNKNOWN = 1e9
"""Length along an axis where all points are equal: nothing is known, so nothing changes."""


@dataclass(frozen=True)
class Kriging:
    """points f64 [N, D], values f64 [N, G]: G quantities known at each point. lengths [D]: distances over which values change
    along each axis; noise: variance of a value over that of the field."""

    points: np.ndarray
    values: np.ndarray
    lengths: np.ndarray
    noise: float
    kernel: str = "rough"

    def __call__(self, point: np.ndarray) -> np.ndarray:
        """The values [M, G] at points [M, D]; far from all points their mean."""
        return self._mean + _covariance(point, self.points, self.lengths, self.kernel) @ self._solved

    @cached_property
    def _mean(self) -> np.ndarray:
        return self.values.mean(0)

    @cached_property
    def _solved(self) -> np.ndarray:
        covariance = _covariance(self.points, self.points, self.lengths, self.kernel)
        return np.linalg.solve(covariance + self.noise * np.eye(len(self.points)), self.values - self._mean)

    def leave_out(self, blocks: Sequence[np.ndarray]) -> np.ndarray:
        """Errors [N, G] at each point when the rows of its block (indices) are all left out; exact, without solving anew."""
        covariance = _covariance(self.points, self.points, self.lengths, self.kernel) + self.noise * np.eye(len(self.points))
        inverse = np.linalg.inv(covariance)
        solved, errors = inverse @ (self.values - self._mean), np.empty_like(self.values)
        for block in blocks:
            errors[block] = np.linalg.solve(inverse[np.ix_(block, block)], solved[block])
        return errors

    @classmethod
    def tuned(cls, points: np.ndarray, values: np.ndarray, known: np.ndarray, labels: np.ndarray) -> Kriging:
        """With the kernel, lengths and noise whose mean absolute error is least where all points of a label [N] are left out
        together. known: bool [N, G], values that were measured; of many columns some stand for all."""
        blocks = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        columns = np.arange(values.shape[1])
        if len(columns) > _TUNED_COLUMNS:
            columns = np.random.default_rng(0).choice(columns, _TUNED_COLUMNS, replace=False)
        some, seen = values[:, columns], known[:, columns]
        spans = np.ptp(points, axis=0)
        varied = np.flatnonzero(spans > 0)

        def field(logs: np.ndarray, kernel: str, values: np.ndarray) -> Kriging:
            lengths = np.full(len(spans), _UNKNOWN)
            lengths[varied] = np.exp(logs[:-1])
            return cls(points, values, lengths, float(np.exp(logs[-1])), kernel)

        def error(logs: np.ndarray, kernel: str) -> float:
            return float(np.abs(field(logs, kernel, some).leave_out(blocks))[seen].mean())

        start = np.log(np.append(np.maximum(spans[varied], 0.5), 0.05))
        if len(blocks) < 2:  # nothing can be left out: long lengths, little noise
            return field(start, "rough", values)
        found = {kernel: _descend(partial(error, kernel=kernel), start) for kernel in KERNELS}
        kernel = min(found, key=lambda name: found[name][1])
        return field(found[kernel][0], kernel, values)


def _covariance(left: np.ndarray, right: np.ndarray, lengths: np.ndarray, kernel: str) -> np.ndarray:
    distance = np.abs(left[:, None, :] - right[None, :, :]) / lengths
    if kernel == "rough":
        return np.exp(-distance.sum(-1))
    scaled = np.sqrt(3 * (distance**2).sum(-1))
    return (1 + scaled) * np.exp(-scaled)


def _descend(error: Callable[[np.ndarray], float], start: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinate search with falling steps: few evaluations, no derivatives, the same result every time."""
    at, least = start, error(start)
    for step in (1.4, 0.7, 0.35):
        for _ in range(2):
            before = least
            for axis in range(len(at)):
                for sign in (1, -1):
                    tried = at.copy()
                    tried[axis] += sign * step
                    if (value := error(tried)) < least:
                        at, least = tried, value
                        break
            if least == before:
                break
    return at, least

"""A kernel's time from its work by a few physical numbers, fitted to measured rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from .operators import Work

_ROWS = 3000
_BEND = 0.1
"""Relative error from which a row's pull on the fit no longer grows."""


@dataclass(frozen=True)
class Physics:
    """time = floor + the p-norm of (flops / peak, bytes / bandwidth, flops of one tile / speed of one tile).

    floor_s      what any call takes
    flops_s      of the whole device
    bytes_s      of memory (of a collective: of the links)
    tile_flops_s of one tile, whose steps follow on each other: the ramp of calls with few tiles
    sharpness    p: 1 adds the three up, many takes the largest
    """

    floor_s: float
    flops_s: float
    bytes_s: float
    tile_flops_s: float
    sharpness: float

    def seconds(self, work: Work) -> float:
        """Of one call."""
        arithmetic, memory = work.flops / self.flops_s, work.bytes / self.bytes_s
        chain = work.flops / work.tiles / self.tile_flops_s
        most, p = max(arithmetic, memory, chain), self.sharpness
        if most <= 0:
            return self.floor_s
        return self.floor_s + most * ((arithmetic / most) ** p + (memory / most) ** p + (chain / most) ** p) ** (1 / p)

    def log_seconds(self, work: np.ndarray) -> np.ndarray:
        """log of the seconds [N] of works [N, 3]: flops, bytes, tiles."""
        rates = np.array([self.flops_s, self.bytes_s, self.tile_flops_s])
        parts = np.stack([work[:, 0], work[:, 1], work[:, 0] / work[:, 2]], 1) / rates
        most = np.maximum(parts.max(1), 1e-15)
        norm = most * ((parts / most[:, None]) ** self.sharpness).sum(1) ** (1 / self.sharpness)
        return np.log(self.floor_s + norm)

    @classmethod
    def fitted(cls, work: np.ndarray, log_seconds: np.ndarray, weights: np.ndarray | None = None) -> Physics:
        """To works [N, 3] and logarithms of measured seconds [N]: Levenberg-Marquardt on the logarithms of the numbers, with
        Huber's loss. Of many rows some stand for all."""
        if len(work) > _ROWS:
            picked = np.random.default_rng(0).choice(len(work), _ROWS, replace=False)
            work, log_seconds = work[picked], log_seconds[picked]
            weights = None if weights is None else weights[picked]
        weights = np.ones(len(work)) if weights is None else weights / weights.mean()
        seconds = np.exp(log_seconds)
        peak = max(float(np.quantile(work[:, 0] / seconds, 0.95)), 1.0)
        bandwidth = max(float(np.quantile(work[:, 1] / seconds, 0.95)), 1.0)
        at = np.log([seconds.min(), 1.1 * peak, 1.1 * bandwidth, peak / 1e3, 1.0])

        def residuals(numbers: np.ndarray) -> np.ndarray:
            return _from_logs(numbers).log_seconds(work) - log_seconds

        def loss(errors: np.ndarray) -> float:
            size = np.abs(errors)
            return float((weights * np.where(size < _BEND, size**2 / (2 * _BEND), size - _BEND / 2)).sum())

        errors, damping = residuals(at), 1e-2
        for _ in range(60):
            slopes = np.stack([(residuals(at + shift) - errors) / 1e-4 for shift in 1e-4 * np.eye(5)], 1)
            pull = weights / np.maximum(np.abs(errors), _BEND)
            normal, gradient = slopes.T @ (slopes * pull[:, None]), slopes.T @ (pull * errors)
            for _ in range(8):
                step = np.linalg.solve(normal + np.diag(damping * np.diag(normal) + 1e-6), -gradient)
                moved = at + np.clip(step, -2, 2)
                tried = residuals(moved)
                if loss(tried) < loss(errors):
                    break
                damping *= 4
            else:
                break
            gain = 1 - loss(tried) / loss(errors)
            at, errors, damping = moved, tried, max(damping / 5, 1e-9)
            if gain < 1e-6:
                break
        return _from_logs(at)

    def scaled(self, flops: float, bytes: float) -> Physics:
        """On a device with that many times the arithmetic and the bandwidth; floors stay."""
        return Physics(self.floor_s, self.flops_s * flops, self.bytes_s * bytes, self.tile_flops_s * flops, self.sharpness)

    def numbers(self) -> list[float]:
        """To write down; ``Physics(*numbers)`` is the same."""
        return [float(f"{value:.6g}") for value in astuple(self)]


def _from_logs(logs: np.ndarray) -> Physics:
    floor, flops, bytes_s, tile, sharpness = np.exp(np.clip(logs, -60, 60)).tolist()
    return Physics(floor, flops, bytes_s, tile, 1 + min(sharpness, 50.0))


def as_array(works: Sequence[Work]) -> np.ndarray:
    """[N, 3]: flops, bytes, tiles."""
    return np.array([work[:3] for work in works], dtype=float).reshape(len(works), 3)

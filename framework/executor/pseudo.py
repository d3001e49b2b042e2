"""Random-looking tokens for executors without a model."""

from __future__ import annotations

import numpy as np


def pseudo_tokens(seeds: np.ndarray, positions: np.ndarray, vocab_size: int) -> np.ndarray:
    """uint64 [R], uint64 [R] -> int64 [R] in [0, vocab_size): splitmix64 of both."""
    mixed = seeds + positions * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(vocab_size)).astype(np.int64)

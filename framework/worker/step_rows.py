"""The rows of one step, on their way from the scheduler's lists to tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class StepRows:
    """The rows of a step on the host: int64 [R] each. first, lengths: tokens in the cache before and after it; bounds [R + 1]: row
    r's tokens are bounds[r] : bounds[r + 1]; sampled: rows that yield a token."""

    seats: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    bounds: np.ndarray
    sampled: np.ndarray


@dataclass
class Masks:
    """What some of the rows that yield a token may take: rows int64 [M] among them, words int32 [M, ceil(V/32)] as the bitmask of
    ``apply_penalties``."""

    rows: np.ndarray
    words: np.ndarray


@dataclass
class SampleRows:
    """The rows of a step that yield a token: seats and positions int64 [R] on the host, and the same on the device (row_to_seat
    int32, position int64). A position is the absolute index of the token to be sampled. masks: None if every row may take all."""

    seats: np.ndarray
    positions: np.ndarray
    row_to_seat: torch.Tensor
    position: torch.Tensor
    masks: Masks | None = None

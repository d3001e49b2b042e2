"""What makes drafts on the device, after a step, for the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ..step_rows import StepRows
from ..transfer import to_device

Draw = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [R, V], seats int32 [R], positions int64 [R]) -> tokens int64 [R]; see ``Sampler.draw``."""


@dataclass
class Verified:
    """A step whose tokens are known to the device, and stand in ``RequestRows.tokens``.

    rows     of the step, those that sampled no token among them
    first    int64 [R] on the device: tokens in the cache before the step; None where ``rows.first`` is exact
    hidden   [T, H]: what the model's last layer gave for each token of the step; see ``Model.forward``
    seats    int64 [R'] on the device, of the rows that sampled (``rows.sampled``)
    newest   int64 [R'] on the device: position of the token that each of these sampled last, the first that no cache holds
    bounds   int64 [R'] on the host: the same, or more
    """

    rows: StepRows
    first: torch.Tensor | None
    hidden: torch.Tensor
    seats: torch.Tensor
    newest: torch.Tensor
    bounds: np.ndarray

    def flat_index(self, rows: StepRows, position: torch.Tensor) -> torch.Tensor:
        """int64 [R']: which of the tokens of ``rows``, the step's or as long as these and longer, stands at a position of each row
        that sampled."""
        device = self.newest.device
        first = to_device(rows.first, device) if self.first is None else self.first
        return to_device(rows.bounds[rows.sampled], device) + position - first[to_device(rows.sampled, device)]


class DeviceProposer(Protocol):
    """Sees each step, in their order; keeps what it knows of a token at the token's place in the cache, so that blocks can be
    shared, copied and lost without its knowledge."""

    def propose(self, step: Verified, count: int) -> None:
        """Writes ``count`` drafts into ``RequestRows.tokens``, behind the newest token of each row that sampled; with 0, only takes
        in the step."""

    def copy_blocks(self, group: int, source: torch.Tensor, destination: torch.Tensor) -> None:
        """Copies what it keeps of tokens in blocks of a KV group, int64 [n] each."""

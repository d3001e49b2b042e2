"""A smaller model with the same tokens guesses what the model will say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...models.protocol import Model
from ...plan import BoundKernel
from ..batches import Batches
from ..step_rows import StepRows
from .proposer import Verified

Draw = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [R, V], seats int32 [R], positions int64 [R]) -> tokens int64 [R]."""


class DraftModel:
    """Reads, in one pass, every token that the model read in the step and the newest one; then one pass per further draft.

    Where all drafts were right, the last of them is in the model's cache but not in the draft's: so the draft reads the whole row
    after the model did, and needs no account of what it has read.

    group  the KV group whose blocks hold what it keeps
    """

    def __init__(self, model: Model, batches: Batches, group: int, copy_blocks: BoundKernel, draw: Draw) -> None:
        self._model, self._batches, self._group, self._copy, self._draw = model, batches, group, copy_blocks, draw
        self.max_model_len = model.max_model_len

    def propose(self, step: Verified, count: int) -> None:
        """As DeviceProposer has it."""
        rows, tokens = step.rows, self._batches.rows.tokens
        if not count or not len(rows.sampled):
            self._forward(rows, step.first)
            return
        newest = np.minimum(rows.num_logits, 1)
        rows = StepRows.of(rows.seats, rows.counts + newest, rows.first, newest)
        hidden = self._forward(rows, step.first)
        first = torch.from_numpy(rows.first) if step.first is None else step.first
        sampled = torch.from_numpy(rows.sampled).to(hidden.device)
        at = torch.from_numpy(rows.bounds[rows.sampled]).to(hidden.device) + step.newest - first.to(hidden.device)[sampled]
        hidden, seats = hidden[at], step.seats.int()
        for nth in range(count):
            position = step.newest + nth + 1
            tokens[step.seats, position] = self._draw(self._model.logits(hidden), seats, position)
            if nth + 1 < count:
                ones = np.ones_like(step.bounds)
                own = StepRows.of(rows.seats[rows.sampled], ones, step.bounds + nth + 1, ones)
                hidden = self._forward(own, position)

    def copy_blocks(self, group: int, source: torch.Tensor, destination: torch.Tensor) -> None:
        """As DeviceProposer has it."""
        if group == self._group:
            for kv in self._batches.caches:
                self._copy(kv, source, destination)

    def _forward(self, rows: StepRows, first: torch.Tensor | None) -> torch.Tensor:
        """Hidden states [T, H]; those beyond the draft's longest sequence mean nothing."""
        batch, _ = self._batches.build(rows, first)
        if int(rows.lengths.max()) > self.max_model_len:
            batch.positions = batch.positions.clamp_max(self.max_model_len - 1)
        self._model.begin_step(batch)
        return self._model.forward(batch)

"""A smaller model with the same tokens guesses what the model will say."""

from __future__ import annotations

import numpy as np
import torch

from ...models.protocol import Model
from ..step_rows import StepRows
from .cache import DraftCache
from .proposer import Draw, Verified


class DraftModel:
    """Reads, in one pass, every token that the model read in the step and the newest one; then one pass per further draft.

    Where all drafts were right, the last of them is in the model's cache but not in the draft's: so the draft reads the whole row
    after the model did, and needs no account of what it has read.
    """

    def __init__(self, model: Model, cache: DraftCache, draw: Draw) -> None:
        self._model, self._batches, self._draw, self.copy_blocks = model, cache.batches, draw, cache.copy_blocks
        self._max_model_len = model.max_model_len

    def propose(self, step: Verified, count: int) -> None:
        """As DeviceProposer has it."""
        rows, tokens = step.rows, self._batches.rows.tokens
        if not count or not len(rows.sampled):
            self._forward(rows, step.first)
            return
        newest = np.minimum(rows.num_logits, 1)
        rows = StepRows.of(rows.seats, rows.counts + newest, rows.first, newest)
        hidden, seats = self._forward(rows, step.first)[step.flat_index(rows, step.newest)], step.seats.int()
        for nth in range(count):
            position = step.newest + nth + 1
            tokens[step.seats, position] = self._draw(self._model.logits(hidden), seats, position)
            if nth + 1 < count:
                ones = np.ones_like(step.bounds)
                own = StepRows.of(rows.seats[rows.sampled], ones, step.bounds + nth + 1, ones)
                hidden = self._forward(own, position)

    def _forward(self, rows: StepRows, first: torch.Tensor | None) -> torch.Tensor:
        """Hidden states [T, H]; those beyond the draft's longest sequence mean nothing."""
        batch, _ = self._batches.build(rows, first)
        batch.positions = batch.positions.clamp_max(self._max_model_len - 1)
        self._model.begin_step(batch)
        return self._model.forward(batch)

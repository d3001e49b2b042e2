"""Heads over the model's own states: EAGLE and multi-token prediction chain their drafts, those of Medusa are independent."""

from __future__ import annotations

import numpy as np
import torch

from ...models.drafts.head import DraftHead
from ...models.drafts.medusa import Medusa
from ..step_rows import StepRows
from .cache import DraftCache
from .proposer import Draw, Verified


class ChainedHead:
    """Reads what the model read, one token ahead: at each slot the state that the model had there and the token after it, which is
    known by then. One pass more per further draft, from the head's own state.

    The last slot of a block depends on the first token of the next one: see ``Drafter.reads_ahead``.

    width  of the model's final state, which stands first in the hidden states; those before ``aux_layers`` follow
    """

    def __init__(self, head: DraftHead, width: int, vocab_size: int, cache: DraftCache, draw: Draw) -> None:
        self._head, self._width, self._vocab_size, self._draw = head, width, vocab_size, draw
        self._batches, self.copy_blocks = cache.batches, cache.copy_blocks
        self._target_ids = None if head.target_ids is None else head.target_ids.to(cache.batches.rows.device)

    def propose(self, step: Verified, count: int) -> None:
        """As DeviceProposer has it."""
        rows, tokens = step.rows, self._batches.rows.tokens
        batch, (seats,) = self._batches.build(rows, step.first, (np.repeat(rows.seats, rows.counts),))
        self._head.begin_step(batch)
        hidden, following = step.hidden[:, : self._width].contiguous(), tokens[seats, batch.positions + 1]
        aux = step.hidden[:, self._width :].contiguous() if self._head.aux_layers else None
        positions = batch.positions.clamp_max(self._head.max_model_len - 1)
        states = self._head.forward(following, positions, hidden, aux, batch)
        if not count or not len(rows.sampled):
            return
        state, own_seats = states[step.flat_index(rows, step.newest - 1)], step.seats.int()
        for nth in range(count):
            position = step.newest + nth + 1
            logits = over_all_tokens(self._head.logits(state), self._target_ids, self._vocab_size)
            tokens[step.seats, position] = drafts = self._draw(logits, own_seats, position)
            if nth + 1 < count:
                ones = np.ones_like(step.bounds)
                batch, _ = self._batches.build(
                    StepRows.of(rows.seats[rows.sampled], ones, step.bounds + nth, ones), step.newest + nth
                )
                self._head.begin_step(batch)
                positions = batch.positions.clamp_max(self._head.max_model_len - 1)
                state = self._head.forward(drafts, positions, state, None, batch)


class MedusaHeads:
    """Draft all tokens at once, from the state at the last right one; keep nothing."""

    def __init__(self, heads: Medusa, vocab_size: int, tokens: torch.Tensor, draw: Draw) -> None:
        """tokens: those of ``RequestRows``."""
        self._heads, self._vocab_size, self._tokens, self._draw = heads, vocab_size, tokens, draw
        self._target_ids = None if heads.target_ids is None else heads.target_ids.to(tokens.device)

    def propose(self, step: Verified, count: int) -> None:
        """As DeviceProposer has it."""
        if not count or not len(step.rows.sampled):
            return
        of_heads = self._heads.draft_logits(step.hidden[step.flat_index(step.rows, step.newest - 1)], count)
        for nth in range(count):
            position = step.newest + nth + 1
            logits = over_all_tokens(of_heads[:, nth].contiguous(), self._target_ids, self._vocab_size)
            self._tokens[step.seats, position] = self._draw(logits, step.seats.int(), position)

    def copy_blocks(self, group: int, source: torch.Tensor, destination: torch.Tensor) -> None:
        """There is nothing to copy."""


def over_all_tokens(logits: torch.Tensor, target_ids: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """Logits [R, draft vocabulary] -> [R, vocab_size], -inf for what the head never drafts. target_ids int64: the model's tokens
    for the head's; None: they are the same."""
    if target_ids is None:
        return logits
    whole = logits.new_full((len(logits), vocab_size), -torch.inf)
    whole[:, target_ids] = logits
    return whole

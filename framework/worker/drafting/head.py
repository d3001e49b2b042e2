"""Heads over the model's own states: EAGLE and multi-token prediction chain their drafts, those of Medusa are independent."""

from __future__ import annotations

import torch

from ...models.batch import ForwardBatch
from ...models.decoder import Decoder
from ...models.drafts.head import DraftHead
from ...models.drafts.medusa import Medusa
from ..decode_graphs import Recorder
from .proposer import DrawDrafts, Verified


class ChainedHead:
    """As Guesser has it. At each slot it reads the state that the model had there and the token after it, which is known by then,
    and goes on from its own states. The last slot of a block depends on the first token of the next one: see
    ``Drafter.reads_ahead``."""

    ahead = 1

    def __init__(self, head: DraftHead, target: Decoder, device: torch.device) -> None:
        self._head, self._vocab_size, self._width = head, target.vocab_size, target.hidden_size
        self.input_width, self.width = target.hidden_size * (1 + len(head.aux_layers)), head.hidden_size
        self.dtype, self.max_model_len, self.begin_step = head.dtype, head.max_model_len, head.begin_step
        self._target_ids = None if head.target_ids is None else head.target_ids.to(device)

    def follow(self, batch: ForwardBatch, hidden: torch.Tensor) -> torch.Tensor:
        """As Guesser has it. The model's final state stands first in ``hidden``; those before ``aux_layers`` follow."""
        aux = hidden[:, self._width :].contiguous() if self._head.aux_layers else None
        return self._forward(batch, hidden[:, : self._width].contiguous(), aux)

    def extend(self, batch: ForwardBatch, states: torch.Tensor) -> torch.Tensor:
        """As Guesser has it."""
        return self._forward(batch, states, None)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """As Guesser has it."""
        return over_all_tokens(self._head.logits(states), self._target_ids, self._vocab_size)

    def _forward(self, batch: ForwardBatch, hidden: torch.Tensor, aux: torch.Tensor | None) -> torch.Tensor:
        return self._head.forward(batch.token_ids, batch.positions.clamp_max(self.max_model_len - 1), hidden, aux, batch)


class MedusaHeads:
    """Draft all tokens at once, from the state at the last right one; keep nothing."""

    def __init__(self, heads: Medusa, vocab_size: int, tokens: torch.Tensor, draw: DrawDrafts) -> None:
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

    def record(self, recorder: Recorder, query_lens: list[int]) -> None:
        """One pass over all heads is not worth a recording."""


def over_all_tokens(logits: torch.Tensor, target_ids: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """Logits [R, draft vocabulary] -> [R, vocab_size], -inf for what the head never drafts. target_ids int64: the model's tokens
    for the head's; None: they are the same."""
    if target_ids is None:
        return logits
    whole = logits.new_full((len(logits), vocab_size), -torch.inf)
    whole[:, target_ids] = logits
    return whole

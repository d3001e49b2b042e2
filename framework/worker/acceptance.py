"""Which drafts stand, and what follows them: one rule per name of ``speculative_config.rejection_sample_method``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from ..plan import STREAM_ACCEPT, KernelPlan, row_uniform
from ..speculation.config import SpeculativeConfig
from .drafting.draws import DraftProbs, DrawTokens
from .seat_params import SeatParams
from .step_rows import DraftRows, SampleRows


class AcceptanceRule(Protocol):
    """One of ``RULES``, of an engine."""

    def __call__(
        self, logits: torch.Tensor, rows: SampleRows, drafts: DraftRows, token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From final logits float [R', V] to tokens int32 [R'] and how many drafts stand, int64 [R]: a row's tokens that count are
        so many and one more. token_ids int64 [S, L], with drafts where the tokens that they guess belong."""


@dataclass(frozen=True)
class Target:
    """What rules are made from: how tokens are drawn without drafts, the parameters per seat, and the distributions of drafts that
    are not certain."""

    plan: KernelPlan
    draw: DrawTokens
    seats: SeatParams
    vocab_size: int
    draft_probs: DraftProbs | None


class Match:
    """A draft stands if it is the token that its row draws anyway, and all before it stand. So tokens do not depend on drafts, at
    any temperature."""

    def __init__(self, target: Target, config: SpeculativeConfig) -> None:
        self._draw = target.draw

    def __call__(
        self, logits: torch.Tensor, rows: SampleRows, drafts: DraftRows, token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As AcceptanceRule has it."""
        tokens = self._draw(logits, rows.row_to_seat, rows.position)
        right = tokens == _checked(rows, token_ids)
        return tokens, (right[drafts.grid] & drafts.is_draft).cumprod(1).sum(1)


class Standard:
    """Rejection sampling: tokens are distributed as without drafts, but they are others."""

    def __init__(self, target: Target, config: SpeculativeConfig) -> None:
        facts = {"vocab_size": target.vocab_size}
        self._filter = target.plan.bind("filter_logits", facts=facts)
        self._verify = target.plan.bind("verify_draft", facts=facts)
        self._seats, self._draft_probs = target.seats, target.draft_probs

    def __call__(
        self, logits: torch.Tensor, rows: SampleRows, drafts: DraftRows, token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As AcceptanceRule has it."""
        seats, position = self._seats, rows.position
        if seats.is_filtered[rows.seats].any():
            logits = self._filter(logits, rows.row_to_seat, *seats.filters)
        is_draft = drafts.nth < drafts.num_drafts[drafts.row_of]
        ids = torch.where(is_draft, _checked(rows, token_ids), -1).int()
        probs = None
        if self._draft_probs is not None and not rows.drafts_from_host:
            probs = self._draft_probs.of(rows.row_to_seat, position)
        bounds = torch.nn.functional.pad((drafts.num_drafts + 1).cumsum(0), (1, 0)).int()
        own = rows.row_to_seat[drafts.grid[:, 0]]
        tokens, accepted = self._verify(logits, ids, probs, bounds, own, seats.temperature, seats.seed, position)
        return tokens, accepted.long()


class Synthetic:
    """Drafts stand at random, by given rates, whatever the model says of them; the token behind them is drawn as without drafts.
    What comes out means nothing: it is for measuring speed."""

    def __init__(self, target: Target, config: SpeculativeConfig) -> None:
        self._draw, self._seats = target.draw, target.seats
        self._rates = torch.tensor(config.acceptance_rates(), device=target.seats.seed.device)

    def __call__(
        self, logits: torch.Tensor, rows: SampleRows, drafts: DraftRows, token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As AcceptanceRule has it. A rate is how probable it is that a draft and all before it stand, so that one number of the
        request's seed and position decides of all."""
        first = drafts.grid[:, 0]
        seed, position = self._seats.seed[rows.row_to_seat[first].long()], rows.position[first]
        u = row_uniform(seed, position, STREAM_ACCEPT, torch.zeros_like(position))
        accepted = torch.minimum((u[:, None] < self._rates).sum(1), drafts.num_drafts)
        tokens = self._draw(logits, rows.row_to_seat, rows.position)
        return torch.where(drafts.nth < accepted[drafts.row_of], _checked(rows, token_ids).int(), tokens), accepted


RULES: Final[dict[str, Callable[[Target, SpeculativeConfig], AcceptanceRule]]] = {
    "match": Match,
    "standard": Standard,
    "synthetic": Synthetic,
}


def _checked(rows: SampleRows, token_ids: torch.Tensor) -> torch.Tensor:
    """The drafts int64 [R'] that logit rows check; anything in a row's last."""
    return token_ids[rows.row_to_seat.long(), rows.position]

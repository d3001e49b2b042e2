"""How drafts are drawn from what a proposer says: one way per name of ``speculative_config.draft_sample_method``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...plan import STREAM_DRAFT, KernelPlan
from ...speculation.config import SpeculativeConfig
from ..seat_params import SeatParams

DrawTokens = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [R, V], seats int32 [R], positions int64 [R]) -> tokens int32 [R]; -1 where a row has none."""


class DraftProbs:
    """What drafts on the device were drawn from, until the next step checks them: float32 [seats, k, V]. The draft at position p is
    in place p % k, because a row has at most k drafts, one behind the other."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self._kept = torch.zeros(shape, device=device)

    def keep(self, row_to_seat: torch.Tensor, position: torch.Tensor, probs: torch.Tensor) -> None:
        """Of drafts int32 [R] at int64 [R]: f32 [R, V]."""
        self._kept[row_to_seat.long(), position % self._kept.shape[1]] = probs

    def of(self, row_to_seat: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """f32 [R, V]; anything where there is no draft."""
        return self._kept[row_to_seat.long(), position % self._kept.shape[1]]


class ProbabilisticDraws:
    """By noise of their own, with the request's temperature and filters."""

    def __init__(self, plan: KernelPlan, seats: SeatParams, vocab_size: int, kept: DraftProbs | None) -> None:
        facts = {"vocab_size": vocab_size}
        self._filter = plan.bind("filter_logits", facts=facts)
        self._sample = plan.bind("sample", params={"stream": STREAM_DRAFT}, facts=facts)
        self._seats, self._kept = seats, kept
        self._no_filters = torch.zeros_like(seats.top_k), torch.ones_like(seats.top_p), torch.zeros_like(seats.min_p)

    def __call__(self, logits: torch.Tensor, row_to_seat: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """As DrawTokens has it."""
        seats = self._seats
        if seats.is_filtered.any():
            logits = self._filter(logits, row_to_seat, *seats.filters)
        tokens = self._sample(logits, row_to_seat, seats.temperature, *self._no_filters, seats.seed, position)
        if self._kept is not None:
            heat = seats.temperature[row_to_seat.long()]
            probs = torch.softmax(logits.float() / torch.where(heat == 0, 1.0, heat)[:, None], dim=-1)
            none = tokens < 0  # their draft is token 0, for certain
            probs.masked_fill_(none[:, None], 0.0)
            probs[:, 0] += none
            self._kept.keep(row_to_seat, position, probs)
        return tokens


def draft_probs_shape(config: SpeculativeConfig, num_seats: int, vocab_size: int) -> tuple[int, int, int] | None:
    """(seats, k, V) of DraftProbs; None where no rule asks for them: drafts of the host and the most probable ones are certain."""
    if config.acceptance_rule != "standard" or not _is_probabilistic(config):
        return None
    return num_seats, config.num_speculative_tokens, vocab_size


def draft_draw(
    config: SpeculativeConfig, plan: KernelPlan, seats: SeatParams, vocab_size: int, kept: DraftProbs | None, coupled: DrawTokens
) -> DrawTokens:
    """As ``config`` has it. coupled: with the noise of the model's own tokens."""
    if _is_probabilistic(config):
        return ProbabilisticDraws(plan, seats, vocab_size, kept)
    return _most_probable if config.draft_sampling == "greedy" else coupled


def _is_probabilistic(config: SpeculativeConfig) -> bool:
    return config.place == "device" and config.draft_sampling == "probabilistic"


def _most_probable(logits: torch.Tensor, row_to_seat: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1).int()

"""From logits to tokens and log-probabilities: per-request sampling state in permanent rows, and the bound kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..engine.step import NewRequest, TokenLogprobs
from ..plan import KernelPlan
from ..speculation.config import SpeculativeConfig
from .acceptance import RULES, Target
from .drafting.draws import DraftProbs, draft_draw, draft_probs_shape
from .penalties import Penalties
from .seat_params import SeatParams
from .step_rows import SampleRows
from .transfer import HostCopy, to_device

_PROMPT_LOGPROB_ROWS = 256
_NONE = -2
"""Number of log-probabilities of who wants none; -1 is the whole vocabulary."""


class PendingLogprobs:
    """Log-probabilities on their way to the host.

    rows    which rows they belong to; counts: how many top tokens each of them wants
    parts   (ids, logprob, rank, top logprobs, top ids), each for some of the rows, in order
    """

    def __init__(self, rows: np.ndarray, counts: np.ndarray, parts: list[tuple[torch.Tensor, ...]]) -> None:
        self._rows, self._counts = rows.tolist(), counts.tolist()
        self._copies = [HostCopy(*part) for part in parts]

    def by_row(self) -> dict[int, TokenLogprobs]:
        """Waits for them."""
        entries = (entry for copy in self._copies for entry in zip(*copy.lists()))
        return {
            row: TokenLogprobs(token, logprob, rank, top_ids[:count], top_logprobs[:count])
            for row, count, (token, logprob, rank, top_logprobs, top_ids) in zip(self._rows, self._counts, entries)
        }


@dataclass(frozen=True)
class Sampled:
    """What a step chose: tokens int32 [R'] on the device; accepted int64 [R], how many drafts were right of each row that yields
    tokens, None without drafts; log-probabilities of logit rows that asked; drafts int64 [R, n] of what follows, where the
    host is to know; logits f32 [R', V] that they were drawn from, before filters. Where the host is to know: confidences f32 [R'],
    log-probabilities of the tokens, best int64 [R'], the most probable token of the logits, and entropies f32 [R'] of these."""

    tokens: torch.Tensor
    accepted: torch.Tensor | None = None
    logprobs: PendingLogprobs | None = None
    drafts: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    confidences: torch.Tensor | None = None
    best: torch.Tensor | None = None
    entropies: torch.Tensor | None = None


class Sampler:
    """Permanent rows of sampling parameters, and the step from logits to tokens and log-probabilities."""

    def __init__(
        self,
        plan: KernelPlan,
        num_seats: int,
        vocab_size: int,
        device: torch.device,
        speculative: SpeculativeConfig | None = None,
        *,
        tells_all: bool = False,
        tells_best: bool = False,
    ) -> None:
        """tells_all: ``Sampled.confidences``, whoever asked for log-probabilities. tells_best: ``best`` and the logits, once
        penalties are in, and log-probabilities are of that token."""
        speculative = speculative or SpeculativeConfig()
        self._penalties = Penalties(plan, num_seats, vocab_size, device)
        self._gather_logprobs = plan.bind("gather_logprobs", facts={"vocab_size": vocab_size})
        self.vocab_size, self.device = vocab_size, device
        self._seats = SeatParams(num_seats, device)
        sample = plan.bind("sample", params={"stream": 0}, facts={"vocab_size": vocab_size})
        self._draw = partial(self._seats.draw, sample)  # not a method: rules hold it, and a cycle would hold tensors
        shape = draft_probs_shape(speculative, num_seats, vocab_size)
        draft_probs = None if shape is None else DraftProbs(shape, device)
        target = Target(plan, self._draw, self._seats, vocab_size, draft_probs)
        self._accept = RULES[speculative.acceptance_rule](target, speculative)
        self._draw_draft = draft_draw(speculative, plan, self._seats, vocab_size, draft_probs, self._draw)
        self._tells_all, self._tells_best = tells_all, tells_best
        self._num_logprobs = np.full(num_seats, _NONE, dtype=np.int64)
        self._num_prompt_logprobs = np.full(num_seats, _NONE, dtype=np.int64)

    def add(self, request: NewRequest) -> None:
        """Fills the request's row."""
        params, seat = request.sampling, request.seat
        self._seats.add(request)
        self._num_logprobs[seat] = _NONE if params.logprobs is None else params.logprobs
        self._num_prompt_logprobs[seat] = _NONE if params.prompt_logprobs is None else params.prompt_logprobs
        self._penalties.add(request)

    def sample(self, logits: torch.Tensor, rows: SampleRows, token_ids: torch.Tensor) -> Sampled:
        """From logits float [R', V], of which penalties may change those that are float32.

        token_ids int64 [S, L]: every token of every seat, and the drafts behind them, for what depends on the tokens before."""
        wanted = self._num_logprobs[rows.seats]
        wants = np.flatnonzero(wanted > _NONE)
        chosen = to_device(wants, self.device) if len(wants) else None
        raw = logits.clone() if self._tells_all else logits[chosen] if chosen is not None and not self._tells_best else None
        penalized = self._penalties.apply(logits, rows, token_ids)
        final = logits if penalized is None else penalized
        if rows.heat is not None:
            final = final / rows.heat[:, None]
        accepted = None
        if rows.drafts is None:
            tokens = self._draw(final, rows.row_to_seat, rows.position if rows.noise is None else rows.noise)
        else:
            tokens, accepted = self._accept(final, rows, rows.drafts, token_ids)
        self._penalties.count(rows, tokens, accepted)
        counts = self._full_counts(wanted[wants])
        if self._tells_all:
            assert raw is not None
            gathered = self._gather(raw, tokens, counts)
            told = None if chosen is None else PendingLogprobs(wants, counts, [tuple(part[chosen] for part in gathered)])
            return Sampled(tokens, logprobs=told, confidences=gathered[1])
        if self._tells_best:
            best = final.argmax(-1)
            told = None if chosen is None else PendingLogprobs(wants, counts, [self._gather(final[chosen], best[chosen], counts)])
            return Sampled(tokens, logprobs=told, logits=final, best=best)
        if raw is None or chosen is None:
            return Sampled(tokens, accepted)
        return Sampled(tokens, accepted, PendingLogprobs(wants, counts, [self._gather(raw, tokens[chosen], counts)]))

    def draw_drafts(self, logits: torch.Tensor, row_to_seat: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Drafts of the requests in these seats at ``position`` int64 [R], from what a proposer says, ``logits`` [R, V]. The way is
        ``draft_sample_method``: with the noise of the model's own tokens, so that who is close to the model draws what it does, or
        another. Without penalties. int64 [R]; 0 for a row that has none."""
        return self._draw_draft(logits, row_to_seat, position).long().clamp_min(0)

    def prompt_logprobs(
        self, seat: int, project: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor
    ) -> PendingLogprobs:
        """Log-probabilities of the prompt tokens ``targets`` int64 [n], given the hidden states [n, H] of the tokens before them,
        which ``project`` turns into logits, some rows at a time."""
        counts = self._full_counts(np.full(len(targets), self._num_prompt_logprobs[seat]))
        parts = [
            self._gather(project(hidden[part]), targets[part], counts[part])
            for part in (slice(i, i + _PROMPT_LOGPROB_ROWS) for i in range(0, len(targets), _PROMPT_LOGPROB_ROWS))
        ]
        return PendingLogprobs(np.arange(len(targets)), counts, parts)

    def wants_prompt_logprobs(self, seat: int) -> bool:
        return bool(self._num_prompt_logprobs[seat] > _NONE)

    def _full_counts(self, counts: np.ndarray) -> np.ndarray:
        return np.where(counts == -1, self.vocab_size, counts)

    def _gather(self, logits: torch.Tensor, ids: torch.Tensor, counts: np.ndarray) -> tuple[torch.Tensor, ...]:
        return ids, *self._gather_logprobs(logits, ids.long(), int(counts.max(initial=0)))

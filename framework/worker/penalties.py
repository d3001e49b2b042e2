"""What changes logits before a token is drawn: masks of allowed tokens, bad words, bias, and penalties on what came before."""

from __future__ import annotations

import numpy as np
import torch

from ..bitmask import num_words, set_bits
from ..engine.step import NewRequest
from ..plan import KernelPlan
from ..sampling_params import SamplingParams
from .step_rows import DraftRows, SampleRows
from .transfer import to_device

NEVER = np.iinfo(np.int64).max


class Penalties:
    """The state of ``apply_penalties`` per seat, and the masks that it takes per step.

    Tensors that cost a vocabulary per seat (counts, masks) are allocated when the first request needs them.
    """

    def __init__(self, plan: KernelPlan, num_seats: int, vocab_size: int, device: torch.device) -> None:
        self._apply_penalties = plan.bind("apply_penalties", facts={"vocab_size": vocab_size})
        self._num_seats, self._vocab_size, self._device = num_seats, vocab_size, device
        self._params: list[SamplingParams | None] = [None] * num_seats
        self._num_prompt_tokens = np.zeros(num_seats, dtype=np.int64)
        self._min_tokens = np.zeros(num_seats, dtype=np.int64)
        self._penalized = np.zeros(num_seats, dtype=bool)
        self._counted = np.zeros(num_seats, dtype=bool)
        self._masked = np.zeros(num_seats, dtype=bool)
        self._banned = np.zeros(num_seats, dtype=bool)
        self._rows: _PenaltyRows | None = None

    def add(self, request: NewRequest) -> None:
        """Fills the request's row."""
        params, seat = request.sampling, request.seat
        self._params[seat] = params
        self._num_prompt_tokens[seat] = request.num_prompt_tokens
        structured = params.structured_outputs is not None  # then the masks that come with a step know of min_tokens
        min_tokens = 0 if structured else params.min_tokens
        self._min_tokens[seat] = min_tokens
        words = params.bad_words_token_ids or ()
        self._masked[seat] = bool(params.allowed_token_ids) or any(len(word) == 1 for word in words)
        self._banned[seat] = bool(min_tokens or params.first_banned_token_ids) or any(len(word) > 1 for word in words)
        self._counted[seat] = bool(params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty)
        self._penalized[seat] = bool(
            self._counted[seat] or self._masked[seat] or self._banned[seat] or structured or params.logit_bias
        )
        if self._penalized[seat]:
            if self._rows is None:
                self._rows = _PenaltyRows(self._num_seats, self._vocab_size, self._device)
            self._rows.add(request)

    def apply(self, logits: torch.Tensor, rows: SampleRows, token_ids: torch.Tensor) -> torch.Tensor | None:
        """Changed logits f32 [R, V], in the memory of float32 ``logits``; None if no row asks for it. token_ids as in
        ``Sampler.sample``."""
        penalized = self._penalized[rows.seats]
        if self._rows is None or not penalized.any():
            return None
        logits, mask = logits.float(), None
        masked = np.flatnonzero(self._masked[rows.seats]).tolist()
        if masked or rows.masks is not None:
            mask = self._bitmask(rows, masked)
        if banned := np.flatnonzero(self._banned[rows.seats]).tolist():
            self._ban(logits, rows, banned, token_ids)
        seats = rows.row_to_seat
        if not penalized.all():
            seats = torch.where(to_device(penalized, self._device), seats, -1)
        drafts = None
        if rows.drafts is not None and self._counted[rows.seats].any():
            drafts = _drafts_before(rows, rows.drafts, token_ids)
        self._apply_penalties(logits, seats, mask, *self._rows.tensors(), drafts)
        return logits

    def count(self, rows: SampleRows, tokens: torch.Tensor, accepted: torch.Tensor | None) -> None:
        """Adds a step's tokens int32 [R'] to the counts of their seats, if any of them has a penalty on what came before. accepted
        int64 [R]: of drafts, of which those behind the first wrong one do not count."""
        if self._rows is not None and self._counted[rows.seats].any():
            if rows.drafts is not None and accepted is not None:
                tokens = rows.drafts.accepted_only(tokens, accepted)
            self._rows.count(rows.row_to_seat, tokens)

    def _bitmask(self, rows: SampleRows, masked: list[int]) -> torch.Tensor:
        """Allowed tokens per row, int32 [R', ceil(V/32)]: what the step's masks say, and in the rows ``masked`` also allowed ids
        and bad words of one token."""
        if rows.masks is not None and not masked and len(rows.masks.rows) == len(rows.seats):
            return to_device(rows.masks.words, self._device)
        mask = np.full((len(rows.seats), num_words(self._vocab_size)), -1, dtype=np.int32)
        if rows.masks is not None:
            mask[rows.masks.rows] = rows.masks.words
        for row in masked:
            seat = rows.seats[row]
            params = self._params[seat]
            assert params is not None
            if params.allowed_token_ids:
                allowed = np.zeros_like(mask[row])
                set_bits(allowed, params.allowed_token_ids, True)
                mask[row] &= allowed
            set_bits(mask[row], [word[0] for word in params.bad_words_token_ids or () if len(word) == 1], False)
        return to_device(mask, self._device)

    def _ban(self, logits: torch.Tensor, rows: SampleRows, banned: list[int], token_ids: torch.Tensor) -> None:
        """Makes impossible, in the rows ``banned``, stop tokens before min_tokens, what must not come first, and the last token of
        bad words that the tokens before it begin. All depend on the row's true position, and on last tokens that may still be on
        their way: known on the device only. An entry is a row, a token, the first position at which it is free
        again, and where a word may have begun."""
        entries: list[tuple[int, int, int, int, list[int]]] = []
        for row in banned:
            seat, position = int(rows.seats[row]), int(rows.positions[row])
            params, start = self._params[seat], int(self._num_prompt_tokens[seat])
            assert params is not None
            if position - rows.ahead < (free := start + int(self._min_tokens[seat])):
                entries += [(row, token, free, 0, []) for token in params.all_stop_token_ids]
            if position - rows.ahead <= start:
                entries += [(row, token, start + 1, 0, []) for token in params.first_banned_token_ids]
            for word in params.bad_words_token_ids or ():
                if len(word) > 1:  # only what was generated counts; one that began in the prompt is the user's own
                    entries.append((row, word[-1], NEVER, start, word[:-1]))
        if not entries:
            return
        longest = max(len(before) for *_, before in entries)
        table = np.full((len(entries), 5 + longest), -1, dtype=np.int64)
        for line, (row, token, free, start, before) in zip(table, entries):
            line[:5] = row, token, free, start, len(before)
            line[5 : 5 + len(before)] = before
        found = to_device(table, self._device)
        (rows_of, last, free_at, start_at, lengths), words = found[:, :5].unbind(1), found[:, 5:]
        positions = rows.position[rows_of]
        places = (positions - lengths)[:, None] + torch.arange(longest, device=self._device)
        here = token_ids[rows.row_to_seat[rows_of].long()[:, None], places.clamp_(0, token_ids.shape[1] - 1)]
        applies = ((here == words) | (words < 0)).all(1) & (positions < free_at) & (positions - lengths >= start_at)
        logits.index_put_((rows_of, last), torch.where(applies, -torch.inf, 0.0), accumulate=True)  # a token may end two words


def _drafts_before(rows: SampleRows, drafts: DraftRows, token_ids: torch.Tensor) -> torch.Tensor:
    """int32 [R', n]: the drafts before each logit row, -1 where it has fewer."""
    before = 1 + torch.arange(drafts.grid.shape[1] - 1, device=token_ids.device)
    places = (rows.position[:, None] - before).clamp_(min=0)
    tokens = token_ids[rows.row_to_seat.long()[:, None], places]
    return torch.where(before <= drafts.nth[:, None], tokens, -1).int()


class _PenaltyRows:
    """The tensors of ``apply_penalties``, one row per seat."""

    def __init__(self, num_seats: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self.prompt_mask = torch.zeros(num_seats, num_words(vocab_size), dtype=torch.int32, device=device)
        self.output_counts = torch.zeros(num_seats, vocab_size, dtype=torch.int32, device=device)
        self.repetition = torch.ones(num_seats, device=device)
        self.frequency = torch.zeros(num_seats, device=device)
        self.presence = torch.zeros(num_seats, device=device)
        self.bias_ids = torch.full((num_seats, 1), -1, dtype=torch.int32, device=device)
        self.bias_values = torch.zeros(num_seats, 1, device=device)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """In the order of the op's arguments after the bitmask."""
        return (
            self.prompt_mask,
            self.output_counts,
            self.repetition,
            self.frequency,
            self.presence,
            self.bias_ids,
            self.bias_values,
        )

    def add(self, request: NewRequest) -> None:
        seat, params = request.seat, request.sampling
        prompt, output = request.token_ids[: request.num_prompt_tokens], request.token_ids[request.num_prompt_tokens :]
        mask = np.zeros(self.prompt_mask.shape[1], dtype=np.int32)
        set_bits(mask, [token for token in prompt if token < self._vocab_size], True)  # others have no logit to change
        self.prompt_mask[seat] = to_device(mask, self._device)
        counts = np.bincount(np.asarray(output, dtype=np.int64), minlength=self._vocab_size).astype(np.int32)
        self.output_counts[seat] = to_device(counts, self._device)
        self.repetition[seat] = params.repetition_penalty
        self.frequency[seat] = params.frequency_penalty
        self.presence[seat] = params.presence_penalty
        bias = params.logit_bias or {}
        if (missing := len(bias) - self.bias_ids.shape[1]) > 0:
            ids = torch.nn.functional.pad(self.bias_ids, (0, missing), value=-1)
            # Both or none: the second may find no memory, and they have to fit each other ever after.
            self.bias_ids, self.bias_values = ids, torch.nn.functional.pad(self.bias_values, (0, missing))
        self.bias_ids[seat] = -1
        self.bias_ids[seat, : len(bias)] = to_device(np.array(list(bias), dtype=np.int32), self._device)
        self.bias_values[seat, : len(bias)] = to_device(np.array(list(bias.values()), dtype=np.float32), self._device)

    def count(self, row_to_seat: torch.Tensor, tokens: torch.Tensor) -> None:
        """Adds a step's tokens to the counts; rows that failed (-1) count nothing."""
        index = (row_to_seat.long(), tokens.long().clamp_min(0))
        self.output_counts.index_put_(index, (tokens >= 0).int(), accumulate=True)

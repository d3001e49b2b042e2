"""From logits to tokens: per-request sampling state in permanent rows, and the three bound sampling kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..engine.step import NewRequest, TokenLogprobs
from ..plan import KernelPlan
from ..sampling_params import SamplingParams
from .transfer import HostCopy, to_device

_PROMPT_LOGPROB_ROWS = 256


@dataclass
class SampleRows:
    """The rows of a step that yield a token: seats and positions int64 [R] on the host, and the same on the device (row_to_seat
    int32, position int64). A position is the absolute index of the token to be sampled."""

    seats: np.ndarray
    positions: np.ndarray
    row_to_seat: torch.Tensor
    position: torch.Tensor


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


class Sampler:
    """Permanent rows of sampling parameters, and the step from logits to tokens and log-probabilities.

    Tensors that cost a vocabulary per seat (counts, masks) are allocated when the first request needs them.
    """

    def __init__(self, plan: KernelPlan, num_seats: int, vocab_size: int, device: torch.device) -> None:
        self._apply_penalties = plan.bind("apply_penalties", facts={"vocab_size": vocab_size})
        self._sample = plan.bind("sample", params={"stream": 0}, facts={"vocab_size": vocab_size})
        self._gather_logprobs = plan.bind("gather_logprobs", facts={"vocab_size": vocab_size})
        self.vocab_size, self.device, self._num_seats = vocab_size, device, num_seats
        self.temperature = torch.zeros(num_seats, device=device)
        self.top_k = torch.zeros(num_seats, dtype=torch.int32, device=device)
        self.top_p = torch.ones(num_seats, device=device)
        self.min_p = torch.zeros(num_seats, device=device)
        self.seed = torch.zeros(num_seats, dtype=torch.int64, device=device)
        self._params: list[SamplingParams | None] = [None] * num_seats
        self._penalized = np.zeros(num_seats, dtype=bool)
        self._masked = np.zeros(num_seats, dtype=bool)
        self._num_logprobs = np.full(num_seats, -2, dtype=np.int64)  # -2: none wanted, -1: the whole vocabulary
        self._num_prompt_tokens = np.zeros(num_seats, dtype=np.int64)
        self._penalties: _PenaltyRows | None = None

    def add(self, request: NewRequest) -> None:
        """Fills the request's row."""
        params, seat = request.sampling, request.seat
        assert params.seed is not None, "the engine gives every request a seed"
        self._params[seat] = params
        self._num_prompt_tokens[seat] = request.num_prompt_tokens
        self.temperature[seat] = params.temperature
        self.top_k[seat] = max(params.top_k, 0)
        self.top_p[seat] = params.top_p
        self.min_p[seat] = params.min_p
        self.seed[seat] = _signed64(params.seed)
        self._num_logprobs[seat] = -2 if params.logprobs is None else params.logprobs
        self._masked[seat] = bool(params.allowed_token_ids or params.min_tokens or params.bad_words_token_ids)
        self._penalized[seat] = bool(
            self._masked[seat]
            or params.logit_bias
            or params.repetition_penalty != 1
            or params.frequency_penalty
            or params.presence_penalty
        )
        if self._penalized[seat]:
            if self._penalties is None:
                self._penalties = _PenaltyRows(self._num_seats, self.vocab_size, self.device)
            self._penalties.add(request)

    def sample(
        self, logits: torch.Tensor, rows: SampleRows, token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, PendingLogprobs | None]:
        """Logits float [R, V] -> tokens int32 [R] on the device, and the log-probabilities of rows that asked.

        token_ids int64 [S, L]: every token of every seat, for what depends on the tokens before."""
        logits = logits.float()
        wanted = self._num_logprobs[rows.seats]
        wants = np.flatnonzero(wanted > -2)
        chosen = to_device(wants, self.device) if len(wants) else None
        raw = logits[chosen] if chosen is not None else None
        penalties = self._penalties if self._penalized[rows.seats].any() else None
        if penalties is not None:
            masked = self._masked[rows.seats].any()
            mask = self._bitmask(rows) if masked else None
            if masked:
                self._ban_words(logits, rows, token_ids)
            seats = torch.where(to_device(self._penalized[rows.seats], self.device), rows.row_to_seat, -1)
            self._apply_penalties(logits, seats, mask, *penalties.tensors())
        tokens = self._sample(
            logits, rows.row_to_seat, self.temperature, self.top_k, self.top_p, self.min_p, self.seed, rows.position
        )
        if penalties is not None:
            penalties.count(rows.row_to_seat, tokens)
        if raw is None or chosen is None:
            return tokens, None
        counts = self._full_counts(wanted[wants])
        return tokens, PendingLogprobs(wants, counts, [self._gather(raw, tokens[chosen], counts)])

    def prompt_logprobs(
        self, seat: int, project: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor
    ) -> PendingLogprobs:
        """Log-probabilities of the prompt tokens ``targets`` int64 [n], given the hidden states [n, H] of the tokens before them,
        which ``project`` turns into logits, some rows at a time."""
        params = self._params[seat]
        assert params is not None and params.prompt_logprobs is not None
        counts = self._full_counts(np.full(len(targets), params.prompt_logprobs))
        parts = [
            self._gather(project(hidden[part]).float(), targets[part], counts[part])
            for part in (slice(i, i + _PROMPT_LOGPROB_ROWS) for i in range(0, len(targets), _PROMPT_LOGPROB_ROWS))
        ]
        return PendingLogprobs(np.arange(len(targets)), counts, parts)

    def wants_prompt_logprobs(self, seat: int) -> bool:
        params = self._params[seat]
        return params is not None and params.prompt_logprobs is not None

    def _full_counts(self, counts: np.ndarray) -> np.ndarray:
        return np.where(counts == -1, self.vocab_size, counts)

    def _gather(self, logits: torch.Tensor, ids: torch.Tensor, counts: np.ndarray) -> tuple[torch.Tensor, ...]:
        return ids, *self._gather_logprobs(logits, ids.long(), int(counts.max(initial=0)))

    def _bitmask(self, rows: SampleRows) -> torch.Tensor:
        """Allowed tokens per row, int32 [R, ceil(V/32)]: allowed ids, stop tokens before min_tokens, and bad words of one token."""
        mask = np.full((len(rows.seats), -(-self.vocab_size // 32)), -1, dtype=np.int32)
        position = rows.positions.tolist()
        for row, seat in enumerate(rows.seats.tolist()):
            params = self._params[seat]
            assert params is not None
            if params.allowed_token_ids:
                mask[row] = 0
                _set_bits(mask[row], params.allowed_token_ids, True)
            if position[row] - self._num_prompt_tokens[seat] < params.min_tokens:
                _set_bits(mask[row], params.all_stop_token_ids, False)
            _set_bits(mask[row], [word[0] for word in params.bad_words_token_ids or () if len(word) == 1], False)
        return to_device(mask, self.device)

    def _ban_words(self, logits: torch.Tensor, rows: SampleRows, token_ids: torch.Tensor) -> None:
        """Makes the last token of a bad word impossible in rows that end with the tokens before it. Which do is known on the device
        only, where the last tokens may still be on their way."""
        words = []
        for row, (seat, position) in enumerate(zip(rows.seats.tolist(), rows.positions.tolist())):
            params = self._params[seat]
            assert params is not None
            for word in params.bad_words_token_ids or ():
                start = position - len(word) + 1
                # Only what was generated counts; a word that began in the prompt is the user's own.
                if len(word) > 1 and start >= self._num_prompt_tokens[seat]:
                    words.append((row, seat, start, word))
        if not words:
            return
        longest = max(len(word) for *_, word in words) - 1
        table = np.full((len(words), 4 + longest), -1, dtype=np.int64)
        for entry, (row, seat, start, word) in zip(table, words):
            entry[:4] = row, seat, start, word[-1]
            entry[4 : 3 + len(word)] = word[:-1]
        found = to_device(table, self.device)
        (rows_of, seats, starts, last), before = found[:, :4].unbind(1), found[:, 4:]
        places = starts[:, None] + torch.arange(longest, device=self.device)
        here = token_ids[seats[:, None], places.clamp_max_(token_ids.shape[1] - 1)]
        matches = ((here == before) | (before < 0)).all(1)
        logits.index_put_((rows_of, last), torch.where(matches, -torch.inf, 0.0), accumulate=True)  # a token may end two words


class _PenaltyRows:
    """The tensors of ``apply_penalties``, one row per seat."""

    def __init__(self, num_seats: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self.prompt_mask = torch.zeros(num_seats, -(-vocab_size // 32), dtype=torch.int32, device=device)
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
        _set_bits(mask, prompt, True)
        self.prompt_mask[seat] = to_device(mask, self._device)
        counts = np.bincount(np.asarray(output, dtype=np.int64), minlength=self._vocab_size).astype(np.int32)
        self.output_counts[seat] = to_device(counts, self._device)
        self.repetition[seat] = params.repetition_penalty
        self.frequency[seat] = params.frequency_penalty
        self.presence[seat] = params.presence_penalty
        bias = params.logit_bias or {}
        if (missing := len(bias) - self.bias_ids.shape[1]) > 0:
            self.bias_ids = torch.nn.functional.pad(self.bias_ids, (0, missing), value=-1)
            self.bias_values = torch.nn.functional.pad(self.bias_values, (0, missing))
        self.bias_ids[seat] = -1
        self.bias_ids[seat, : len(bias)] = to_device(np.array(list(bias), dtype=np.int32), self._device)
        self.bias_values[seat, : len(bias)] = to_device(np.array(list(bias.values()), dtype=np.float32), self._device)

    def count(self, row_to_seat: torch.Tensor, tokens: torch.Tensor) -> None:
        """Adds a step's tokens to the counts; rows that failed (-1) count nothing."""
        index = (row_to_seat.long(), tokens.long().clamp_min(0))
        self.output_counts.index_put_(index, (tokens >= 0).int(), accumulate=True)


def _set_bits(words: np.ndarray, ids: list[int], value: bool) -> None:
    """Sets or clears bits ids of a row of int32 words, in place."""
    index = np.asarray(ids, dtype=np.int64)
    flags = np.left_shift(np.uint32(1), (index % 32).astype(np.uint32), dtype=np.uint32)
    bits = words.view(np.uint32)
    if value:
        np.bitwise_or.at(bits, index // 32, flags)
    else:
        np.bitwise_and.at(bits, index // 32, ~flags)


def _signed64(seed: int) -> int:
    """The 64 bits of a seed as the int64 that holds them."""
    seed &= 2**64 - 1
    return seed - 2**64 if seed >= 2**63 else seed

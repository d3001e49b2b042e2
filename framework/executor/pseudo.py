"""Random-looking tokens for executors without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engine.step import NewRequest, StepInput, StepOutput


class PseudoTokens:
    """Applies steps to the least state that tokens need: seed and length per seat.

    lengths  int64 per seat: tokens that are computed, those of steps in flight included
    rates    per guess, how probable it is that it and all before it are right; None: any number of right guesses is as likely
    """

    def __init__(self, num_seats: int, vocab_size: int, rates: Sequence[float] | None = None) -> None:
        self._vocab_size, self._rates = vocab_size, rates
        self._seeds = np.zeros(num_seats, dtype=np.uint64)
        self.lengths = np.zeros(num_seats, dtype=np.int64)

    def apply(self, step: StepInput) -> StepOutput:
        """Samples for every row that wants a token."""
        self.admit(step.new)
        if not step.seats:  # of a scheduler that takes part in others' steps
            return StepOutput(step.step_id, [])
        seats = np.array(step.seats)
        return self.sample(step, seats, self.lengths[seats] + step.num_tokens)

    def admit(self, new: Sequence[NewRequest]) -> None:
        """Takes in the requests that are new in a step."""
        for request in new:
            assert request.sampling.seed is not None
            self._seeds[request.seat] = request.sampling.seed & (2**64 - 1)
            self.lengths[request.seat] = request.num_computed_tokens

    def sample(self, step: StepInput, seats: np.ndarray, contexts: np.ndarray) -> StepOutput:
        """The rest of ``apply``. seats int64 [R]: of the step; contexts int64 [R]: their lengths with all tokens of the step."""
        if max(step.num_logits) > 1:
            return self._sample_with_drafts(step, seats, contexts)
        self.lengths[seats] = contexts
        if not all(step.num_logits):
            rows = np.array(step.num_logits) > 0
            seats, contexts = seats[rows], contexts[rows]
        tokens = pseudo_tokens(self._seeds[seats], contexts.view(np.uint64), self._vocab_size)
        return StepOutput(step.step_id, tokens.tolist())

    def ahead(self, seats: np.ndarray, num_in_flight: int, count: int) -> np.ndarray:
        """uint64 [R, num_in_flight + count]: tokens of the last steps and of ``count`` more, if all of them decode a token of every
        row. Applies the latter."""
        positions = self.lengths[seats, None] + np.arange(1 - num_in_flight, count + 1)
        self.lengths[seats] += count
        return pseudo_tokens(self._seeds[seats, None], positions.view(np.uint64), self._vocab_size)

    def _sample_with_drafts(self, step: StepInput, seats: np.ndarray, contexts: np.ndarray) -> StepOutput:
        num_logits = np.array(step.num_logits)
        drafts = np.maximum(num_logits - 1, 0)
        known = contexts - drafts
        right = num_right_drafts(self._seeds[seats], known.view(np.uint64), drafts, self._rates)
        self.lengths[seats] = known + right
        rows = np.flatnonzero(num_logits)
        accepted = right[rows] + 1
        row_of_token = np.repeat(rows, accepted)
        nth = np.arange(len(row_of_token)) - np.repeat(np.cumsum(accepted) - accepted, accepted)
        tokens = pseudo_tokens(self._seeds[seats[row_of_token]], (known[row_of_token] + nth).view(np.uint64), self._vocab_size)
        return StepOutput(step.step_id, tokens.tolist(), right[rows].tolist())


def num_right_drafts(
    states: np.ndarray, positions: np.ndarray, num_drafts: np.ndarray, rates: Sequence[float] | None = None
) -> np.ndarray:
    """uint64 [R], uint64 [R], int64 [R] -> int64 [R]: how many of so many guesses happen to be right. rates as of PseudoTokens."""
    drawn = _mixed(~states, positions)
    if rates is None:
        return (drawn % (num_drafts.astype(np.uint64) + np.uint64(1))).astype(np.int64)
    uniform = (drawn >> np.uint64(11)) * 2.0**-53
    return np.minimum((uniform[:, None] < np.array(rates)).sum(1), num_drafts)


def pseudo_tokens(states: np.ndarray, positions: np.ndarray, vocab_size: int) -> np.ndarray:
    """uint64 [R], uint64 [R] -> uint64 [R] in [0, vocab_size): splitmix64 (Steele et al., OOPSLA 2014) of state and position."""
    return _mixed(states, positions) % np.uint64(vocab_size)


_GAMMA, _FIRST, _SECOND, _27, _30, _31 = np.array(  # slices, because an array of one is quicker to take than a number
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 27, 30, 31], dtype=np.uint64
)[:, None]


def _mixed(states: np.ndarray, positions: np.ndarray) -> np.ndarray:
    mixed = states + positions * _GAMMA
    mixed = (mixed ^ (mixed >> _30)) * _FIRST
    mixed = (mixed ^ (mixed >> _27)) * _SECOND
    return mixed ^ (mixed >> _31)

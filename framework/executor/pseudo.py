"""Random-looking tokens for executors without a model."""

from __future__ import annotations

import numpy as np

from ..engine.step import StepInput, StepOutput


class PseudoTokens:
    """Applies steps to the least state that tokens need: seed and length per seat."""

    def __init__(self, num_seats: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._seeds = np.zeros(num_seats, dtype=np.uint64)
        self._lengths = np.zeros(num_seats, dtype=np.uint64)

    def apply(self, step: StepInput) -> StepOutput:
        """Samples for every row that wants a token."""
        for request in step.new:
            assert request.sampling.seed is not None
            self._seeds[request.seat] = request.sampling.seed & (2**64 - 1)
            self._lengths[request.seat] = request.num_computed_tokens
        seats = np.array(step.seats)
        if step.num_drafts is not None:
            return self._apply_with_drafts(step, seats)
        self._lengths[seats] += np.array(step.num_tokens, dtype=np.uint64)
        sampling = seats if all(step.samples) else seats[np.array(step.samples)]
        return StepOutput(step.step_id, pseudo_tokens(self._seeds[sampling], self._lengths[sampling], self._vocab_size).tolist())

    def ahead(self, seats: np.ndarray, num_in_flight: int, count: int) -> np.ndarray:
        """int64 [R, num_in_flight + count]: tokens of the steps in flight and of ``count`` more, if all of them decode one token of
        every row, and so applies the latter."""
        positions = (
            self._lengths[seats, None] + np.arange(1, num_in_flight + count + 1).astype(np.uint64) - np.uint64(num_in_flight)
        )
        self._lengths[seats] += np.uint64(count)
        return pseudo_tokens(self._seeds[seats, None], positions, self._vocab_size)

    def _apply_with_drafts(self, step: StepInput, seats: np.ndarray) -> StepOutput:
        drafts = np.array(step.num_drafts)
        self._lengths[seats] += (np.array(step.num_tokens) - drafts).astype(np.uint64)
        right = num_right_drafts(self._seeds[seats], self._lengths[seats], drafts)
        rows = np.flatnonzero(step.samples)
        accepted = right[rows].astype(np.int64) + 1
        row_of_token = np.repeat(rows, accepted)
        nth = np.arange(len(row_of_token)) - np.repeat(np.cumsum(accepted) - accepted, accepted)
        positions = self._lengths[seats[row_of_token]] + nth.astype(np.uint64)
        tokens = pseudo_tokens(self._seeds[seats[row_of_token]], positions, self._vocab_size)
        self._lengths[seats] += right
        return StepOutput(step.step_id, tokens.tolist(), accepted.tolist())


def num_right_drafts(states: np.ndarray, positions: np.ndarray, num_drafts: np.ndarray) -> np.ndarray:
    """uint64 [R], uint64 [R], int [R] -> uint64 [R]: how many of so many guesses happen to be right."""
    return (_mixed(~states, positions) % (num_drafts.astype(np.uint64) + np.uint64(1))).astype(np.uint64)


def pseudo_tokens(states: np.ndarray, positions: np.ndarray, vocab_size: int) -> np.ndarray:
    """uint64 [R], uint64 [R] -> int64 [R] in [0, vocab_size): splitmix64 (Steele et al., OOPSLA 2014) of state and position."""
    return (_mixed(states, positions) % np.uint64(vocab_size)).astype(np.int64)


def _mixed(states: np.ndarray, positions: np.ndarray) -> np.ndarray:
    mixed = states + positions * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))

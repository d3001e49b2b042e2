"""Random-looking tokens for executors without a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from ..engine.diffusion import DiffusionConfig
from ..engine.step import NewRequest, StepInput, StepOutput
from ..models.architecture import Diffusion


class PseudoTokens:
    """Applies steps to the least state that tokens need: seed and length per seat.

    lengths     int64 per seat: tokens that are computed, those of steps in flight included
    num_prompt  int64 per seat: tokens of its prompt
    rates       per guess, how probable it is that it and all before it are right; None: any number of right guesses is as likely
    """

    def __init__(self, num_seats: int, vocab_size: int, rates: Sequence[float] | None = None) -> None:
        self._vocab_size, self._rates = vocab_size, rates
        self._seeds = np.zeros(num_seats, dtype=np.uint64)
        self.lengths, self.num_prompt = np.zeros((2, num_seats), dtype=np.int64)

    def apply(self, step: StepInput) -> StepOutput:
        """Samples for every row that wants a token."""
        self.admit(step.new)
        if not step.seats:  # of a scheduler that takes part in others' steps
            return StepOutput(step.step_id, [])
        seats = np.array(step.seats)
        return self.sample(step, seats, self.contexts(step, seats))

    def contexts(self, step: StepInput, seats: np.ndarray) -> np.ndarray:
        """int64 [R]: lengths of the rows in ``seats``, those of the step, with all its tokens."""
        found: np.ndarray = self.lengths[seats] + step.num_tokens
        return found

    def admit(self, new: Sequence[NewRequest]) -> None:
        """Takes in the requests that are new in a step."""
        for request in new:
            assert request.sampling.seed is not None
            self._seeds[request.seat] = request.sampling.seed & (2**64 - 1)
            self.lengths[request.seat], self.num_prompt[request.seat] = request.num_computed_tokens, request.num_prompt_tokens

    def sample(self, step: StepInput, seats: np.ndarray, contexts: np.ndarray) -> StepOutput:
        """The rest of ``apply``, with ``contexts`` of its rows."""
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


class PassPlan:
    """How many passes a canvas takes, and which of them settles which of its tokens: functions of a request's seed and of where the
    canvas begins. Numbers of passes are the whole ones around the mean, and the order is random.

    mean  passes over a canvas that begins behind whole canvases; None: as many as there can be
    """

    def __init__(self, diffusion: Diffusion, config: DiffusionConfig, mean: float | None) -> None:
        self.diffusion, self.canvas_size = diffusion, diffusion.canvas_size
        self._mean = possible_passes(diffusion, config)[1] if mean is None else mean

    def num_passes(self, states: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """int64 [R], of canvases that begin at starts int64 [R], of requests with the seeds states uint64 [R]."""
        least = int(self._mean)
        return least + (_uniform(states ^ _PASSES, starts.view(np.uint64)) < self._mean - least)

    def order(self, states: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """int64 [R, canvas]: in which pass each token is settled, from 0 on. Each settles as many, or those before one more."""
        places = (starts[:, None] + np.arange(self.canvas_size)).view(np.uint64)
        ranks = _mixed((states ^ _ORDER)[:, None], places).argsort(1).argsort(1)
        return ranks * self.num_passes(states, starts)[:, None] // self.canvas_size

    def confidences(self, order: np.ndarray, is_masked: np.ndarray) -> np.ndarray:
        """float64 [R, canvas], log-probabilities: the model is sure of the next tokens in ``order``, and of others the less, the
        later they come. Which are next, the masks say, bool [R, canvas], so that passes which are not counted may be repeated."""
        following = np.where(is_masked, order, self.canvas_size).min(1)[:, None]
        return np.where(order <= following, 0.0, _UNSURE - order)

    def entropies(self, states: np.ndarray, starts: np.ndarray, nth: np.ndarray) -> np.ndarray:
        """float64 [R, canvas], in nats, of the ``nth`` pass, int64 [R], from 1 on: too large until the last one."""
        redraws = self.diffusion.redraws
        assert redraws is not None, "others go by confidences"
        places = (starts[:, None] + np.arange(self.canvas_size)).view(np.uint64)
        unsure = 2 * redraws.mean_entropy + _uniform((states ^ nth.view(np.uint64))[:, None], places)
        return np.where((nth < self.num_passes(states, starts))[:, None], unsure, 0.0)


def possible_passes(diffusion: Diffusion, config: DiffusionConfig) -> tuple[int, int]:
    """Over a canvas that begins behind whole canvases: at least, where the model is sure of all, and at most."""
    if (redraws := diffusion.redraws) is not None:
        return min(redraws.num_stable + 1, redraws.max_passes), redraws.max_passes
    most = -(-diffusion.canvas_size // config.least(diffusion.canvas_size))
    return most if config.threshold == 1 else 1, most if config.threshold else 1


class PseudoCanvases(PseudoTokens):
    """Where a model denoises. A token is a function of its request's seed and its place alone; ``plan`` says when it is settled."""

    def __init__(self, num_seats: int, vocab_size: int, plan: PassPlan) -> None:
        super().__init__(num_seats, vocab_size)
        self._plan, self._mask = plan, plan.diffusion.mask_token_id
        self._starts = np.full(num_seats, -1, dtype=np.int64)
        self._num_passes = np.zeros(num_seats, dtype=np.int64)
        self._order = np.zeros((num_seats, plan.canvas_size), dtype=np.int64)

    def contexts(self, step: StepInput, seats: np.ndarray) -> np.ndarray:
        assert step.num_computed is not None, "what became of a pass is known to the scheduler alone"
        return np.array(step.num_computed) + step.num_tokens

    def admit(self, new: Sequence[NewRequest]) -> None:
        super().admit(new)
        self._starts[[request.seat for request in new]] = -1

    def sample(self, step: StepInput, seats: np.ndarray, contexts: np.ndarray) -> StepOutput:
        num_logits, plan, size = np.array(step.num_logits), self._plan, self._plan.canvas_size
        self.lengths[seats] = contexts
        rows = np.flatnonzero(num_logits)
        seats, starts, wanted = seats[rows], contexts[rows] - size, num_logits[rows]
        states, is_behind = self._seeds[seats], np.arange(size) >= size - wanted[:, None]
        begins = self._starts[seats] != starts
        self._num_passes[seats] = np.where(begins, 1, self._num_passes[seats] + 1)
        self._starts[seats] = starts
        places = (starts[:, None] + np.arange(size)).view(np.uint64)
        tokens = pseudo_tokens(states[:, None], places, self._vocab_size, self._mask)[is_behind].tolist()
        if self._mask is None:
            entropies = plan.entropies(states, starts, self._num_passes[seats])
            return StepOutput(step.step_id, tokens, best=tokens, entropies=entropies[is_behind].tolist())
        self._order[seats[begins]] = plan.order(states[begins], starts[begins])
        assert step.drafts is not None, "the scheduler brings canvases"
        given = chain.from_iterable(step.drafts[row][-count:] for row, count in zip(rows.tolist(), wanted.tolist()))
        is_masked = np.zeros_like(is_behind)
        is_masked[is_behind] = np.fromiter(given, np.int64, len(tokens)) == self._mask
        confidences = plan.confidences(self._order[seats], is_masked)
        return StepOutput(step.step_id, tokens, confidences=confidences[is_behind].tolist())


def num_right_drafts(
    states: np.ndarray, positions: np.ndarray, num_drafts: np.ndarray, rates: Sequence[float] | None = None
) -> np.ndarray:
    """uint64 [R], uint64 [R], int64 [R] -> int64 [R]: how many of so many guesses happen to be right. rates as of PseudoTokens."""
    drawn = _mixed(~states, positions)
    if rates is None:
        return (drawn % (num_drafts.astype(np.uint64) + np.uint64(1))).astype(np.int64)
    return np.minimum((_fraction(drawn)[:, None] < np.array(rates)).sum(1), num_drafts)


def pseudo_tokens(states: np.ndarray, positions: np.ndarray, vocab_size: int, mask: int | None = None) -> np.ndarray:
    """uint64 [R], uint64 [R] -> uint64 [R] in [0, vocab_size): splitmix64 (Steele et al., OOPSLA 2014) of state and position.
    mask: no token; another stands for it."""
    tokens: np.ndarray = _mixed(states, positions) % np.uint64(vocab_size)
    return tokens if mask is None else np.where(tokens == mask, np.uint64((mask + 1) % vocab_size), tokens)


_PASSES, _ORDER = np.array([0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7], dtype=np.uint64)
_UNSURE = -1e6
"""Less than the logarithm of any threshold but 0."""

_GAMMA, _FIRST, _SECOND, _27, _30, _31 = np.array(  # slices, because an array of one is quicker to take than a number
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 27, 30, 31], dtype=np.uint64
)[:, None]


def _uniform(states: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return _fraction(_mixed(states, positions))


def _fraction(drawn: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), of uint64."""
    return (drawn >> np.uint64(11)) * 2.0**-53


def _mixed(states: np.ndarray, positions: np.ndarray) -> np.ndarray:
    mixed = states + positions * _GAMMA
    mixed = (mixed ^ (mixed >> _30)) * _FIRST
    mixed = (mixed ^ (mixed >> _27)) * _SECOND
    return mixed ^ (mixed >> _31)

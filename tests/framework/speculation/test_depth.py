"""How many drafts are checked, on a virtual clock: step times and acceptances are given, seconds per token are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from framework.speculation.config import SpeculativeConfig
from framework.speculation.depth import AdaptiveDepth, Checked, Depth, ScheduledDepth, depth_of

MOST = 7
STEP_S: dict[str, Callable[[int, int], float]] = {
    "reads_weights": lambda rows, k: 0.1 + 0.02 * k + max(1.0, 0.01 * rows * (1 + k)),
    "computes": lambda rows, k: 0.3 + 0.7 * rows * (1 + k) ** 0.8,
    "drafts_slowly": lambda rows, k: 0.1 + 0.15 * k + max(1.0, 0.02 * rows * (1 + k)),
}
RIGHT = {"nearly_all": [0.9] * MOST, "head": [0.73, 0.71, 0.68, 0.65, 0.6, 0.6, 0.6], "nearly_none": [0.02] * MOST}
"""Of a draft whose predecessors are right."""


class Text:
    """Drafts of rows, right as often as ``rates`` say, those behind right ones; a first one behind drafts that were all right as
    often as ``again`` says, if it does."""

    def __init__(self, rows: int, again: float | None = None, seed: int = 0) -> None:
        self._rng, self._again, self._was_right = np.random.default_rng(seed), again, np.zeros(rows, dtype=bool)

    def check(self, k: int, rates: Sequence[float]) -> tuple[list[int], list[int], tuple[int, int]]:
        """(checked, accepted, after_right) of a step with so many drafts of each row."""
        was_right, rows = self._was_right, len(self._was_right)
        if not k:
            return [], [], (0, 0)
        chances = np.tile(rates[:k], (rows, 1))
        if self._again is not None:
            chances[was_right, 0] = self._again
        right = np.cumprod(self._rng.random((rows, k)) < chances, axis=1)
        self._was_right = right[:, -1] == 1
        accepted = right.sum(0).tolist()
        return [rows, *accepted[:-1]], accepted, (int(was_right.sum()), int(right[was_right, 0].sum()))


def served(
    policy: Depth,
    step_s: Callable[[int, int], float],
    right: Callable[[int], Sequence[float]],
    rows: int,
    steps: int,
    noise: float,
    made_before: bool = False,
    again: float | None = None,
) -> float:
    """Seconds per token and row, from the 300th step on. made_before: drafts are those that the step before was asked for."""
    rng, text = np.random.default_rng(0), Text(rows, again)
    total_s = tokens = 0.0
    made = 0
    for step in range(steps):
        k = policy.of(rows)
        most, made = min(k, made) if made_before else k, k
        checked, accepted, after_right = text.check(most, right(step))
        taken_s = step_s(rows, k) * rng.lognormal(sigma=noise)
        policy.observe(Checked(rows, k, checked, accepted, after_right, taken_s))
        if step >= 300:
            total_s += taken_s
            tokens += 1 + sum(accepted) / rows
    return total_s / tokens


@pytest.mark.parametrize("made_before", [True, False])
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("right", RIGHT)
@pytest.mark.parametrize("times", STEP_S)
def test_adaptive_is_as_good_as_the_best_fixed_depth(times: str, right: str, rows: int, is_known: bool, made_before: bool) -> None:
    step_s, rates = STEP_S[times], RIGHT[right]
    expected = 1 + np.cumsum([0, *np.cumprod(rates)])
    fixed = [step_s(rows, k) / tokens for k, tokens in enumerate(expected)]
    policy = AdaptiveDepth(MOST, step_s if is_known else None)
    found = served(policy, step_s, lambda step: rates, rows, 2000, 0.05, made_before)
    assert found < 1.03 * fixed[0], "no worse than without drafts"
    assert found < 1.05 * min(fixed)


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("again", [0.6, 0.95])
@pytest.mark.parametrize("rows", [8, 64])
@pytest.mark.parametrize("times", ["reads_weights", "drafts_slowly"])
def test_adaptive_knows_that_few_drafts_leave_more_to_guess(times: str, rows: int, again: float, is_known: bool) -> None:
    """Where right drafts follow right ones, the first of a step is right the less often the more of them a step checks."""
    step_s, rates = STEP_S[times], [0.25, *[0.9] * (MOST - 1)]
    fixed = [served(ScheduledDepth([[1, 1, k]]), step_s, lambda step: rates, rows, 4000, 0.0, again=again) for k in range(MOST + 1)]
    policy = AdaptiveDepth(MOST, step_s if is_known else None)
    found = served(policy, step_s, lambda step: rates, rows, 4000, 0.05, again=again)
    assert found < 1.03 * fixed[0] and found < 1.05 * min(fixed)


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("rows", [1, 64])
def test_adaptive_follows_what_changes(rows: int, is_known: bool) -> None:
    """Drafts that are wrong for 1500 steps, then right, and again."""
    step_s = STEP_S["reads_weights"]

    def right(step: int) -> Sequence[float]:
        return RIGHT["nearly_all" if step // 1500 % 2 else "nearly_none"]

    fixed = [served(ScheduledDepth([[1, 1, k]]), step_s, right, rows, 6000, 0.0) for k in range(MOST + 1)]
    found = served(AdaptiveDepth(MOST, step_s if is_known else None), step_s, right, rows, 6000, 0.05)
    assert found < 1.03 * fixed[0] and found < 1.05 * min(fixed)


@pytest.mark.parametrize("right", RIGHT)
@pytest.mark.parametrize("times", STEP_S)
def test_adaptive_bears_noise_and_learns_from_batches_of_other_sizes(times: str, right: str) -> None:
    """Batches that empty from 64 requests to one, again and again. Steps take a quarter more or less, one of 20 thrice as long.
    The first with so many rows and drafts is recorded. Against the best depth of each step."""
    step_s, rates, rng = STEP_S[times], np.array(RIGHT[right]), np.random.default_rng(0)
    expected = 1 + np.cumsum([0, *np.cumprod(rates)])
    policy, excess, recorded = AdaptiveDepth(MOST), list[float](), set[tuple[int, int]]()
    for step in range(2500):
        rows = max(1, 64 - step % 96)
        k = policy.of(rows)
        drafts = Text(rows, seed=step).check(k, rates)
        taken_s = step_s(rows, k) * rng.lognormal(sigma=0.25) * (3 if rng.random() < 0.05 else 1)
        taken_s += 0 if (rows, k) in recorded else 4 * step_s(rows, 0)
        recorded.add((rows, k))
        policy.observe(Checked(rows, k, *drafts, taken_s))
        fixed = [step_s(rows, most) / tokens for most, tokens in enumerate(expected)]
        excess.append(fixed[k] / min(fixed))
    assert np.mean(excess[500:]) < 1.3


def test_adaptive_takes_what_it_knows_to_batches_of_other_sizes() -> None:
    policy, depths, rates = AdaptiveDepth(MOST), list[int](), RIGHT["nearly_all"]
    for step in range(620):
        rows = 1 if step < 600 else 64
        depths.append(policy.of(rows))
        drafts = Text(rows, seed=step).check(depths[-1], rates)
        policy.observe(Checked(rows, depths[-1], *drafts, rows * (1 + 0.05 * depths[-1])))
    assert depths[-20:].count(MOST) > 14


def test_adaptive_bears_a_step_that_compiles() -> None:
    policy, depths = AdaptiveDepth(3), list[int]()
    for step in range(200):
        k = policy.of(4)
        depths.append(k)
        policy.observe(Checked(4, k, [4] * k, [4] * k, (4 if k else 0, 4 if k else 0), 100.0 if step in (0, 1, 50) else 1.0))
    assert depths[-100:].count(3) > 80


def test_adaptive_knows_a_row_that_may_have_no_draft_from_one_whose_draft_is_wrong() -> None:
    """Near its end a request has none; and while all steps compute prompts, too, only acceptance is to be learned."""
    policy = AdaptiveDepth(3, lambda rows, k: 1.0 + 0.2 * k)

    def depths(steps: int, checked: list[int], accepted: list[int], after_right: tuple[int, int]) -> list[int]:
        found = []
        for _ in range(steps):
            found.append(policy.of(2))
            policy.observe(Checked(2, 3, checked, accepted, after_right, None))
        return found

    assert set(depths(100, [1, 1, 1], [1, 1, 1], (1, 1))) == {3}
    assert depths(1000, [2, 0, 0], [0, 0, 0], (0, 0))[-100:].count(0) > 80


@pytest.mark.parametrize(("step_s", "expected"), [(1.9, 1), (1.97, 0), (2.1, 0)])
def test_adaptive_drafts_only_where_that_promises_clearly_more(step_s: float, expected: int) -> None:
    """Two tokens, in so many times as long as one takes."""
    assert AdaptiveDepth(1, lambda rows, k: step_s if k else 1.0).of(1) == expected


def test_adaptive_asks_for_few_times_where_many_drafts_are_possible() -> None:
    asked = set[int]()

    def step_s(rows: int, k: int) -> float:
        asked.add(k)
        return 1.0 + 0.01 * k

    policy = AdaptiveDepth(128, step_s)
    for _ in range(200):
        k = policy.of(1)
        policy.observe(Checked(1, k, [1] * k, [1] * k, (1, 1) if k else (0, 0), None))
    assert policy.of(1) == 128 and len(asked) < 30


@pytest.mark.parametrize("most", [1, 100])
def test_adaptive_bears_whatever_it_is_told(most: int) -> None:
    """Batches that jump between 1 and 64 rows, steps that brought nobody a token, times from a nanosecond to a year or unknown."""
    rng, policy = np.random.default_rng(0), AdaptiveDepth(most)
    for _ in range(3000):
        rows = int(rng.choice([1, 2, 63, 64]))
        k = policy.of(rows)
        assert 0 <= k <= most
        told = int(rng.integers(k + 1))  # there was room for fewer
        chances = rng.choice([0.0, 0.5, 1.0])
        checked, accepted, after_right = Text(rows).check(told, [chances] * told)
        taken_s = rng.choice([None, 1e-9, 1e-3, 3e7])
        policy.observe(Checked(0 if rng.random() < 0.1 else rows, k, checked, accepted, after_right, taken_s))


def test_a_schedule_goes_by_the_number_of_requests() -> None:
    config = SpeculativeConfig("ngram", 4, num_speculative_tokens_per_batch_size=[[1, 2, 4], [3, 8, 1], [9, 16, 0]])
    config.validate()
    assert [depth_of(config).of(n) for n in (1, 2, 3, 8, 9, 16, 17, 1000)] == [4, 4, 1, 1, 0, 0, 0, 0]
    assert [depth_of(SpeculativeConfig("ngram", 4)).of(n) for n in (1, 1000)] == [4, 4]
    assert isinstance(depth_of(SpeculativeConfig("ngram", 4, adaptive_depth=True)), AdaptiveDepth)

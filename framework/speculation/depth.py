"""How many drafts a step checks."""

from __future__ import annotations

import functools
import math
from bisect import insort
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from .config import SpeculativeConfig

StepTime = Callable[[int, int], float]
"""(rows, drafts of each) -> seconds of a step."""


class Checked(NamedTuple):
    """What a step showed.

    num_rows     that got tokens
    k            drafts that were asked for each of them
    checked      by position, as far as any row might have drafts: rows that might have one there, and had all before it right. A
                 row near its end might have fewer than k, and all where the step before made fewer
    accepted     by position: of these, rows that had it right; one without a draft there did not
    after_right  of the first position, (checked, accepted): rows all of whose drafts were right when they last might have any
    step_s       from the end of the step before to its own, with all that the host did in between; from its submission, if there
                 was nothing to do before. None: it computed prompts, too, or the clock does not say
    """

    num_rows: int
    k: int
    checked: Sequence[int]
    accepted: Sequence[int]
    after_right: tuple[int, int]
    step_s: float | None


class Depth(Protocol):
    """A policy, of one engine."""

    def of(self, num_running: int) -> int:
        """Drafts of each of so many requests in the next step, at most."""

    def observe(self, step: Checked) -> None:
        """Takes in a step."""


def depth_of(config: SpeculativeConfig, step_time: StepTime | None = None) -> Depth:
    """The policy that a configuration asks for. step_time: where it is known, as it is of a simulated device."""
    k, rows = config.num_speculative_tokens, config.num_speculative_tokens_per_batch_size
    if config.adaptive_depth:
        return AdaptiveDepth(k, step_time)
    return ScheduledDepth(rows if rows is not None else [[1, 1, k]])


class ScheduledDepth:
    """By the number of requests. rows: [first, last, drafts], from 1 on without gaps; the last one holds for all beyond it."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._rows = rows

    def of(self, num_running: int) -> int:
        return next((k for _, last, k in self._rows if num_running <= last), self._rows[-1][2])

    def observe(self, step: Checked) -> None:
        """Nothing follows from it."""


class AdaptiveDepth:
    """As many drafts as bring most tokens per second: those that a row may expect, through the time of a step with so many rows and
    drafts, both as the steps so far showed them. Now and then a few steps have another number of drafts, most often one next to the
    best, so that what is known of it stays true. What such trials cost, as far as is known, is ``TRIALS`` of the time.

    Some places of a text are easy to guess, others hard, and the more drafts a step checks, the fewer steps are in easy ones: first
    drafts are right less often. So these are counted apart, by whether the drafts before them were all right: how many of each are
    right hardly depends on the depth, and how often each comes follows from it."""

    TRIALS, HEAD_START = 0.01, 10.0
    """What trials may cost: as long as this part of all steps, and at first as so many steps, unless times of steps are known."""
    TRIAL, LEAST = 4, 0.05
    """Steps of a trial; it is taken to cost so much of its time at least, so that those that seem to cost nothing are few."""
    MARGIN = 0.02
    """By so much more tokens per second drafts must promise, to be better than none."""
    HOPED, LIKE = 4.0, 40.0
    """So many first drafts are taken to have been right, before there were any; and of so many drafts of each other kind, as many
    as of the kind before it."""
    ROWS, STEPS = 2000, 1000
    """So many rows that were checked, or steps that passed, make an observation count 1/e."""
    EVERY = 8
    """Steps that a choice lasts; fewer in the beginning. To make one takes as long as to take in several steps."""

    def __init__(self, most: int, step_time: StepTime | None = None) -> None:
        self._most, self._step_time = most, step_time
        # To try one costs steps, to ask for the time of one some of the host's. Those left out bring a percent more at most, but
        # for times that jump between their neighbours.
        some = {0, 1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90} | (set() if step_time is None else set(range(17)))
        self._depths = [*sorted(k for k in some if k < most), most]
        # Of first drafts after wrong ones, first drafts after right ones, second ones, third ones, ...
        self._checked, self._accepted = [0.0] * (1 + most), [0.0] * (1 + most)
        self._new_checked, self._new_accepted = [0] * (1 + most), [0] * (1 + most)
        self._times = _StepTimes()
        self._left = self.HEAD_START if step_time is None else 0.0  # steps that trials may cost
        self._trial, self._trial_steps = 0, 0  # drafts, and steps left
        self._spent = dict.fromkeys(self._depths, 0.0)  # steps, on trials of each
        self._choices: dict[int, int] = {}  # by number of rows, about
        self._num_steps, self._lasts = 0, 1.0  # since choices were made anew, and after which they are

    def of(self, num_running: int) -> int:
        if self._trial_steps:
            return self._trial
        choice = self._choices.get(_bucket(num_running))
        return self._choose(num_running) if choice is None else choice

    def observe(self, step: Checked) -> None:
        num_rows, k, checked, accepted, after_right, step_s = step
        if not num_rows:  # parts of prompts only
            return
        if checked:
            for counts, found, again in zip((self._new_checked, self._new_accepted), (checked, accepted), after_right):
                counts[0] += found[0] - again
                counts[1] += again
                for i in range(1, len(found)):
                    counts[i + 1] += found[i]
        if self._trial_steps:
            self._trial_steps -= 1
        if step_s is not None and len(checked) == k:
            self._times.add(num_rows, k, step_s)
        self._left += self.TRIALS
        self._num_steps += 1
        if self._num_steps >= self._lasts:
            self._settle()

    def _settle(self) -> None:
        """Takes in what was counted, and lets choices be made anew."""
        fade = math.exp(-self._num_steps / self.STEPS)
        for i, (rows, right) in enumerate(zip(self._new_checked, self._new_accepted)):
            kept = fade * math.exp(-rows / self.ROWS)
            self._checked[i] = kept * self._checked[i] + rows
            self._accepted[i] = kept * self._accepted[i] + right
        self._new_checked, self._new_accepted = [0] * (1 + self._most), [0] * (1 + self._most)
        self._left *= fade
        for k in self._depths:
            self._spent[k] *= fade
        self._num_steps, self._lasts = 0, min(self._lasts + 1 / 32, self.EVERY)
        self._choices.clear()

    def _choose(self, rows: int) -> int:
        """Drafts of the next step. Keeps what is best, and starts a trial if one is due."""
        known = self._step_time
        seconds = self._times.of(rows) if known is None else {k: known(rows, k) for k in self._depths}
        if 0 not in seconds:
            return 0
        tokens, best, rate = self._tokens(), 0, 0.0
        for k in self._depths:
            if k in seconds and tokens[k] > seconds[k] * rate * (1 if best else 1 + self.MARGIN):
                best, rate = k, tokens[k] / seconds[k]
        self._choices[_bucket(rows)] = best
        costs, turns = dict[int, float](), dict[int, float]()
        for i, k in enumerate(self._depths, -self._depths.index(best)):
            if i > 0 or (i and known is None):  # where times are known, fewer drafts than the best bring nothing to light
                below = max(seen for seen in seconds if seen <= k)
                step_s = seconds[below] * (1 + k) / (1 + below)  # as many times as long as there are tokens, where it was not seen
                costs[k] = self.TRIAL * max(self.LEAST * step_s, step_s - tokens[k] / rate) / seconds[best]
                turns[k] = (self._spent[k] + costs[k]) * i * i
        if not turns or costs[k := min(turns, key=turns.__getitem__)] > self._left:
            return best
        self._left -= costs[k]
        self._spent[k] += costs[k]
        self._trial, self._trial_steps = k, self.TRIAL
        return k

    def _tokens(self) -> list[float]:
        """Expected of a row, by number of drafts from 0 on."""
        after_wrong, after_right, *others = self._rates()
        tokens, stays, behind = [1.0], 1.0, 0.0
        for rate in (1.0, *others):  # behind a first draft that is right, all others are so often
            stays *= rate
            behind += stays
            # It is right in p = after_wrong + p * stays * (after_right - after_wrong): of p * stays all drafts were right.
            first = min(1.0, after_wrong / (1.0 - stays * (after_right - after_wrong)))
            tokens.append(1.0 + first * behind)
        return tokens

    def _rates(self) -> list[float]:
        """How often each kind is right; as often as that before it, as far as it was not seen."""
        right, weight, rates = 1.0, self.HOPED, []
        for checked, accepted in zip(self._checked, self._accepted):
            right = (accepted + weight * right) / (checked + weight)
            weight = self.LIKE
            rates.append(right)
        return rates


class _StepTimes:
    """Seconds of a step by (rows, drafts), of those with about as many rows."""

    def __init__(self) -> None:
        self._kinds: dict[int, dict[int, _Kind]] = {}  # by number of rows, about, and drafts
        self._seen: set[tuple[int, int]] = set()

    def add(self, rows: int, k: int, step_s: float) -> None:
        """Takes in a step; not the first of its kind, which may have been compiled or recorded."""
        if (rows, k) in self._seen:
            self._kinds.setdefault(_bucket(rows), {}).setdefault(k, _Kind()).add(step_s)
        self._seen.add((rows, k))

    def of(self, rows: int) -> dict[int, float]:
        """By drafts. What was not seen with so many rows is that of the nearest number, scaled by what was seen of both."""
        bucket = _bucket(rows)
        found: dict[int, float] = {}
        for near in sorted(self._kinds, key=lambda other: abs(other - bucket)):
            kinds = self._kinds[near]
            common = [k for k in kinds if k in found]
            scale = sum(found[k] for k in common) / sum(kinds[k].mean for k in common) if common else 1.0
            for k, kind in kinds.items():
                found.setdefault(k, scale * kind.mean)
        return found


class _Kind:
    """Of steps: the mean of their times, where none counts for more than two usual ones."""

    FIRST, NUM = 16, 256
    """The mean of so many is made anew with each; what is usual is not known before. And so many count, about."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._num = 0
        self.mean = 0.0

    def add(self, step_s: float) -> None:
        self._num += 1
        if self._num > self.FIRST:
            self.mean += (min(step_s, 2 * self.mean) - self.mean) / min(self._num, self.NUM)
            return
        insort(self._first, step_s)
        most = 2 * self._first[(self._num - 1) // 2]
        self.mean = sum(min(each, most) for each in self._first) / self._num


@functools.cache
def _bucket(rows: int) -> int:
    return round(2 * math.log2(rows))

"""How many drafts a step checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from .config import SpeculativeConfig

StepTime = Callable[[int, int], float]
"""(rows, drafts of each) -> seconds of a step."""


class Depth(Protocol):
    """A policy, of one engine."""

    def of(self, num_running: int) -> int:
        """Drafts of each of so many requests in the next step, at most."""

    def observe(self, num_rows: int, k: int, checked: Sequence[int], accepted: Sequence[int], step_s: float | None) -> None:
        """Takes in a step.

        num_rows  that got tokens
        k         drafts that were asked for each of them
        checked   by position, as far as any row might have drafts: rows that might have one there, and had all before it right. A
                  row near its end might have fewer than k, and all where the step before made fewer
        accepted  by position: of these, rows that had it right; one without a draft there did not
        step_s    from the end of the step before to its own, or from its start if it began later; None: it computed prompts, too,
                  or the clock does not say
        """


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

    def observe(self, num_rows: int, k: int, checked: Sequence[int], accepted: Sequence[int], step_s: float | None) -> None:
        """Nothing follows from it."""


class AdaptiveDepth:
    """As many drafts as bring most tokens per second: 1 and the running products of the acceptance by position, through the time of
    a step with so many rows and drafts, both from the steps so far. Steps with fewer or more drafts than that are only a trial:
    where the best that may still be true of it is better. It lasts until as many were checked: drafts of a device are those of the
    step before. What trials lose is ``TRIALS`` of the time at most."""

    TRIALS = 0.01
    HEAD_START = 400
    """Trials may lose as much as if so many steps had been before."""
    MARGIN = 0.01
    """By so much more tokens per second drafts must promise, to be better than none."""
    HOPED, SEEN = 4.0, 100.0
    """So many drafts of each position that were right are what may still be true, besides those that were seen; of which so many
    count, at most."""
    ROWS, STEPS = 500, 250
    """So many rows that were checked, or steps that passed, make an observation count 1/e."""
    PATIENCE = 10
    """Steps after which a trial ends, whatever was checked: rows near their ends have fewer drafts."""

    def __init__(self, most: int, step_time: StepTime | None = None) -> None:
        self._most, self._known_time = most, step_time
        self._checked, self._accepted = [0.0] * most, [0.0] * most
        self._times: dict[int, _Times] = {}
        self._elapsed_s = self._lost_s = 0.0
        self._trial, self._trial_steps = 0, 0  # drafts, and steps left

    def of(self, num_running: int) -> int:
        times = self._times_of(num_running)
        if times.seconds(0) is None:
            return 0
        best, rate = self._best(times)
        if self._trial_steps:
            return self._trial
        left_s = self.TRIALS * (self._elapsed_s + self.HEAD_START * times.at_least(0)) - self._lost_s
        tokens = zip(self._tokens(), self._tokens(self.HOPED))  # fewer drafts than the best bring to light nothing but their time
        hoped = [(seen if k < best and self._known_time else may_be) / times.at_least(k) for k, (seen, may_be) in enumerate(tokens)]
        trials = [k for k in range(self._most + 1) if k != best and hoped[k] > rate * (1 + self.MARGIN)]
        trials = [k for k in trials if times.at_most(k) - 1 / rate <= left_s]
        if not trials:
            return best
        self._trial, self._trial_steps = max(trials, key=lambda k: (hoped[k], k)), self.PATIENCE
        return self._trial

    def observe(self, num_rows: int, k: int, checked: Sequence[int], accepted: Sequence[int], step_s: float | None) -> None:
        if not num_rows:  # parts of prompts only
            return
        fade = math.exp(-1 / self.STEPS)
        self._checked = [fade * count for count in self._checked]
        self._accepted = [fade * count for count in self._accepted]
        for i, (rows, right) in enumerate(zip(checked, accepted)):
            fade = math.exp(-rows / self.ROWS)
            self._checked[i] = fade * self._checked[i] + rows
            self._accepted[i] = fade * self._accepted[i] + right
        times, is_whole = self._times_of(num_rows), len(checked) == k
        counts = is_whole and (step_s is None or times.add(k, step_s))
        if self._trial_steps:
            self._trial_steps = 0 if counts and k == self._trial else self._trial_steps - 1
        if step_s is None or times.seconds(0) is None or (is_whole and not counts):
            return
        self._elapsed_s += step_s
        best, rate = self._best(times)
        if k != best:
            expected = list(self._tokens())[len(checked)]  # what came is that and luck
            self._lost_s = max(0.0, self._lost_s + step_s - expected / rate)

    def _best(self, times: _Times) -> tuple[int, float]:
        """(drafts, tokens per second and row)."""
        found, most = 0, 0.0
        for k, tokens in enumerate(self._tokens()):
            if (seconds := times.seconds(k)) is not None:
                rate = tokens / seconds
                if rate > most * (1 if found else 1 + self.MARGIN):
                    found, most = k, rate
        return found, most

    def _tokens(self, hoped: float = 0.0) -> Iterator[float]:
        """Expected of a row, by number of drafts from 0 on."""
        tokens = survival = 1.0
        yield tokens
        for checked, accepted in zip(self._checked, self._accepted):
            if hoped and checked > self.SEEN:
                checked, accepted = self.SEEN, accepted * self.SEEN / checked
            survival *= (accepted + hoped) / (checked + (hoped or 1.0))
            tokens += survival
            yield tokens

    def _times_of(self, num_rows: int) -> _Times:
        if self._known_time is not None:
            return _KnownTimes(self._known_time, num_rows)
        bucket = round(2 * math.log2(num_rows))
        return self._times.setdefault(bucket, _Times())


class _Times:
    """Of steps with about as many rows, by number of drafts."""

    WEIGHT = 0.1
    """Of the newest step in a mean of many."""
    HOPED, STEPS = 0.1, 1000
    """By so much a step that was seen once may be shorter than it was; so many steps later it counts 1/e."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._seen: dict[int, tuple[float, int]] = {}  # how often, and when last
        self._num_steps = 0

    def add(self, k: int, step_s: float) -> bool:
        """Takes in a step; not the first of its kind, in which kernels may have been compiled or recorded."""
        self._num_steps += 1
        is_new, count = k not in self._seen, self._count(k)
        is_usual = count >= 1 / self.WEIGHT and self._num_steps - self._seen[k][1] < 10
        self._seen[k] = count + (not is_new), self._num_steps
        if is_new:
            return False
        before = self._means.setdefault(k, step_s)
        self._means[k] += max(self.WEIGHT, 1 / (count + 1)) * (min(step_s, 3 * before) - before)
        if is_usual:  # and not for its mean being new: what makes these steps longer (texts do) makes the others longer, too
            factor = self._means[k] / before
            self._means = {other: mean if other == k else mean * factor for other, mean in self._means.items()}
        return True

    def seconds(self, k: int) -> float | None:
        """As it was seen, or between what was; None beyond."""
        if k in self._means:
            return self._means[k]
        lower, upper = self._below(k), min((other for other in self._means if other > k), default=None)
        if lower is None or upper is None:
            return None
        return self._means[lower] + (self._means[upper] - self._means[lower]) * (k - lower) / (upper - lower)

    def at_least(self, k: int) -> float:
        """What it may be if all is well: as with fewer drafts, where it was not seen."""
        seen = k if k in self._means else self._below(k)
        assert seen is not None
        return self._means[seen] * (1 - self.HOPED / math.sqrt(max(self._count(seen), 1.0)))

    def at_most(self, k: int) -> float:
        """What it may be: as many times as long as there are tokens, where it was not seen."""
        if (seconds := self.seconds(k)) is not None:
            return seconds
        below = self._below(k)
        assert below is not None
        return self._means[below] * (1 + k) / (1 + below)

    def _count(self, k: int) -> float:
        count, seen_at = self._seen.get(k, (0.0, 0))
        return count * math.exp((seen_at - self._num_steps) / self.STEPS)

    def _below(self, k: int) -> int | None:
        return max((other for other in self._means if other < k), default=None)


class _KnownTimes(_Times):
    """As a model of the device has them."""

    def __init__(self, step_time: StepTime, num_rows: int) -> None:
        self._step_time, self._num_rows = step_time, num_rows

    def add(self, k: int, step_s: float) -> bool:
        return True

    def seconds(self, k: int) -> float:
        return self._step_time(self._num_rows, k)

    at_least = at_most = seconds

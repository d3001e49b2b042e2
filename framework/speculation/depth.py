"""How many drafts a step checks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

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
        self._most, self._times_are_known = most, step_time is not None
        self._checked, self._accepted = [0.0] * most, [0.0] * most
        self._times = _StepTimes() if step_time is None else _KnownTimes(step_time)
        self._elapsed_s = self._lost_s = 0.0
        self._trial, self._trial_steps = 0, 0  # drafts, and steps left

    def of(self, num_running: int) -> int:
        if self._times.seconds(num_running, 0) is None:
            return 0
        best, rate = self._best(num_running)
        if self._trial_steps:
            return self._trial
        left_s = self.TRIALS * (self._elapsed_s + self.HEAD_START * self._times.at_least(num_running, 0)) - self._lost_s
        tokens = zip(self._tokens(), self._tokens(self.HOPED))  # fewer drafts than the best bring to light nothing but their time
        hoped = [
            (seen if k < best and self._times_are_known else may_be) / self._times.at_least(num_running, k)
            for k, (seen, may_be) in enumerate(tokens)
        ]
        trials = [k for k in range(self._most + 1) if k != best and hoped[k] > rate * (1 + self.MARGIN)]
        trials = [k for k in trials if self._times.at_most(num_running, k) - 1 / rate <= left_s]
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
        is_whole = len(checked) == k
        counts = is_whole and (step_s is None or self._times.add(num_rows, k, step_s))
        if self._trial_steps:
            self._trial_steps = 0 if counts and k == self._trial else self._trial_steps - 1
        if step_s is None or self._times.seconds(num_rows, 0) is None or (is_whole and not counts):
            return
        self._elapsed_s += step_s
        best, rate = self._best(num_rows)
        if k != best:
            expected, seconds = list(self._tokens())[len(checked)], self._times.seconds(num_rows, k)  # what came is that and luck
            self._lost_s = max(0.0, self._lost_s + (step_s if seconds is None else seconds) - expected / rate)

    def _best(self, rows: int) -> tuple[int, float]:
        """(drafts, tokens per second and row)."""
        found, most = 0, 0.0
        for k, tokens in enumerate(self._tokens()):
            if (seconds := self._times.seconds(rows, k)) is not None:
                rate = tokens / seconds
                if rate > most * (1 if found else 1 + self.MARGIN):
                    found, most = k, rate
        return found, most

    def _tokens(self, hoped: float = 0.0) -> Iterator[float]:
        """Expected of a row, by number of drafts from 0 on. A position that was not seen is as good as that before it."""
        tokens, survival, right = 1.0, 1.0, 0.0
        yield tokens
        for checked, accepted in zip(self._checked, self._accepted):
            if hoped and checked > self.SEEN:
                checked, accepted = self.SEEN, accepted * self.SEEN / checked
            right = (accepted + (hoped or right)) / (checked + (hoped or 1.0))
            survival *= right
            tokens += survival
            yield tokens


class _StepTimes:
    """Seconds of a step by (rows, drafts): the mean of steps with about as many rows, and as long as these are few, mostly a line
    over the rows, through all steps with as many drafts."""

    WEIGHT, LINE = 0.1, 2.0
    """Of the newest step in a mean of many; of the line, in steps."""
    HOPED, STEPS = 0.1, 1000
    """By so much a step that was seen once may be shorter than it was; so many steps later it counts 1/e."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}
        self._means: dict[tuple[int, int], _Mean] = {}  # by number of rows, about, and drafts
        self._seen: set[tuple[int, int]] = set()
        self._num_steps = 0

    def add(self, rows: int, k: int, step_s: float) -> bool:
        """Takes in a step; not the first of its kind, in which kernels may have been compiled. The first with just so many rows may
        have been recorded: it counts only if it was not long."""
        self._num_steps += 1
        is_new = (rows, k) not in self._seen
        self._seen.add((rows, k))
        if (kind := (_bucket(rows), k)) not in self._means:
            self._means[kind] = _Mean()
            return False
        if is_new and self._lines and step_s > (1.5 * self._at(rows, k) if k in self._lines else self.at_most(rows, k)):
            return False
        mean, before_s = self._means[kind], self._at(rows, k) if k in self._lines else step_s
        is_usual = mean.count * self.WEIGHT >= 1 and self._num_steps - mean.last < 10
        step_s = min(step_s, 3 * before_s)
        self._lines.setdefault(k, _Line()).add(rows, step_s, before_s)
        mean.count, mean.last = self._count(rows, k) + 1, self._num_steps
        mean.seconds += max(self.WEIGHT, 1 / mean.count) * (step_s - mean.seconds)
        if is_usual:  # and not for its mean being new: what makes these steps longer (texts do) makes the others longer, too
            factor = self._at(rows, k) / before_s
            for other in self._lines.keys() - {k}:
                self._lines[other].scale(factor)
                if (beside := self._means.get((_bucket(rows), other))) is not None:
                    beside.scale(factor)
        return True

    def seconds(self, rows: int, k: int) -> float | None:
        """As it was seen, or between what was; None beyond."""
        if k in self._lines:
            return self._at(rows, k)
        below, above = self._below(k), min((other for other in self._lines if other > k), default=None)
        if below is None or above is None:
            return None
        low_s, high_s = self._at(rows, below), self._at(rows, above)
        return low_s + (high_s - low_s) * (k - below) / (above - below)

    def at_least(self, rows: int, k: int) -> float:
        """What it may be if all is well: as with fewer drafts, where it was not seen; of fewer rows than were seen with so many
        drafts, what these take is as much less, and of more it is the same."""
        seen = k if k in self._lines else self._below(k)
        assert seen is not None
        count, hoped_s = self._count(rows, seen), self._at(rows, seen)
        if count <= self.LINE:
            line, none = self._lines[seen], self._lines[0]
            drafts_s = (line.at(line.mean) - none.at(line.mean)) * min(1.0, rows / line.mean)
            hoped_s = min(hoped_s, self._at(rows, 0) + drafts_s)
        return hoped_s * (1 - self.HOPED / math.sqrt(max(count, 1.0)))

    def at_most(self, rows: int, k: int) -> float:
        """What it may be: as many times as long as there are tokens, where it was not seen."""
        if (seconds := self.seconds(rows, k)) is not None:
            return seconds
        below = self._below(k)
        assert below is not None
        return self._at(rows, below) * (1 + k) / (1 + below)

    def _at(self, rows: int, k: int) -> float:
        mean = self._means.get((_bucket(rows), k), _NONE)
        return (self.LINE * self._lines[k].at(rows) + mean.count * mean.seconds) / (self.LINE + mean.count)

    def _count(self, rows: int, k: int) -> float:
        mean = self._means.get((_bucket(rows), k), _NONE)
        return mean.count * math.exp((mean.last - self._num_steps) / self.STEPS)

    def _below(self, k: int) -> int | None:
        return max((other for other in self._lines if other < k), default=None)


@functools.cache
def _bucket(rows: int) -> int:
    return round(2 * math.log2(rows))


@dataclass(slots=True)
class _Mean:
    """Of steps of one kind: how many count, the number of the last one, and what they took."""

    count: float = 0.0
    last: int = 0
    seconds: float = 0.0

    def scale(self, factor: float) -> None:
        self.seconds *= factor


_NONE: Final = _Mean()


class _Line:
    """Least squares of relative errors, of steps with one number of drafts; those of late count most."""

    STEPS = 100
    """So many steps later one counts 1/e."""

    def __init__(self) -> None:
        self._one = self._n = self._nn = self._t = self._nt = self._start = self._slope = 0.0

    def add(self, rows: int, seconds: float, expected_s: float) -> None:
        fade, weight = math.exp(-1 / self.STEPS), 1 / max(expected_s, 1e-9) ** 2
        self._one = fade * self._one + weight
        self._n = fade * self._n + weight * rows
        self._nn = fade * self._nn + weight * rows * rows
        self._t = fade * self._t + weight * seconds
        self._nt = fade * self._nt + weight * rows * seconds
        self._fit()

    def scale(self, factor: float) -> None:
        self._t, self._nt = factor * self._t, factor * self._nt
        self._fit()

    @property
    def mean(self) -> float:
        """Rows of the steps."""
        return self._n / self._one

    def at(self, rows: float) -> float:
        """Seconds."""
        return self._start + self._slope * rows

    def _fit(self) -> None:
        spread = self._one * self._nn - self._n * self._n + 1e-3 * self._one * self._nn  # a slope needs rows that differ
        self._slope = max(0.0, (self._one * self._nt - self._n * self._t) / spread)
        self._start = (self._t - self._slope * self._n) / self._one
        if self._start <= 0:
            self._start, self._slope = 0.0, self._t / self._n


class _KnownTimes(_StepTimes):
    """As a model of the device has them."""

    def __init__(self, step_time: StepTime) -> None:
        super().__init__()
        self._step_time = step_time

    def add(self, rows: int, k: int, step_s: float) -> bool:
        return True

    def seconds(self, rows: int, k: int) -> float:
        return self._step_time(rows, k)

    at_least = at_most = seconds

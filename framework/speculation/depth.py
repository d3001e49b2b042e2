"""How many drafts a step checks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

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
    step_s       from the end of the step before to its own, or from its start if it began later; None: it computed prompts, too, or
                 the clock does not say
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


class _Choice(NamedTuple):
    """The best number of drafts, as far as is known, and tokens per second and row with them."""

    k: int
    rate: float


class AdaptiveDepth:
    """As many drafts as bring most tokens per second: those that a row may expect, through the time of a step with so many rows and
    drafts, both from the steps so far. Steps with fewer or more drafts than that are only a trial: where the best that may still be
    true of it is better. It lasts until as many were checked: drafts of a device are those of the step before. What trials lose is
    ``TRIALS`` of the time at most.

    Some places of a text are easy to guess, others hard, and the more drafts a step checks, the fewer steps are in easy ones: first
    drafts are right less often. So these are counted apart, by whether the drafts before them were all right: how many of each are
    right hardly depends on the depth, and how often each comes follows from it."""

    TRIALS = 0.01
    HEAD_START = 400
    """Trials may lose as much as if so many steps had been before."""
    MARGIN = 0.01
    """By so much more tokens per second drafts must promise, to be better than none."""
    HOPED, SEEN = 4.0, 100.0
    """So many drafts of each kind that were right are what may still be true, besides those that were seen; of which so many
    count, at most."""
    LIKE = 4.0
    """Of so many drafts of each kind, as many are taken to have been right as of the kind before it."""
    ROWS, STEPS = 1000, 250
    """So many rows that were checked, or steps that passed, make an observation count 1/e."""
    PATIENCE = 10
    """Steps after which a trial ends, whatever was checked: rows near their ends have fewer drafts."""
    EVERY = 8
    """Steps that a choice lasts; fewer in the beginning. To make one takes as long as to take in several steps."""

    def __init__(self, most: int, step_time: StepTime | None = None) -> None:
        self._most, self._times_are_known = most, step_time is not None
        # To try one costs steps. Those left out bring a percent more at most.
        some = range(1 + most) if step_time is not None else (0, 1, 2, 3, 5, 8, 12, 18, 27, 40)
        self._depths = [*(k for k in some if k < most), most]
        # Of first drafts after wrong ones, first drafts after right ones, second ones, third ones, ...
        self._checked, self._accepted = [0.0] * (1 + most), [0.0] * (1 + most)
        self._new_checked, self._new_accepted = [0] * (1 + most), [0] * (1 + most)
        self._times = _StepTimes() if step_time is None else _KnownTimes(step_time)
        self._elapsed_s = self._lost_s = 0.0
        self._trial, self._trial_steps = 0, 0  # drafts, and steps left
        self._choices: dict[int, _Choice] = {}  # by number of rows, about
        self._num_steps, self._lasts = 0, 1.0  # since choices were made anew, and after which they are

    def of(self, num_running: int) -> int:
        if self._trial_steps:
            return self._trial
        choice = self._choices.get(_bucket(num_running))
        return self._choose(num_running) if choice is None else choice.k

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
        is_whole = len(checked) == k
        counted = is_whole and (step_s is None or self._times.add(num_rows, k, step_s))
        if self._trial_steps:
            self._trial_steps = 0 if counted and k == self._trial else self._trial_steps - 1
        choice = self._choices.get(_bucket(num_rows))
        if step_s is not None and choice is not None and (counted or not is_whole):
            self._elapsed_s += step_s
            if k != choice.k:
                seconds = self._times.seconds(num_rows, k)  # what came is that and luck
                lost_s = (step_s if seconds is None else seconds) - self._tokens()[len(checked)] / choice.rate
                self._lost_s = max(0.0, self._lost_s + lost_s)
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
        self._num_steps, self._lasts = 0, min(self._lasts + 1 / 32, self.EVERY)
        self._choices.clear()

    def _choose(self, rows: int) -> int:
        """Drafts of the next step. Keeps what is best, and starts a trial if one is due."""
        times = self._times
        if times.seconds(rows, 0) is None:
            return 0
        tokens, best, rate = self._tokens(), 0, 0.0
        for k in self._depths:
            if (seconds := times.seconds(rows, k)) is not None and tokens[k] > seconds * rate * (1 if best else 1 + self.MARGIN):
                best, rate = k, tokens[k] / seconds
        self._choices[_bucket(rows)] = _Choice(best, rate)
        may_be = self._tokens(self.HOPED)
        if self._times_are_known:  # fewer drafts than the best bring to light nothing but their time
            may_be[:best] = tokens[:best]
        left_s = self.TRIALS * (self._elapsed_s + self.HEAD_START * times.at_least(rows, 0)) - self._lost_s
        hoped, trial = max(
            (
                (may_be[k] / times.at_least(rows, k), k)
                for k in self._depths
                if k != best and (times.at_most(rows, k) - 1 / rate <= left_s)
            ),
            default=(0.0, 0),
        )
        if hoped <= rate * (1 + self.MARGIN):
            return best
        self._trial, self._trial_steps = trial, self.PATIENCE
        return trial

    def _tokens(self, hoped: float = 0.0) -> list[float]:
        """Expected of a row, by number of drafts from 0 on. Hopes are for drafts, not for how often a step is in an easy place."""
        seen = self._rates()
        rates = self._rates(hoped) if hoped else seen
        tokens, stays, survival, behind = [1.0], 1.0, 1.0, 1.0
        for k in range(1, 1 + self._most):
            if k > 1:  # behind a first draft that is right, so many are right, too, and all of them so often
                stays, survival = stays * seen[k], survival * rates[k]
                behind += survival
            # It is right in p = after_wrong + p * stays * (after_right - after_wrong): of p * stays all drafts were right.
            first = min(1.0, rates[0] / (1.0 - stays * (seen[1] - seen[0])))
            tokens.append(1.0 + first * behind)
        return tokens

    def _rates(self, hoped: float = 0.0) -> list[float]:
        """How often each kind is right; as often as that before it, as far as it was not seen."""
        right, weight, rates = 0.0, 1.0, []
        for checked, accepted in zip(self._checked, self._accepted):
            if hoped and checked > self.SEEN:
                checked, accepted = self.SEEN, accepted * self.SEEN / checked
            right = (accepted + (hoped or weight * right)) / (checked + (hoped or weight))
            weight = self.LIKE
            rates.append(right)
        return rates


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
        self._pace, self._paces = 1.0, dict[int, float]()  # factors of all lines, and of all means by number of rows, about

    def add(self, rows: int, k: int, step_s: float) -> bool:
        """Takes in a step; not the first of its kind, in which kernels may have been compiled. The first with just so many rows may
        have been recorded: it counts only if it was not long."""
        self._num_steps += 1
        is_new = (rows, k) not in self._seen
        self._seen.add((rows, k))
        if (kind := (_bucket(rows), k)) not in self._means:
            self._means[kind] = _Mean()
            return False
        if is_new and (not self._lines or step_s > (1.5 * self._at(rows, k) if k in self._lines else self.at_most(rows, k))):
            return False
        mean, before_s = self._means[kind], self._at(rows, k) if k in self._lines else step_s
        is_usual = mean.count * self.WEIGHT >= 1 and self._num_steps - mean.last < 10
        step_s = min(step_s, 2 * before_s)
        line, pace, beside = self._lines.setdefault(k, _Line()), self._pace, self._paces.get(kind[0], 1.0)
        line.add(rows, step_s / pace, before_s / pace)
        mean.count, mean.last = self._count(rows, k) + 1, self._num_steps
        mean.seconds += max(self.WEIGHT, 1 / mean.count) * (step_s / beside - mean.seconds)
        if is_usual:  # and not for its mean being new: what makes these steps longer (texts do) makes the others longer, too
            factor = self._at(rows, k) / before_s
            self._pace, self._paces[kind[0]] = factor * pace, factor * beside
            line.scale(1 / factor)
            mean.seconds /= factor
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
            drafts_s = self._pace * (line.at(line.mean) - none.at(line.mean)) * min(1.0, rows / line.mean)
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
        beside = self._paces.get(_bucket(rows), 1.0)
        return (self.LINE * self._pace * self._lines[k].at(rows) + mean.count * beside * mean.seconds) / (self.LINE + mean.count)

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

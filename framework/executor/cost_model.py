"""How long a step takes on a stage of a simulated device: the times of its kernel calls, summed."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .calls import ATTENTION_ROWS, Call, Rows
from .encoders import Item
from .timers import Timer, Timers

CONTEXT_GRID = 64
"""Mean contexts at which decode attention is timed are multiples of it, and the ends: what every row has, and a full window."""


class DecodeRows:
    """Rows that decode equally many tokens each. contexts: int64 [R], tokens in the cache, the new ones included."""

    __slots__ = ("_means", "contexts", "count", "tokens")

    def __init__(self, tokens: int, contexts: np.ndarray) -> None:
        self.tokens, self.contexts, self.count = tokens, contexts, len(contexts)
        self._means: dict[int, float] = {}

    def mean_context(self, window: int) -> float:
        """As far as the window (0: none) lets the rows see."""
        mean = self._means.get(window)
        if mean is None:
            seen = np.minimum(self.contexts, window + self.tokens - 1) if window else self.contexts
            mean = self._means[window] = int(seen.sum()) / self.count
        return mean


@dataclass(slots=True)
class StepWork:
    """What a step computes.

    num_tokens   of all rows, and of padding rows up to the size of the recording
    num_logits   rows of logits, each of which a token is sampled from
    decodes      rows of one token each, and of one and its drafts
    chunk_lens, chunk_ctx_lens   of each row of a prompt: new tokens, and tokens in the cache, the new ones included
    recorded     the kernels up to the logits are replayed, in one launch
    num_visual   of the tokens, those that take the weights of images, where there are such weights
    whole_lens, whole_ctx_lens   of each image or canvas whose tokens see each other: tokens, and those up to its last
    whole_window_lens   likewise, of canvases in layers with windows, which attend to copies of what they see there
    encoded      each item that is encoded: one by one, and never in a recording
    num_taken    tokens of the cache that are copied for the latter
    stored       likewise, of each request that takes its seat, the vectors that layers make keys and values of
    cross_decodes, cross_lens, cross_ctx_lens   the same tokens, in rows that see as much of what an encoder gave, which is their
                 context; none where nothing attends to it
    """

    num_tokens: int
    num_logits: int
    decodes: Sequence[DecodeRows]
    chunk_lens: Sequence[int] = ()
    chunk_ctx_lens: Sequence[int] = ()
    recorded: bool = False
    num_visual: int = 0
    whole_lens: Sequence[int] = ()
    whole_ctx_lens: Sequence[int] = ()
    whole_window_lens: Sequence[int] = ()
    encoded: Sequence[Item] = ()
    stored: Sequence[int] = ()
    cross_decodes: Sequence[DecodeRows] = ()
    cross_lens: Sequence[int] = ()
    cross_ctx_lens: Sequence[int] = ()
    num_taken: int = 0

    @property
    def numbers(self) -> tuple[tuple[Rows, int], ...]:
        """What calls have for lengths that need no contexts -> their number."""
        return (
            ("taken", self.num_taken),
            ("language", self.num_tokens - self.num_visual),
            ("vision", self.num_visual),
            ("tokens", self.num_tokens),
            ("logits", self.num_logits),
            ("samples", self.num_logits),
        )

    @property
    def items(self) -> Iterator[tuple[Rows, Item]]:
        """What has calls of its own, each."""
        yield from (("encoded", item) for item in self.encoded)
        yield from (("stored", count) for count in self.stored)


@dataclass(slots=True)
class OpTime:
    """Seconds that an op took so far, in how many calls."""

    seconds: float = 0.0
    calls: int = 0


class _Priced:
    """Calls whose lengths are one number: what they take together, and how often that number came."""

    __slots__ = ("launches", "parts", "seconds", "uses")

    def __init__(self, parts: list[tuple[str, int, float]]) -> None:
        self.parts, self.uses = parts, 0
        self.launches, self.seconds = sum(count for _, count, _ in parts), sum(seconds for _, _, seconds in parts)


class _Attention:
    """``count`` equal calls of attention per step, and what they took."""

    __slots__ = ("_timed", "call", "count", "op", "taken", "timer", "window")

    def __init__(self, call: Call, count: int, timer: Timer) -> None:
        self.call, self.op, self.count, self.timer = call, call.name, count, timer
        self.window = int(dict(call.dims).get("window", 0))
        self.taken, self._timed = OpTime(), dict[tuple[int, int, int], float]()

    def decode(self, rows: DecodeRows, counted: bool = True) -> float:
        seconds = self.decode_s(rows.count, rows.tokens, rows.mean_context(self.window))
        if counted:
            self.took(seconds, 1)
        return seconds

    def decode_s(self, count: int, tokens: int, mean_context: float) -> float:
        """Seconds by the number of rows and their mean context: timed once at contexts of a grid, and interpolated. Not counted."""
        low, high = self._nodes(tokens, mean_context)
        seconds = self._at(count, tokens, low)
        if mean_context > low:
            seconds += (self._at(count, tokens, high) - seconds) * (mean_context - low) / (high - low)
        return self.count * seconds

    def ahead(self, rows: DecodeRows) -> Iterator[float]:
        """Seconds of these rows of one token, and of the steps after that, each with one token more per row. Not counted."""
        if self.window:
            for more in itertools.count():
                yield self.decode_s(rows.count, 1, DecodeRows(1, rows.contexts + more).mean_context(self.window))
        mean = rows.mean_context(0)
        while True:
            low, high = self._nodes(1, mean)
            at_low, at_high = self._at(rows.count, 1, low), self._at(rows.count, 1, high)
            while mean < high:
                yield self.count * (at_low + (at_high - at_low) * max(mean - low, 0) / (high - low))
                mean += 1.0

    def prefill(self, lens: Sequence[int], ctx_lens: Sequence[int]) -> float:
        seconds = self.prefill_s(lens, ctx_lens)
        self.took(seconds, 1)
        return seconds

    def prefill_s(self, lens: Sequence[int], ctx_lens: Sequence[int]) -> float:
        """Not counted. Tokens that see nothing, as before an image, take as long as those that see one position."""
        return self.count * self.timer(lens, [max(context, 1) for context in ctx_lens])

    def took(self, seconds: float, num_steps: int) -> None:
        """Counts what steps took."""
        self.taken.seconds += seconds
        self.taken.calls += self.count * num_steps

    def _nodes(self, tokens: int, mean_context: float) -> tuple[int, int]:
        """The contexts around a mean at which calls are timed. Before a row's new tokens at least one is in the cache."""
        cell = int(mean_context // CONTEXT_GRID)
        low, high = (max((cell + i) * CONTEXT_GRID, tokens + 1) for i in (0, 1))
        longest = self.window + tokens - 1 if self.window else high
        return min(low, longest), min(high, longest)

    def _at(self, count: int, tokens: int, context: int) -> float:
        seconds = self._timed.get((count, tokens, context))
        if seconds is None:
            if tokens == 1:
                seconds = self.timer.of_decode(count, context)
            else:
                seconds = self.timer([tokens] * count, [context] * count)
            self._timed[count, tokens, context] = seconds
        return seconds


class DecodesAhead:
    """Steps that only decode, each with one token more per row than the one before. They count only once they are taken."""

    def __init__(self, priced: list[_Priced], own: list[_Attention], cross: list[_Attention], work: StepWork) -> None:
        """own: whose contexts grow; cross: whose do not."""
        self._priced, self._attentions, recorded = priced, own + cross, work.recorded
        self._fixed_s = sum(part.seconds for part in priced)
        (rows,) = work.decodes
        self._to_come = [attention.ahead(rows) for attention in own]
        for rows in work.cross_decodes:
            self._to_come += [itertools.repeat(attention.decode(rows, counted=False)) for attention in cross]
        self._attention_s: list[list[float]] = [[] for _ in self._attentions]
        *others, samples = priced
        self.launches = samples.launches + int(recorded)
        if not recorded:
            self.launches += sum(part.launches for part in others) + sum(attention.count for attention in self._attentions)

    def next_s(self) -> float:
        """Seconds on the device of the next step."""
        seconds = self._fixed_s
        for to_come, taken in zip(self._to_come, self._attention_s):
            found = next(to_come)
            taken.append(found)
            seconds += found
        return seconds

    def take(self, num_steps: int) -> None:
        """Counts the first steps among those that were done."""
        for part in self._priced:
            part.uses += num_steps
        for attention, taken in zip(self._attentions, self._attention_s):
            attention.took(sum(taken[:num_steps]), num_steps)


class StageCost:
    """The calls of one device of a pipeline stage, bound to their times. Equal lengths are timed once."""

    def __init__(self, calls: Counter[Call], dtype: str, timers: Timers) -> None:
        self._calls: dict[str, list[tuple[Call, int, tuple[Timer, Timer]]]] = defaultdict(list)
        self._attention: dict[str, list[_Attention]] = {kind: [] for kind in ATTENTION_ROWS}
        for call, count in calls.items():
            dims = dict(call.dims)
            eager = timers.bind(call.op, dtype, {**dims, "graph": 0} if call.elements else dims, call.name)
            if call.rows in self._attention:
                self._attention[call.rows].append(_Attention(call, count, eager))
                continue
            recorded = timers.bind(call.op, dtype, {**dims, "graph": 1}) if call.elements else eager
            self._calls[call.rows].append((call, count, (eager, recorded)))
        self._priced: dict[tuple[str, Item, bool], _Priced] = {}

    def step(self, work: StepWork, counted: bool = True) -> tuple[float, int]:
        """(seconds on the device, launches). counted: it is done; else it is only asked what it would cost, without prompts."""
        assert counted or not work.chunk_lens
        recorded = work.recorded
        seconds, launches = 0.0, int(recorded)
        for rows, number in work.numbers:
            if number:
                priced = self._priced.get((rows, number, recorded)) or self._price(rows, number, recorded)
                priced.uses += counted
                seconds += priced.seconds
                if not recorded or rows == "samples":
                    launches += priced.launches
        for rows, item in work.items:
            priced = self._priced.get((rows, item, False)) or self._price(rows, item, False)
            priced.uses += counted
            seconds += priced.seconds
            launches += priced.launches
        for decodes, attentions in self._decodes(work):
            for attention in attentions:
                seconds += attention.decode(decodes, counted)
                launches += 0 if recorded else attention.count
        for lens, ctx_lens, attentions in self._chunks(work):
            for attention in attentions:
                seconds += attention.prefill(lens, ctx_lens)
                launches += attention.count
        return seconds, launches

    def _decodes(self, work: StepWork) -> Iterator[tuple[DecodeRows, list[_Attention]]]:
        """Rows that decode, and what attends for them."""
        for rows in work.decodes:
            yield rows, self._attention["decode"]
        for rows in work.cross_decodes:
            yield rows, self._attention["cross_decode"]

    def _chunks(self, work: StepWork) -> Iterator[tuple[Sequence[int], Sequence[int], list[_Attention]]]:
        """Rows of prompts and their contexts, and what attends to them."""
        if work.chunk_lens:
            yield work.chunk_lens, work.chunk_ctx_lens, self._attention["prefill"]
            yield work.cross_lens, work.cross_ctx_lens, self._attention["cross_prefill"]
        if work.whole_lens:
            for windowed, ctx_lens in ((False, work.whole_ctx_lens), (True, work.whole_window_lens)):
                own = [attention for attention in self._attention["whole"] if attention.call.windowed == windowed]
                yield work.whole_lens, ctx_lens, own

    def ahead(self, work: StepWork) -> DecodesAhead:
        """``work``, that of a step that only decodes, and the steps after it, if each adds a token to every row."""
        priced = [self._priced.get((*key, work.recorded)) or self._price(*key, work.recorded) for key in work.numbers if key[1]]
        return DecodesAhead(priced, self._attention["decode"], self._attention["cross_decode"], work)

    def calls(self, work: StepWork) -> Iterator[tuple[Call, int, float, Sequence[int], Sequence[int]]]:
        """(call, how often, seconds together, q_lens, ctx_lens) of a step that was done."""
        for rows, number in work.numbers:
            if number:
                parts = self._priced[rows, number, work.recorded].parts
                for (call, count, _), (_, _, seconds) in zip(self._calls[rows], parts, strict=True):
                    yield call, count, seconds, [number] if call.elements else call.lens(number), ()
        for rows, item in work.items:
            parts = self._priced[rows, item, False].parts
            for (call, count, _), (_, _, seconds) in zip(self._calls[rows], parts, strict=True):
                lens = call.lens(item)
                yield call, count, seconds, lens, lens if call.op == "paged_attention_prefill" else ()
        for decodes, attentions in self._decodes(work):
            for each in attentions:
                seconds = each.decode_s(decodes.count, decodes.tokens, decodes.mean_context(each.window))
                yield each.call, each.count, seconds, [decodes.tokens] * decodes.count, decodes.contexts.tolist()
        for chunk_lens, ctx_lens, attentions in self._chunks(work):
            for each in attentions:
                yield each.call, each.count, each.prefill_s(chunk_lens, ctx_lens), chunk_lens, ctx_lens

    def add_op_times(self, found: dict[str, OpTime]) -> None:
        """What every op took so far, added to ``found``."""
        for priced in self._priced.values():
            for op, count, seconds in priced.parts:
                found[op].seconds += priced.uses * seconds
                found[op].calls += priced.uses * count
        for attention in itertools.chain.from_iterable(self._attention.values()):
            found[attention.op].seconds += attention.taken.seconds
            found[attention.op].calls += attention.taken.calls

    def _price(self, rows: str, number: Item, recorded: bool) -> _Priced:
        """number: of rows that the lengths of calls are; of rows that are encoded, the item."""
        parts = []
        for call, count, timers in self._calls[rows]:
            lens = call.lens(number)
            parts.append((call.name, count, count * timers[recorded](lens, lens)))
        priced = self._priced[rows, number, recorded] = _Priced(parts)
        return priced

"""The passes of a chain of drafts, recorded as the model's steps are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...engine.attention_rows import MAX_DECODE_TOKENS
from ...models.batch import ForwardBatch
from ..batches import Batches
from ..decode_graphs import DecodeRows, Recorder, Workspaces
from ..devices import Replay
from ..step_rows import StepRows
from .proposer import Guesser, Verified


@dataclass
class _Buffers:
    """What passes hand on, of the rows of ``rows``: last int64 [size], as Passes has it; states [size, width] of the guesser at the
    slots that were read last; hidden [tokens, input_width] of the model. They lie outside the recordings, which share their
    memory."""

    rows: DecodeRows
    last: torch.Tensor
    states: torch.Tensor
    hidden: torch.Tensor


class ChainGraphs:
    """Per batch size and number of tokens that a row had in the model's step, a recording of the first pass; per batch size those
    of the logits after it, and of any further pass with its logits."""

    def __init__(self, guesser: Guesser, batches: Batches, recorder: Recorder, query_lens: list[int]) -> None:
        rows, most = recorder.rows, recorder.sizes[-1]
        query_lens = [n for n in query_lens if n + 1 - guesser.ahead <= MAX_DECODE_TOKENS]
        device = rows.seats.device
        self._buffers = buffers = _Buffers(
            rows,
            torch.ones(most, dtype=torch.int64, device=device),
            torch.zeros(most, guesser.width, dtype=guesser.dtype, device=device),
            torch.zeros(most * max(query_lens), guesser.input_width, dtype=guesser.dtype, device=device),
        )
        self._recorder = recorder
        workspaces: Workspaces = [{}]
        passes = _Functions(guesser, batches, buffers, workspaces)
        self._follow = recorder.record(passes.follow, query_lens, workspaces)
        self._logits = recorder.record(passes.logits, (1,), workspaces)
        self._extend = recorder.record(passes.extend, (1,), workspaces)

    def fits(self, step: Verified) -> bool:
        """Whether the rows that sampled are no more than the largest recording holds."""
        return len(step.seats) <= self._recorder.sizes[-1]

    def follows(self, step: Verified) -> bool:
        """Whether the first pass was recorded for such a step."""
        return step.recorded is not None and tuple(step.recorded.shape[:2]) in self._follow

    def follow(self, step: Verified) -> _Replays:
        """The first pass, over rows that are in the buffers because the model's step was replayed, too."""
        assert step.recorded is not None
        size, query_len, _ = step.recorded.shape
        hidden = self._buffers.hidden[: size * query_len]
        if hidden.shape[1]:
            hidden.copy_(step.recorded.flatten(0, 1))
        return self._passes(step, self._follow[size, query_len])

    def start(self, step: Verified, states: torch.Tensor) -> _Replays:
        """After a first pass that was not recorded and ended with ``states`` [R', width]."""
        rows = step.rows
        self._buffers.rows.fill(StepRows.of(rows.seats[rows.sampled], rows.counts[rows.sampled], step.bounds, rows.sampled))
        self._buffers.states[: len(states)].copy_(states)
        return self._passes(step)

    def _passes(self, step: Verified, first: Replay | None = None) -> _Replays:
        count = len(step.seats)
        last = self._buffers.last[:count]
        last.copy_(step.newest)
        if first is not None:
            first()
        size = self._recorder.size(count)
        return _Replays(last, self._logits[size, 1], self._extend[size, 1])


class _Replays:
    """Recorded passes."""

    def __init__(self, last: torch.Tensor, logits: Replay, extend: Replay) -> None:
        self.last, self._logits, self._extend = last, logits, extend

    def logits(self) -> torch.Tensor:
        """As Passes has it."""
        return self._logits()[: len(self.last)]

    def extend(self) -> torch.Tensor:
        """As Passes has it."""
        return self._extend()[: len(self.last)]


@dataclass
class _Functions:
    """The functions to record, of (size, query_len). They do not hold the recordings."""

    guesser: Guesser
    batches: Batches
    buffers: _Buffers
    workspaces: Workspaces

    def follow(self, size: int, query_len: int) -> Replay:
        """Leaves the states at the slots of the newest tokens."""
        rows, guesser, hidden = self.buffers.rows, self.guesser, self.buffers.hidden[: size * query_len]
        first, lengths, last, kept = rows.first[:size], rows.lengths[:size], self.buffers.last[:size], self.buffers.states[:size]
        reads_newest = not guesser.ahead
        count = query_len + reads_newest
        build, ends = self._build(size, count), torch.arange(count - 1, size * count, count, device=last.device)

        def follow() -> None:
            batch = build(first, lengths + lengths.clamp_max(1) if reads_newest else lengths)
            guesser.begin_step(batch)
            states = guesser.follow(batch, hidden)
            num_wrong = lengths - last
            kept.copy_(states[(ends - num_wrong).clamp_(0, size * count - 1)])  # padding has any

        return follow

    def logits(self, size: int, _: int) -> Replay:
        """Logits [size, V]."""
        guesser, kept = self.guesser, self.buffers.states[:size]
        return lambda: guesser.logits(kept)

    def extend(self, size: int, _: int) -> Replay:
        """Logits [size, V] after a pass over one guess of each row."""
        guesser, rows, last, kept = self.guesser, self.buffers.rows, self.buffers.last[:size], self.buffers.states[:size]
        build, lengths = self._build(size, 1), rows.lengths[:size]

        def extend() -> torch.Tensor:
            slots = last - guesser.ahead
            batch = build(slots, (slots + 1).int() * lengths.clamp_max(1))  # 0 of padding
            guesser.begin_step(batch)
            states = guesser.extend(batch, kept)
            kept.copy_(states)
            return guesser.logits(states)

        return extend

    def _build(self, size: int, query_len: int) -> Callable[[torch.Tensor, torch.Tensor], ForwardBatch]:
        rows = self.buffers.rows
        return rows.build(self.batches, size, query_len, self.workspaces, max_seq_len=rows.requests.tokens.shape[1])

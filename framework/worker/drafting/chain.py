"""Drafts one behind the other: a first pass over what the model read in the step, then one per further draft."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from ..batches import Batches
from ..decode_graphs import Recorder
from ..step_rows import StepRows
from .cache import DraftCache
from .chain_graphs import ChainGraphs
from .proposer import DrawDrafts, Guesser, Verified


class Passes(Protocol):
    """Those of one step's drafts. last: int64 [R'], position of the last token that a row knows or has guessed."""

    last: torch.Tensor

    def logits(self) -> torch.Tensor:
        """[R', V], of what follows the tokens that the first pass has read."""

    def extend(self) -> torch.Tensor:
        """The same after one pass more, over the guesses at ``last``."""


class Chain:
    """The first pass reads every token that the model read in the step, wrong drafts too, and the one that it sampled: so there is
    no account of what was read. Where all drafts were right, the last of them is in the model's cache, but not in the guesser's."""

    def __init__(self, guesser: Guesser, cache: DraftCache, draw: DrawDrafts) -> None:
        self._guesser, self._batches, self._draw, self.copy_blocks = guesser, cache.batches, draw, cache.copy_blocks
        self._graphs: ChainGraphs | None = None

    def record(self, recorder: Recorder, query_lens: list[int]) -> None:
        """As DeviceProposer has it."""
        if self._guesser.width:
            self._graphs = ChainGraphs(self._guesser, self._batches, recorder, query_lens)

    def propose(self, step: Verified, count: int) -> None:
        """As DeviceProposer has it."""
        wanted, tokens, seats = count > 0 and len(step.rows.sampled) > 0, self._batches.rows.tokens, step.seats.int()
        passes = self._first_pass(step, wanted)
        for nth in range(count if wanted else 0):
            logits = passes.extend() if nth else passes.logits()
            passes.last += 1
            tokens[step.seats, passes.last] = self._draw(logits, seats, passes.last)

    def _first_pass(self, step: Verified, wanted: bool) -> Passes:
        if self._graphs is not None and self._graphs.follows(step):
            return self._graphs.follow(step)
        rows, ahead = step.rows, self._guesser.ahead
        newest = np.minimum(rows.num_logits, 1) * (wanted and not ahead)
        rows = StepRows.of(rows.seats, rows.counts + newest, rows.first, rows.num_logits)
        batch, _ = self._batches.build(rows, step.first)
        self._guesser.begin_step(batch)
        states = self._guesser.follow(batch, step.hidden)
        states = states[step.flat_index(rows, step.newest - ahead)] if wanted else states
        if self._graphs is not None and wanted and self._graphs.fits(step):
            return self._graphs.start(step, states)
        return _Eager(self._guesser, self._batches, step, states)


class _Eager:
    """Passes that are not recorded."""

    def __init__(self, guesser: Guesser, batches: Batches, step: Verified, states: torch.Tensor) -> None:
        self._guesser, self._batches, self._states, self.last = guesser, batches, states, step.newest.clone()
        self._seats, self._bounds = step.rows.seats[step.rows.sampled], step.bounds - guesser.ahead

    def logits(self) -> torch.Tensor:
        """As Passes has it."""
        return self._guesser.logits(self._states)

    def extend(self) -> torch.Tensor:
        """As Passes has it."""
        self._bounds, ones = self._bounds + 1, np.ones_like(self._bounds)
        batch, _ = self._batches.build(StepRows.of(self._seats, ones, self._bounds, ones), self.last - self._guesser.ahead)
        self._guesser.begin_step(batch)
        self._states = self._guesser.extend(batch, self._states)
        return self.logits()

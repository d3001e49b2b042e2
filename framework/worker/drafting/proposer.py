"""What makes drafts on the device, after a step, for the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ...models.batch import ForwardBatch
from ..decode_graphs import Recorder
from ..step_rows import StepRows
from ..transfer import to_device

DrawDrafts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [R, V], seats int32 [R], positions int64 [R]) -> tokens int64 [R]; see ``Sampler.draw_drafts``."""


@dataclass
class Verified:
    """A step whose tokens are known to the device, and stand in ``RequestRows.tokens``.

    rows     of the step, those that sampled no token among them
    first    int64 [R] on the device: tokens in the cache before the step; None where ``rows.first`` is exact
    hidden   [T, H]: what the model's last layer gave for each token of the step; see ``Model.forward``
    recorded [size, query_len, H]: the same as the recording left it that gave them, whose buffers still hold the step's rows (see
             ``DecodeGraphs.run``); None if there was none
    seats    int64 [R'] on the device, of the rows that sampled (``rows.sampled``)
    newest   int64 [R'] on the device: position of the token that each of these sampled last, the first that no cache holds
    bounds   int64 [R'] on the host: the same, or more
    """

    rows: StepRows
    first: torch.Tensor | None
    hidden: torch.Tensor
    recorded: torch.Tensor | None
    seats: torch.Tensor
    newest: torch.Tensor
    bounds: np.ndarray

    def flat_index(self, rows: StepRows, position: torch.Tensor) -> torch.Tensor:
        """int64 [R']: which of the tokens of ``rows``, the step's or as long as these and longer, stands at a position of each row
        that sampled."""
        device = self.newest.device
        first = to_device(rows.first, device) if self.first is None else self.first
        return to_device(rows.bounds[rows.sampled], device) + position - first[to_device(rows.sampled, device)]


class DeviceProposer(Protocol):
    """Sees each step, in their order; keeps what it knows of a token at the token's place in the cache, so that blocks can be
    shared, copied and lost without its knowledge."""

    def propose(self, step: Verified, count: int) -> None:
        """Writes ``count`` drafts into ``RequestRows.tokens``, behind the newest token of each row that sampled; with 0, only takes
        in the step."""

    def copy_blocks(self, group: int, source: torch.Tensor, destination: torch.Tensor) -> None:
        """Copies what it keeps of tokens in blocks of a KV group, int64 [n] each."""

    def record(self, recorder: Recorder, query_lens: list[int]) -> None:
        """From now on replays what it does behind steps of decodes, of so many tokens a row."""


class Guesser(Protocol):
    """A model that guesses the next token, and then the next from its own guess.

    ahead        0: at a slot it reads the token there; 1: the token after it, and the model's state there
    input_width  of the model's states, as far as it reads them
    width        of its own, in its ``dtype``; 0: unknown, so that its passes cannot be recorded
    """

    ahead: int
    input_width: int
    width: int
    dtype: torch.dtype

    def begin_step(self, batch: ForwardBatch) -> None:
        """Once per pass, before it reads."""

    def follow(self, batch: ForwardBatch, hidden: torch.Tensor) -> torch.Tensor:
        """Reads tokens that the model knows, where that gave [T, input_width]; writes its cache. Own states [T, width]."""

    def extend(self, batch: ForwardBatch, states: torch.Tensor) -> torch.Tensor:
        """Reads a guess of each row, whose state before it was [R, width]. The next states."""

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[R, width] -> [R, V] over the model's tokens, of which there may be some that it never guesses."""

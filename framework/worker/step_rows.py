"""The rows of one step, on their way from the scheduler's lists to tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..engine.attention_rows import canvas_rows
from .transfer import all_to_device


@dataclass
class StepRows:
    """The rows of a step on the host: int64 [R] each. first, lengths: tokens in the cache before and after it, at most where drafts
    of steps in flight are not counted yet; bounds [R + 1]: row r's tokens are bounds[r] : bounds[r + 1]; num_logits as in
    StepInput."""

    seats: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    bounds: np.ndarray
    num_logits: np.ndarray

    @classmethod
    def of(cls, seats: np.ndarray, counts: np.ndarray, first: np.ndarray, num_logits: np.ndarray) -> StepRows:
        """Rows of ``counts`` tokens behind the ``first`` in the cache."""
        bounds = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=bounds[1:])
        return cls(seats, counts, first, first + counts, bounds, num_logits)

    def by_canvas(self, size: int, causal: np.ndarray) -> StepRows:
        """The same tokens, in rows as ``canvas_rows`` has them."""
        row_of, counts, first = canvas_rows(self.counts, self.first, size, causal)
        return StepRows.of(self.seats[row_of], counts, first, np.zeros_like(counts))

    @cached_property
    def sampled(self) -> np.ndarray:
        """Rows that yield tokens."""
        return np.flatnonzero(self.num_logits)

    @cached_property
    def has_drafts(self) -> bool:
        """Whether any row has drafts checked."""
        return bool(self.num_logits.max(initial=0) > 1)

    @cached_property
    def logit_rows(self) -> np.ndarray:
        """Of each logit row, the row of the step; logit rows R' in the order of the step's."""
        return np.repeat(self.sampled, self.num_logits[self.sampled]) if self.has_drafts else self.sampled

    def logit_rows_of(self, rows: list[int]) -> np.ndarray:
        """The logit rows of some rows of the step."""
        chosen = np.zeros(len(self.num_logits), dtype=bool)
        chosen[rows] = True
        return np.flatnonzero(chosen[self.logit_rows])

    @cached_property
    def nth_logit(self) -> np.ndarray:
        """Of each logit row, which it is among its row's: as many drafts stand before it."""
        if not self.has_drafts:
            return np.zeros_like(self.sampled)
        counts = self.num_logits[self.sampled]
        return np.arange(len(self.logit_rows)) - np.repeat(np.cumsum(counts) - counts, counts)

    @cached_property
    def logit_grid(self) -> np.ndarray:
        """The logit rows of each row that yields tokens, the last repeated: [R, most of a row]."""
        counts = self.num_logits[self.sampled]
        return (np.cumsum(counts) - counts)[:, None] + np.minimum(np.arange(counts.max()), counts[:, None] - 1)

    @cached_property
    def logit_tokens(self) -> np.ndarray:
        """Of each logit row, the token of the step that it comes from."""
        return self.bounds[self.logit_rows + 1] - self.num_logits[self.logit_rows] + self.nth_logit

    @cached_property
    def logit_positions(self) -> np.ndarray:
        """Of each logit row, the index of the token that it decides, in its sequence; at most, as ``lengths``."""
        return self.lengths[self.logit_rows] - self.num_logits[self.logit_rows] + self.nth_logit + 1


@dataclass
class Masks:
    """What some of the logit rows may take: rows int64 [M] among them, words int32 [M, ceil(V/32)] as the bitmask of
    ``apply_penalties``."""

    rows: np.ndarray
    words: np.ndarray


@dataclass
class DraftRows:
    """Which logit rows check drafts, of R rows that yield tokens, int64 on the device: nth [R'] as ``StepRows.nth_logit``; row_of
    [R'] which of the R a logit row belongs to; grid [R, 1 + n] the logit rows of each, the last repeated; is_draft, bool of that
    shape: which of these check a draft; num_drafts [R]."""

    nth: torch.Tensor
    row_of: torch.Tensor
    grid: torch.Tensor
    is_draft: torch.Tensor
    num_drafts: torch.Tensor

    @classmethod
    def of(cls, rows: StepRows, device: torch.device) -> DraftRows:
        """Of a step."""
        num_drafts, grid = rows.num_logits[rows.sampled] - 1, rows.logit_grid
        row_of = np.repeat(np.arange(len(num_drafts)), num_drafts + 1)
        is_draft = np.arange(grid.shape[1]) < num_drafts[:, None]
        return cls(*all_to_device((rows.nth_logit, row_of, grid, is_draft, num_drafts), device))

    def accepted_only(self, tokens: torch.Tensor, accepted: torch.Tensor) -> torch.Tensor:
        """tokens int32 [R'] with -1 for those behind the first wrong draft; accepted int64 [R]."""
        return torch.where(self.nth <= accepted[self.row_of], tokens, -1)


@dataclass
class SampleRows:
    """The logit rows of a step: seats and positions int64 [R'] on the host, and the same on the device (row_to_seat int32, position
    int64). A position is the absolute index of the token to be sampled; on the host it may be up to ``ahead`` more than that.
    masks: None if every row may take all. drafts: None if there are none; drafts_from_host: who made them. Of canvases that each
    pass draws anew, on the device: heat f32 [R'], which divides the logits once penalties are in, and noise int64 [R'], the number
    that each row is drawn by; None: its position."""

    seats: np.ndarray
    positions: np.ndarray
    row_to_seat: torch.Tensor
    position: torch.Tensor
    masks: Masks | None = None
    drafts: DraftRows | None = None
    drafts_from_host: bool = False
    ahead: int = 0
    heat: torch.Tensor | None = None
    noise: torch.Tensor | None = None

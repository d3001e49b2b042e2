"""Canvases that each pass draws anew: what the model said of them in the pass before, and what a pass is drawn with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..engine.attention_rows import seen_from
from ..engine.redrawing import Redraws
from ..engine.step import StepInput
from ..models.batch import GroupBatch, WholeTokens
from ..plan import AttentionMeta
from .step_rows import StepRows
from .transfer import all_to_device, to_device

_PASS_BITS = 32
"""Positions of tokens take fewer."""


class Canvases:
    """Of the requests that hold a seat, one each.

    said  [seats, canvas_size, H]: what the model said of each token; of no meaning before the first pass
    """

    def __init__(
        self, redraws: Redraws, num_seats: int, canvas_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._redraws, self._device, self._canvas_size = redraws, device, canvas_size
        self.said = torch.zeros(num_seats, canvas_size, hidden_size, dtype=dtype, device=device)
        self._starts = np.full(num_seats, -1, dtype=np.int64)
        self._num_passes = np.zeros(num_seats, dtype=np.int64)
        self._seats = np.zeros(0, dtype=np.int64)

    def apply(self, step: StepInput) -> None:
        """Requests that take a seat begin their canvas."""
        self._starts[[new.seat for new in step.new]] = -1

    def begin(self, rows: StepRows) -> torch.Tensor:
        """The canvases of a step's rows, in order, have one more pass: said [E, H] in the one before, 0 in the first."""
        seats = self._seats = rows.seats[rows.sampled]
        starts = rows.lengths[rows.sampled] - self._canvas_size
        is_first = self._starts[seats] != starts
        self._num_passes[seats] = np.where(is_first, 0, self._num_passes[seats] + 1)
        self._starts[seats] = starts
        said = self.said[to_device(seats, self._device)]
        return said.masked_fill_(to_device(is_first, self._device)[:, None, None], 0).flatten(0, 1)

    def heat(self) -> torch.Tensor:
        """f32 [E]: temperatures of the pass."""
        return to_device(self._of_tokens(self._redraws.heat(self._num_passes[self._seats])), self._device)

    def noise(self, position: torch.Tensor) -> torch.Tensor:
        """int64 [E]: by which number each token, at ``position``, is drawn, another in each pass."""
        return position + to_device(self._of_tokens(self._num_passes[self._seats] << _PASS_BITS), self._device)

    def keep(self, said: torch.Tensor) -> None:
        """[E, H], for the next pass."""
        self.said[to_device(self._seats, self._device)] = said.unflatten(0, (-1, self._canvas_size))

    def _of_tokens(self, of_rows: np.ndarray) -> np.ndarray:
        return np.repeat(of_rows, self._canvas_size)


def add_canvases(
    groups: Sequence[GroupBatch],
    windows: Sequence[int | None],
    rows: StepRows,
    tables: tuple[np.ndarray, torch.Tensor],
    block_size: int,
    workspaces: Sequence[dict],
) -> None:
    """Lets the canvases of a step see themselves and what is before them, where layers have a window as many tokens before the
    canvas as its first token sees. windows: of the groups; tables: int32 [groups, R, blocks] on the host and on the device."""
    on_host, on_device = tables
    device, sampled = on_device.device, rows.sampled
    if not len(sampled):
        return
    sizes, lengths = rows.num_logits[sampled], rows.lengths[sampled]
    cu_q = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    tokens, cu, ends, row = all_to_device((rows.logit_tokens, cu_q, lengths.astype(np.int32), sampled), device)
    most = int(sizes.max())
    for group, window, table, host, workspace in zip(groups, windows, on_device, on_host, workspaces, strict=True):
        first = seen_from(lengths, sizes, window) if window is not None else np.zeros_like(lengths)
        if not first.any():
            group.whole = WholeTokens(tokens, AttentionMeta(cu, ends, table[row], most, int(lengths.max()), workspace))
            continue
        counts = lengths - first
        width = -(-int(counts.max()) // block_size)
        places = np.minimum(first[:, None] + np.arange(width * block_size), lengths[:, None] - 1)
        slots = np.take_along_axis(host[sampled], places // block_size, axis=1) * np.int64(block_size) + places % block_size
        pages = np.arange(len(sampled) * width, dtype=np.int32).reshape(-1, width)
        taken, own, seen = all_to_device((slots.reshape(-1, block_size), pages, counts.astype(np.int32)), device)
        group.whole = WholeTokens(tokens, AttentionMeta(cu, seen, own, most, int(counts.max()), workspace), taken)

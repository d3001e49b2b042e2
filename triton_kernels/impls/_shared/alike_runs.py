"""Requests of a batch with states, for torch: those with equally many tokens together, decoding ones above all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ...state_meta import StateMeta, StateRun


class AlikeRuns(NamedTuple):
    """Runs of n tokens each: rows int64 [R, n], slots int64 [R], is_first bool [R]."""

    rows: torch.Tensor
    slots: torch.Tensor
    is_first: torch.Tensor

    def initial(self, state: torch.Tensor) -> torch.Tensor:
        """What they start from: new memory [R, ...]."""
        return state[self.slots].masked_fill_(self.is_first.view(-1, *[1] * (state.dim() - 1)), 0)


def alike_runs(meta: StateMeta) -> Iterator[AlikeRuns]:
    by_length: dict[int, list[StateRun]] = defaultdict(list)
    for run in meta.runs():
        by_length[run.rows.stop - run.rows.start].append(run)
    device = meta.slots.device
    for length, runs in by_length.items():
        starts = torch.tensor([run.rows.start for run in runs], device=device)
        slots = torch.tensor([run.slot for run in runs], device=device)
        is_first = torch.tensor([run.is_first for run in runs], device=device)
        yield AlikeRuns(starts[:, None] + torch.arange(length, device=device), slots, is_first)

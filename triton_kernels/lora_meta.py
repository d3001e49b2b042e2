"""What the kernels of low-rank adapters are handed besides activations: which row has which adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class LoraMeta:
    """The adapters of a step's rows; shared by all adapted layers that compute these rows.

    index      int32 [T], contiguous: slot of each row's adapter, -1 = none
    slots      host: every slot that occurs in ``index``; others may be among them. None: any may occur, as in recordings, whose
               index changes from replay to replay
    workspace  scratch by impl name; ``begin_step`` fills it once per step for all layers
    """

    index: torch.Tensor
    slots: Sequence[int] | None = None
    workspace: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.index.is_contiguous(), "kernels read it by address"

    @property
    def num_reqs(self) -> int:
        """Rows, each of which is on its own."""
        return self.index.shape[0]

    def slots_of(self, num_slots: int) -> Sequence[int]:
        """Those to compute, of so many."""
        return range(num_slots) if self.slots is None else self.slots

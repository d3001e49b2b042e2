"""Experts of which every rank has some, whole: where a choice of an expert goes, and how tokens get there and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...plan import BoundKernel

NOWHERE = -1
"""A slot that no rank has."""


class Placement:
    """Which slot serves a choice of an expert, and how often each expert was chosen. Replicas of an expert take turns, from row to
    row. Recordings hold the addresses of its tensors, which are changed in place.

    slots   int32 [E, ranks] on the device: of each expert, those that have it, then anything
    counts  int64 [E] on the device: how many have it
    loads   int64 [E] on the device
    """

    def __init__(self, slots: tuple[int, ...], num_experts: int, ranks: int, first: int, device: torch.device) -> None:
        """slots: the expert in each. first: the turn of row 0, which is to differ where ranks place rows of their own."""
        self.slots = torch.zeros(num_experts, ranks, dtype=torch.int32, device=device)
        self.counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
        self.loads = torch.zeros(num_experts, dtype=torch.int64, device=device)
        self._first = first
        self.place(slots)

    def place(self, slots: tuple[int, ...]) -> None:
        """From now on the experts are there."""
        of_expert: list[list[int]] = [[] for _ in self.counts]
        for slot, expert in enumerate(slots):
            of_expert[expert].append(slot)
        width = self.slots.shape[1]
        padded = [(own + [0] * width)[:width] for own in of_expert]
        self.slots.copy_(torch.tensor(padded, dtype=torch.int32))
        self.counts.copy_(torch.tensor([min(len(own), width) for own in of_expert]))

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """ids int32 [T, k], experts, -> int32 [T, k], slots. Counts them."""
        chosen = ids.long()
        self.loads.index_add_(0, chosen.flatten(), torch.ones_like(chosen).flatten())
        rows = torch.arange(self._first, self._first + ids.shape[0], device=ids.device)[:, None]
        return self.slots[chosen, rows % self.counts[chosen]]


@dataclass
class Lockstep:
    """num_tokens: of a step that several schedulers' ranks take together, what the fullest of them computes."""

    num_tokens: int = 0


@dataclass(slots=True)
class GatheredExperts:
    """The rows of all ranks to every one (dispatch), the sum of what their experts make of them back (combine)."""

    dispatch: BoundKernel
    experts: BoundKernel
    combine: BoundKernel

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """As ``moe_exchange``."""
        return self.combine(self.experts(*(self.dispatch(rows) for rows in (x, weights, slots))))


@dataclass(slots=True)
class Exchange:
    """Rows to experts of the ranks that stand at this one's place beside other schedulers. Each brings as many as the fullest;
    those that are added choose no expert. run: as ``moe_exchange``."""

    run: GatheredExperts | BoundKernel
    lockstep: Lockstep

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """x [T, H], weights f32 [T, k], slots int32 [T, k] -> [T, H]."""
        count, added = x.shape[0], self.lockstep.num_tokens - x.shape[0]
        assert added >= 0, "a rank has more rows than the fullest"
        if added:
            x, weights = (torch.nn.functional.pad(rows, (0, 0, 0, added)) for rows in (x, weights))
            slots = torch.nn.functional.pad(slots, (0, 0, 0, added), value=NOWHERE)
        return self.run(x, weights, slots)[:count]


@dataclass(slots=True)
class SpreadExperts:
    """placement: where experts can move. exchange: where schedulers share them. reduce: the sum over the ranks that have the same
    rows."""

    experts: BoundKernel
    top_k: int
    placement: Placement | None = None
    exchange: Exchange | None = None
    reduce: BoundKernel | None = None

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """As ``moe_experts`` of all experts."""
        if self.placement is not None:
            ids = self.placement(ids)
        out = (self.experts if self.exchange is None else self.exchange)(x, weights, ids)
        return out if self.reduce is None else self.reduce(out)

    def join(self, x: torch.Tensor) -> None:
        """Takes part in a step without rows of its own. x: [0, H]."""
        if self.exchange is not None:  # else nobody waits
            none = x.new_empty(0, self.top_k, dtype=torch.float32)
            self(x, none, none.int())

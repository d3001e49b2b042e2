"""What kernels of recurrent layers are handed besides their inputs: which rows of the layer's states are whose.

A state is a tensor [num_slots, ...], one slot per running request, written in place: it holds what a request's tokens up to now
amount to. Its slots are contiguous; their stride is free, so that the states of layers, and of one layer, may lie in one pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch


class StateRun(NamedTuple):
    """The tokens ``rows`` that go through the state in ``slot``; the first of a request find zeros in its place."""

    rows: slice
    slot: int
    is_first: bool


@dataclass
class StateMeta:
    """A batch of requests in all layers with states; prompts, their chunks and decoding requests side by side.

    cu_q      int32 [R+1]: request r has the tokens cu_q[r]:cu_q[r+1]; cu_q[R] is the number of tokens
    slots     int32 [R]: its slot in every state; no two requests share one. -1: nobody's, its tokens' outputs are 0
    is_first  bool [R]: the tokens are the request's first, so its slot is read as zeros, whatever it holds
    max_q     host: upper bound of tokens per request

    A slot that no request names, and that of a request without tokens, is left as it is.
    """

    cu_q: torch.Tensor
    slots: torch.Tensor
    is_first: torch.Tensor
    max_q: int

    @property
    def num_reqs(self) -> int:
        return self.slots.shape[0]

    def runs(self) -> Iterator[StateRun]:
        """Of the requests that have tokens and a slot. Waits for the device."""
        bounds = self.cu_q.tolist()
        for r, (slot, is_first) in enumerate(zip(self.slots.tolist(), self.is_first.tolist())):
            if slot >= 0 and bounds[r] < bounds[r + 1]:
                yield StateRun(slice(bounds[r], bounds[r + 1]), slot, is_first)

    def take(self, first: int, last: int) -> StateMeta:
        """Requests first .. last - 1, as a batch of their own."""
        cu_q = self.cu_q[first : last + 1]
        return StateMeta(cu_q - cu_q[0], self.slots[first:last], self.is_first[first:last], int(cu_q.diff().max()))


def initial_state(state: torch.Tensor, run: StateRun) -> torch.Tensor:
    """What a run starts from: a new tensor of one slot's shape."""
    return torch.zeros_like(state[run.slot]) if run.is_first else state[run.slot].clone()

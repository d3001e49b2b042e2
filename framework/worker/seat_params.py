"""Parameters of sampling, in permanent rows."""

from __future__ import annotations

import numpy as np
import torch

from ..engine.step import NewRequest
from ..plan import BoundKernel


class SeatParams:
    """What ``sample`` takes per seat, on the device: [seats] each. is_filtered: who has top-k, top-p or min-p, on the host."""

    def __init__(self, num_seats: int, device: torch.device) -> None:
        self.temperature = torch.zeros(num_seats, device=device)
        self.top_k = torch.zeros(num_seats, dtype=torch.int32, device=device)
        self.top_p = torch.ones(num_seats, device=device)
        self.min_p = torch.zeros(num_seats, device=device)
        self.seed = torch.zeros(num_seats, dtype=torch.int64, device=device)
        self.is_filtered = np.zeros(num_seats, dtype=bool)

    def add(self, request: NewRequest) -> None:
        """Fills the request's row."""
        params, seat = request.sampling, request.seat
        assert params.seed is not None, "the engine gives every request a seed"
        self.temperature[seat] = params.temperature
        self.top_k[seat] = max(params.top_k, 0)
        self.top_p[seat] = params.top_p
        self.min_p[seat] = params.min_p
        self.seed[seat] = _signed64(params.seed)
        self.is_filtered[seat] = params.top_k > 0 or params.top_p < 1 or params.min_p > 0

    def draw(self, sample: BoundKernel, logits: torch.Tensor, row_to_seat: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Tokens int32 [R] as without drafts, by the op ``sample``; -1 where a row has none."""
        tokens: torch.Tensor = sample(logits, row_to_seat, *self.filters, self.seed, position)
        return tokens

    @property
    def filters(self) -> tuple[torch.Tensor, ...]:
        """temperature, top_k, top_p, min_p."""
        return self.temperature, self.top_k, self.top_p, self.min_p


def _signed64(seed: int) -> int:
    """The 64 bits of a seed as the int64 that holds them."""
    seed &= 2**64 - 1
    return seed - 2**64 if seed >= 2**63 else seed

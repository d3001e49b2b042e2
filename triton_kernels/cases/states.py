"""What the cases of ops with states share: requests that start, go on, and are padding, and states of which only those that may be
read hold numbers."""

from __future__ import annotations

import torch

from ..state_meta import StateMeta
from . import randn


def make_meta(
    generator: torch.Generator, device: torch.device, q_lens: tuple[int, ...], seen: tuple[int, ...], slack: int = 0
) -> StateMeta:
    """Requests in random slots of twice as many and one. ``seen``: tokens of each before these; -1 of a padding request.
    ``slack``: by how much the host's bound of lengths exceeds them."""
    order = torch.randperm(2 * len(q_lens) + 1, generator=generator)[: len(q_lens)].int()
    before = torch.tensor(seen)
    return StateMeta(
        cu_q=torch.tensor([0, *q_lens]).cumsum(0).int().to(device),
        slots=order.masked_fill(before < 0, -1).to(device),
        is_first=(before == 0).to(device),
        max_q=max(q_lens) + slack,
    )


def make_state(
    generator: torch.Generator, dtype: torch.dtype, meta: StateMeta, *shape: int, pooled: bool = False, scale: float = 1.0
) -> torch.Tensor:
    """[num_slots, *shape], NaN in every slot that must not be read. ``pooled``: between the states of other layers."""
    num_slots, device = 2 * meta.num_reqs + 1, meta.slots.device
    pool = torch.full((num_slots, 3 if pooled else 1, *shape), torch.nan, dtype=dtype, device=device)
    state = pool[:, -2 if pooled else 0]
    used = meta.slots[(meta.slots >= 0) & ~meta.is_first].long()
    state[used] = randn(generator, dtype, device, len(used), *shape, scale=scale)
    return state


def context_lens(q_lens: tuple[int, ...], seen: tuple[int, ...]) -> tuple[int, ...]:
    """What cost functions take: new tokens and those before."""
    return tuple(q + max(before, 0) for q, before in zip(q_lens, seen))

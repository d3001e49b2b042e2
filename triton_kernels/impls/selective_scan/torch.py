"""The recurrence of Mamba 1 in torch, in float32, token by token."""

from __future__ import annotations

import torch
from torch.nn.functional import silu, softplus

from ...impl import Flags, impl
from ...state_meta import StateMeta
from .._shared.alike_runs import alike_runs


@impl("selective_scan", "torch", priority=10, flags=Flags(cuda_graph=False))
def selective_scan_torch(
    x: torch.Tensor,
    dt: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    z: torch.Tensor,
    state: torch.Tensor,
    meta: StateMeta,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    d: torch.Tensor,
) -> torch.Tensor:
    out, rates = torch.zeros_like(x), -a_log.float().exp()
    step = softplus(dt.float() + dt_bias.float())
    for runs in alike_runs(meta):
        current = runs.initial(state).float()
        for rows in runs.rows.unbind(1):
            source = x[rows].float()
            added = (step[rows] * source)[..., None] * b[rows].float()[:, None]
            current = (torch.exp(rates * step[rows][..., None]) * current + added).to(state.dtype).float()
            read = (current * c[rows].float()[:, None]).sum(-1) + d.float() * source
            out[rows] = (read * silu(z[rows].float())).to(x.dtype)
        state[runs.slots] = current.to(state.dtype)
    return out

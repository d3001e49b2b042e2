"""The recurrence of Mamba 2 in torch, in float32, by chunks of 64 tokens that are products (arXiv 2405.21060, section 6)."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from ...impl import Flags, impl
from ...state_meta import StateMeta
from .._shared.alike_runs import alike_runs

_CHUNK = 64


@impl("ssd_scan", "torch", priority=10, flags=Flags(cuda_graph=False))
def ssd_scan_torch(
    x: torch.Tensor,
    dt: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    meta: StateMeta,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    d: torch.Tensor,
    dt_min: float,
    dt_max: float,
) -> torch.Tensor:
    out, group = torch.zeros_like(x), x.shape[1] // b.shape[1]
    step = softplus(dt.float() + dt_bias.float()).clamp(dt_min, dt_max)
    log_decay = -a_log.float().exp() * step
    for runs in alike_runs(meta):
        # [R, H, n, ...]
        keys, queries = (rows[runs.rows].float().repeat_interleave(group, 2).transpose(1, 2) for rows in (b, c))
        source = x[runs.rows].float()
        new = (source * step[runs.rows][..., None]).transpose(1, 2)
        current = runs.initial(state).float().mT
        results = []
        for start in range(0, runs.rows.shape[1], _CHUNK):
            chunk = slice(start, start + _CHUNK)
            q, k, n = queries[:, :, chunk], keys[:, :, chunk], new[:, :, chunk]
            total = log_decay[runs.rows[:, chunk]].transpose(1, 2).cumsum(-1)
            between = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
            results.append(total.exp()[..., None] * (q @ current) + (q @ k.mT * between) @ n)
            left = (total[..., -1:] - total).exp()[..., None]
            current = total[..., -1:, None].exp() * current + (k * left).mT @ n
        result = torch.cat(results, dim=2).transpose(1, 2) + d.float()[:, None] * source
        out[runs.rows] = result.to(x.dtype)
        state[runs.slots] = current.mT.to(state.dtype)
    return out

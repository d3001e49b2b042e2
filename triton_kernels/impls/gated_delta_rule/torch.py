"""The gated delta rule in torch, in float32: prompts by chunks of 64 tokens, whose corrections of one another are the solution of a
triangular system (arXiv 2412.06464, section 3.3); single tokens by the recurrence.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from ...impl import Flags, impl
from ...ops.gated_delta import NORM_EPS
from ...state_meta import StateMeta
from .._shared.alike_runs import alike_runs

_CHUNK = 64


@impl("gated_delta_rule", "torch", priority=10, flags=Flags(cuda_graph=False))
def gated_delta_rule_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    state: torch.Tensor,
    meta: StateMeta,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    out, group = torch.zeros_like(v), v.shape[1] // k.shape[1]
    log_decay, rate = -a_log.float().exp() * softplus(a.float() + dt_bias.float()), b.float().sigmoid()
    for runs in alike_runs(meta):
        # [R, H, n, ...]
        queries, keys = (_unit(x[runs.rows].float()).repeat_interleave(group, 2).transpose(1, 2) for x in (q, k))
        values = v[runs.rows].float().transpose(1, 2)
        inputs = (queries * scale, keys, values, log_decay[runs.rows].transpose(1, 2), rate[runs.rows].transpose(1, 2))
        current = runs.initial(state).float()
        results = []
        for start in range(0, runs.rows.shape[1], _CHUNK):
            result, current = _chunk(current, *(x[:, :, start : start + _CHUNK] for x in inputs))
            results.append(result)
        out[runs.rows] = torch.cat(results, dim=2).transpose(1, 2).to(v.dtype)
        state[runs.slots] = current.to(state.dtype)
    return out


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)


def _chunk(
    state: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, rate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A chunk's output [R, H, n, Dv], and the state after it."""
    total = log_decay.cumsum(-1)
    between = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    grown = total.exp()[..., None]
    missing = rate[..., None] * (v - grown * (k @ state))
    system = rate[..., None] * (k @ k.mT) * between
    written = torch.linalg.solve_triangular(system, missing, upper=False, unitriangular=True)
    out = grown * (q @ state) + (q @ k.mT * between) @ written
    left = (total[..., -1:] - total).exp()[..., None]
    return out, grown[..., -1:, :] * state + (k * left).mT @ written

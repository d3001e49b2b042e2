"""``causal_conv1d`` by torch's grouped convolution."""

from __future__ import annotations

import torch
from torch.nn.functional import conv1d, silu

from ...impl import Flags, impl
from ...state_meta import StateMeta
from .._shared.alike_runs import alike_runs


@impl("causal_conv1d", "torch", priority=10, flags=Flags(cuda_graph=False))
def causal_conv1d_torch(
    x: torch.Tensor, state: torch.Tensor, meta: StateMeta, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
) -> torch.Tensor:
    out, filters = torch.zeros_like(x), weight.float().unsqueeze(1)
    for runs in alike_runs(meta):
        window = torch.cat([runs.initial(state), x[runs.rows]], dim=1)
        total = conv1d(window.float().mT, filters, None if bias is None else bias.float(), groups=x.shape[1]).mT
        out[runs.rows] = (silu(total) if activation else total).to(x.dtype)
        state[runs.slots] = window[:, window.shape[1] - state.shape[1] :]
    return out

"""``gated_rms_norm`` in a few torch calls, in float32."""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm, silu

from ...impl import Flags, impl


@impl("gated_rms_norm", "torch", priority=10, flags=Flags(cpu_graph=True))
def gated_rms_norm_torch(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, group_size: int | None, norm_first: bool
) -> torch.Tensor:
    opened = silu(gate.float())
    source = x.float() if norm_first else x.float() * opened
    groups = source.unflatten(-1, (-1, group_size or x.shape[-1]))
    out = rms_norm(groups, groups.shape[-1:], eps=eps).flatten(-2).mul_(weight.float())
    return (out.mul_(opened) if norm_first else out).to(x.dtype)

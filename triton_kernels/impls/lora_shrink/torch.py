"""``lora_shrink`` as one GEMM per adapter with all tokens, of which each token keeps its own adapter's. Which adapters are computed
is known to the host, so nothing waits for the device."""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from ...lora_meta import LoraMeta
from ..linear.torch import unrounded


@impl("lora_shrink", "torch", priority=10, flags=Flags(cpu_graph=True))
def lora_shrink_torch(
    x: torch.Tensor, meta: LoraMeta, lora_a: torch.Tensor, scale: torch.Tensor, partial: bool = False
) -> torch.Tensor:
    multiply = unrounded if partial else torch.nn.functional.linear
    out = torch.zeros(x.shape[0], lora_a.shape[1], dtype=torch.float32, device=x.device)
    for slot in meta.slots_of(lora_a.shape[0]):
        gemm = multiply(x.to(lora_a.dtype), lora_a[slot]).float() * scale[slot]
        out = torch.where((meta.index == slot)[:, None], gemm, out)
    return out

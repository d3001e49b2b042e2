"""``lora_expand`` as one GEMM per adapter and slice with all tokens, added in float32 where the token has that adapter."""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from ...lora_meta import LoraMeta


@impl("lora_expand", "torch", priority=10, flags=Flags(cpu_graph=True))
def lora_expand_torch(y: torch.Tensor, shrunk: torch.Tensor, meta: LoraMeta, lora_b: torch.Tensor, slices: tuple[int, ...]) -> None:
    narrow, rank = shrunk.to(lora_b.dtype), lora_b.shape[1]
    for slot in meta.slots_of(lora_b.shape[0]):
        has_it, start = (meta.index == slot)[:, None], 0
        for nth, width in enumerate(slices):
            columns, own = y[:, start : start + width], narrow[:, nth * rank : (nth + 1) * rank]
            total = columns.float() + (own @ lora_b[slot, :, start : start + width]).float()
            columns.copy_(torch.where(has_it, total.to(y.dtype), columns))
            start += width

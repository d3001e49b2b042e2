"""``lora_expand`` as one GEMM per adapter with all tokens, added in float32 where the token has that adapter."""

from __future__ import annotations

import torch

from ...impl import impl
from ..lora_shrink.torch import adapters_to_try


@impl("lora_expand", "torch", priority=10)
def lora_expand_torch(
    y: torch.Tensor, shrunk: torch.Tensor, lora_index: torch.Tensor, lora_b: torch.Tensor, start: int = 0
) -> None:
    columns = y[:, start : start + lora_b.shape[1]]
    narrow = shrunk.to(lora_b.dtype)
    for adapter in adapters_to_try(lora_index, lora_b.shape[0]):
        total = columns.float() + torch.nn.functional.linear(narrow, lora_b[adapter]).float()
        columns.copy_(torch.where((lora_index == adapter)[:, None], total.to(y.dtype), columns))

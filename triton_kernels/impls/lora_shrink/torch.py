"""``lora_shrink`` as one GEMM per adapter with all tokens, of which each token keeps its own adapter's.

The number of GEMMs depends on shapes only, so nothing waits for the device. On a CPU looking is free: adapters that no
token has are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...impl import impl


def adapters_to_try(lora_index: torch.Tensor, num_adapters: int) -> Sequence[int]:
    if lora_index.device.type == "cpu":
        return [adapter for adapter in lora_index.unique().tolist() if adapter >= 0]
    return range(num_adapters)


@impl("lora_shrink", "torch", priority=10)
def lora_shrink_torch(x: torch.Tensor, lora_index: torch.Tensor, lora_a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(x.shape[0], lora_a.shape[1], dtype=torch.float32, device=x.device)
    for adapter in adapters_to_try(lora_index, lora_a.shape[0]):
        gemm = torch.nn.functional.linear(x, lora_a[adapter]).float() * scale[adapter]
        out = torch.where((lora_index == adapter)[:, None], gemm, out)
    return out

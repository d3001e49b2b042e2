"""``layer_norm`` by ``torch.nn.functional.layer_norm``, which computes in float32."""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("layer_norm", "torch", priority=10, flags=Flags(batch_invariant=True, cpu_graph=True))
def layer_norm_torch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    source = x if residual is None else residual.add_(x)
    return torch.nn.functional.layer_norm(source, weight.shape, weight, bias, eps)

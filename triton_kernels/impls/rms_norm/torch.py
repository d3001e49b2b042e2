"""``rms_norm`` in a few torch calls: the sum in the residual's dtype, the norm in float32.

``vector_norm`` reads the rows once, without the tensor of squares that the formula suggests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec


@impl("rms_norm", "torch", priority=10, flags=Flags(batch_invariant=True))
class RmsNormTorch:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.factor = weights["weight"].float() + params.get("offset", 0.0)
        self.eps = params["eps"]

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        source = x if residual is None else residual.add_(x)
        wide = source.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = size.square_().mul_(1 / x.shape[-1]).add_(self.eps).rsqrt_()
        return (wide * scale).mul_(self.factor).to(x.dtype)

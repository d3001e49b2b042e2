"""``all_reduce_add_rms_norm`` as an all-gather, a sum in the order of ``all_reduce:ordered``, and the norm, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...group import Group
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.rank_sums import rounded, tree_sum
from ..rms_norm.torch import RmsNormTorch


@impl("all_reduce_add_rms_norm", "torch", priority=5, flags=Flags(batch_invariant=True, rank_invariant=True))
class AllReduceAddRmsNormTorch:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.group: Group = params["group"]
        self.bias = weights.get("bias")
        of_norm = {"eps": params["eps"], "offset": params.get("offset", 0.0)}
        self.norm = RmsNormTorch.bind(spec, {"weight": weights["weight"]}, of_norm)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        residual.add_(rounded(tree_sum(self.group.all_gather(x)), self.bias, residual.dtype))
        return self.norm(residual, None)

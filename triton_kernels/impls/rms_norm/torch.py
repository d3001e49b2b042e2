"""``rms_norm`` in a few torch calls: the sum in the residual's dtype, the norm in float32, and from there the quantized values if
any.

On a CPU ``vector_norm`` reads the rows once, without the tensor of squares that the formula suggests. On a GPU it cuts the sum of a
row by the number of rows; torch's own kernel of the norm does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...ops.quantize import OUTPUT_ARGS
from ...spec import Spec
from ..quantize_activation.torch import quantize


@impl("rms_norm", "torch", priority=10, flags=Flags(batch_invariant=True, cpu_graph=True))
class RmsNormTorch:
    takes = OUTPUT_ARGS

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.factor = weights["weight"].float() + params.get("offset", 0.0)
        self.eps = params["eps"]
        self.out_dtype: torch.dtype | None = params.get("out_dtype")
        self.granularity, self.static_scale = params.get("granularity", "token"), weights.get("static_scale")

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        source = x if residual is None else residual.add_(x)
        wide = source.float()
        if x.device.type == "cpu":
            size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            scale = size.square_().mul_(1 / x.shape[-1]).add_(self.eps).rsqrt_()
            out = (wide * scale).mul_(self.factor)
        else:
            out = torch.nn.functional.rms_norm(wide, self.factor.shape, self.factor, self.eps)
        return out.to(x.dtype) if self.out_dtype is None else quantize(out, self.out_dtype, self.granularity, self.static_scale)

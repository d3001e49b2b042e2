"""``rms_norm`` by FlashInfer (package ``flashinfer``, 0.6): rmsnorm, fused_add_rmsnorm and their Gemma forms.

The library's fused form normalizes its input in place, which the op does not allow, so x is copied first: one more pass over x
than the other impls make. It has no float32 and quantizes no output by the op's rules. An offset that is neither 0 nor 1
(Gemma's) is added to the weights when they are bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import NEVER_MET_ITS_LIBRARY, impl
from ...spec import Spec
from .._shared.flashinfer import unsupported_flashinfer


@impl("rms_norm", "flashinfer", priority=15, requires=("flashinfer",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class FlashInferRMSNorm:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        import flashinfer

        offset, self.eps, weight = params.get("offset", 0.0), params["eps"], weights["weight"]
        gemma = offset == 1
        self.weight = (weight if gemma or offset == 0 else weight.double() + offset).to(spec.dtype)
        self.norm = flashinfer.gemma_rmsnorm if gemma else flashinfer.rmsnorm
        self.add_norm = flashinfer.gemma_fused_add_rmsnorm if gemma else flashinfer.fused_add_rmsnorm

    unsupported = staticmethod(unsupported_flashinfer)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x.numel() == 0:
            return out
        rows = out.view(-1, x.shape[-1])
        if residual is None:
            self.norm(x.reshape(rows.shape), self.weight, self.eps, out=rows)
        else:
            out.copy_(x)
            self.add_norm(rows, residual.view(rows.shape), self.weight, self.eps)
        return out

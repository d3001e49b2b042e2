"""``rms_norm`` on a CPU in C: residual, sum of squares and result in one call; see ``native_step.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons
from .._shared.rows import rows


@impl("rms_norm", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class RmsNormNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.factor = (weights["weight"].float() + params.get("offset", 0.0)).contiguous()
        self.width, self.eps = self.factor.shape[0], params["eps"]
        self.run = NativeKernel("native_step.c", spec.dtype, "rms_norm", "pppp iiiiiii f")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_step.c", spec.dtype)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        source, num_rows, inner, *strides = rows(x)
        summed = None if residual is None else rows(residual, in_place=True)
        target, outer_inner = (None, (0, 0)) if summed is None else (summed.tensor, (summed.stride_outer, summed.stride_inner))
        out = torch.empty(x.shape, dtype=x.dtype)
        self.run(x.numel(), source, target, self.factor, out, num_rows, inner, self.width, *strides, *outer_inner, self.eps)
        return out

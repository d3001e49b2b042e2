"""``rms_norm`` on a CPU in C: residual, sum of squares and result in one call; see ``native_step.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_code import library, library_reasons
from .._shared.rows import rows

_TYPES = [*[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 3, ctypes.c_int64 * 4, ctypes.c_float]


@impl("rms_norm", "native", priority=20, flags=Flags(batch_invariant=True), devices=("cpu",))
class RmsNormNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.factor = (weights["weight"].float() + params.get("offset", 0.0)).contiguous()
        self.width, self.eps = self.factor.shape[0], params["eps"]
        self.run = library("native_step.c", spec.dtype).rms_norm
        self.run.argtypes, self.run.restype = _TYPES, None

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        quantized = ["does not quantize its output"] if spec.fact("out_dtype") is not None else []
        return quantized + library_reasons("native_step.c", spec.dtype)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        source, num_rows, inner, *strides = rows(x)
        out = torch.empty(x.shape, dtype=x.dtype)
        if residual is None:
            target, strides = None, [*strides, 0, 0]
        else:
            summed = rows(residual, in_place=True)
            target, strides = summed.tensor.data_ptr(), [*strides, summed.stride_outer, summed.stride_inner]
        self.run(
            source.data_ptr(),
            target,
            self.factor.data_ptr(),
            out.data_ptr(),
            num_rows,
            inner,
            self.width,
            (ctypes.c_int64 * 4)(*strides),
            self.eps,
        )
        return out

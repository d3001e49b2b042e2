"""``silu_and_mul`` on a CPU in C; see ``native_step.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_code import library, library_reasons


@impl("silu_and_mul", "native", priority=20, flags=Flags(batch_invariant=True), devices=("cpu",))
class SiluAndMulNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.run = library("native_step.c", spec.dtype).silu_and_mul
        self.run.argtypes, self.run.restype = [*[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3], None

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        quantized = ["does not quantize its output"] if spec.fact("out_dtype") is not None else []
        return quantized + library_reasons("native_step.c", spec.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        source = x if x.stride(1) == 1 else x.contiguous()
        width = x.shape[1] // 2
        out = torch.empty(x.shape[0], width, dtype=x.dtype)
        self.run(source.data_ptr(), out.data_ptr(), x.shape[0], source.stride(0), width)
        return out

"""``silu_and_mul`` on a CPU in C; see ``native_step.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons

_WORK_OF_ONE = 4
"""Elements moved that take as long as one here: there is an exponential in each."""


@impl("silu_and_mul", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class SiluAndMulNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.run = NativeKernel("native_step.c", spec.dtype, "silu_and_mul", "pp iii")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_step.c", spec.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        source = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty(x.shape[0], x.shape[1] // 2, dtype=x.dtype)
        self.run(_WORK_OF_ONE * out.numel(), source, out, x.shape[0], source.stride(0), out.shape[1])
        return out

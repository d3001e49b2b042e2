"""``lora_shrink`` on a CPU in C; see ``native_lora.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...lora_meta import LoraMeta
from ...spec import Spec
from .._shared.lora import dtypes_differ
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons


@impl("lora_shrink", "native", priority=30, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class NativeShrink:
    takes = ("partial",)  # float32 all the same

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.a, self.scale = weights["lora_a"], weights["scale"]
        assert self.a.is_contiguous() and self.scale.is_contiguous(), "slots must be contiguous"
        self.run = NativeKernel("native_lora.c", spec.dtype, "lora_shrink", "ppppp iiii")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_lora.c", spec.dtype) or dtypes_differ(spec)

    def __call__(self, x: torch.Tensor, meta: LoraMeta) -> torch.Tensor:
        source = x if x.stride(1) == 1 else x.contiguous()
        (num_rows, features), ranks = x.shape, self.a.shape[1]
        out = torch.empty(num_rows, ranks, dtype=torch.float32)
        work = num_rows * ranks * features
        self.run(work, source, self.a, self.scale, meta.index, out, num_rows, features, ranks, source.stride(0))
        return out

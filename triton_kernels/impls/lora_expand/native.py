"""``lora_expand`` on a CPU in C; see ``native_lora.c``."""

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


@impl("lora_expand", "native", priority=30, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class NativeExpand:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.b, self.ends = weights["lora_b"], torch.tensor(params["slices"]).cumsum(0)
        assert self.b.is_contiguous(), "slots must be contiguous"
        self.run = NativeKernel("native_lora.c", spec.dtype, "lora_expand", "ppppp iiiii")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_lora.c", spec.dtype) or dtypes_differ(spec)

    def __call__(self, y: torch.Tensor, shrunk: torch.Tensor, meta: LoraMeta) -> None:
        assert y.stride(1) == shrunk.stride(1) == 1, "columns must be contiguous"
        _, rank, num_columns = self.b.shape
        sizes = y.shape[0], num_columns, rank, y.stride(0), shrunk.stride(0)
        self.run(y.shape[0] * num_columns * rank, y, shrunk, self.b, meta.index, self.ends, *sizes)

"""``embedding`` on a CPU in C; see ``native_step.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons


@impl("embedding", "native", priority=15, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class EmbeddingNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        table = weights["weight"].detach()
        rows = table if table.stride(-1) == 1 else table.contiguous()
        self.table = rows if rows.dim() == 4 else rows[:, None, None]  # panels of one row, of one step
        self.first = params.get("vocab_start", 0)
        self.run = NativeKernel("native_step.c", spec.dtype, "embedding", "ppp iiiiiiiii")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_step.c", spec.dtype)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        num_panels, panel, steps, step = self.table.shape
        ids = token_ids.long().contiguous()
        out = torch.empty(len(ids), steps * step, dtype=self.table.dtype)
        sizes = len(ids), self.first, num_panels * panel, panel, steps, step
        self.run(out.numel(), ids, self.table, out, *sizes, *self.table.stride()[:3])
        return out

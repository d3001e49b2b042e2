"""``slot_mapping`` on a CPU in C, request by request; see ``native_step.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons


@impl("slot_mapping", "native", priority=20, flags=Flags(cpu_graph=True), devices=("cpu",))
class SlotMappingNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.page_size = params["page_size"]
        self.run = NativeKernel("native_step.c", spec.dtype, "slot_mapping", "p ppp p iiii")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_step.c", spec.dtype)

    def __call__(
        self, positions: torch.Tensor, cu_q: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor
    ) -> torch.Tensor:
        slots = torch.empty_like(positions)
        self.run(
            0,  # one thread does it
            *(positions, cu_q, seq_lens, block_table, slots),
            *(positions.shape[0], seq_lens.shape[0], block_table.stride(0), self.page_size),
        )
        return slots

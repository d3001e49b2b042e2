"""``slot_mapping`` on a CPU in C, request by request; see ``native_step.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from ...impl import impl
from ...spec import Spec
from .._shared.native_code import library, library_reasons

_TYPES = [*[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 4]


@impl("slot_mapping", "native", priority=20, devices=("cpu",))
class SlotMappingNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.page_size = params["page_size"]
        self.run = library("native_step.c", spec.dtype).slot_mapping
        self.run.argtypes, self.run.restype = _TYPES, None

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_step.c", spec.dtype)

    def __call__(
        self, positions: torch.Tensor, cu_q: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor
    ) -> torch.Tensor:
        slots = torch.empty_like(positions)
        self.run(
            positions.data_ptr(),
            cu_q.data_ptr(),
            seq_lens.data_ptr(),
            block_table.data_ptr(),
            slots.data_ptr(),
            positions.shape[0],
            seq_lens.shape[0],
            block_table.stride(0),
            self.page_size,
        )
        return slots

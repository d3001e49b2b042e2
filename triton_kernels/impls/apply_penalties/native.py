"""``apply_penalties`` on a CPU in C; see ``native_sample.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons


@impl("apply_penalties", "native", priority=20, flags=Flags(batch_invariant=True), devices=("cpu",))
class ApplyPenaltiesNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.run = NativeKernel("native_sample.c", torch.float32, "penalties", "ppppppppppp iiiii")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_sample.c", torch.float32)

    def __call__(
        self,
        logits: torch.Tensor,
        row_to_seat: torch.Tensor,
        bitmask: torch.Tensor | None,
        prompt_mask: torch.Tensor,
        output_counts: torch.Tensor,
        repetition: torch.Tensor,
        frequency: torch.Tensor,
        presence: torch.Tensor,
        bias_ids: torch.Tensor,
        bias_values: torch.Tensor,
        drafts: torch.Tensor | None,
    ) -> None:
        rows = logits if logits.stride(1) == 1 else logits.contiguous()
        mask = None if bitmask is None else bitmask.contiguous()
        of_seats = (prompt_mask, output_counts, repetition, frequency, presence, bias_ids, bias_values)
        before, num_drafts = (None, 0) if drafts is None else (drafts.contiguous(), drafts.shape[1])
        self.run(
            rows.numel() // 4,  # most rows have no more than a mask
            rows,
            row_to_seat.contiguous(),
            mask,
            *[tensor.contiguous() for tensor in of_seats],
            before,
            *rows.shape,
            rows.stride(0),
            bias_ids.shape[1],
            num_drafts,
        )
        if rows is not logits:
            logits.copy_(rows)

"""``sample`` on a CPU: greedy rows in one C call (``native_sample.c``); steps with random rows as the ``torch`` impl does them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons
from .torch import sample as sample_torch

_RANDOM = -2


@impl("sample", "native", priority=20, flags=Flags(batch_invariant=True), devices=("cpu",))
class SampleNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.run, self.random = (
            NativeKernel("native_sample.c", torch.float32, "greedy", "pppp iii"),
            sample_torch.bind(spec, {}, params),
        )

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_sample.c", torch.float32)

    def __call__(
        self, logits: torch.Tensor, row_to_seat: torch.Tensor, temperature: torch.Tensor, *filters: torch.Tensor
    ) -> torch.Tensor:
        wide = logits.float()
        wide = wide if wide.stride(1) == 1 else wide.contiguous()
        tokens = torch.empty(len(logits), dtype=torch.int32)
        self.run(wide.numel() // 4, wide, row_to_seat, temperature, tokens, *wide.shape, wide.stride(0))
        if len(tokens) and int(tokens.min()) == _RANDOM:
            return self.random(wide, row_to_seat, temperature, *filters)
        return tokens

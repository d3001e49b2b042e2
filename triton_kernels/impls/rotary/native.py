"""``rotary`` on a CPU in C, queries and keys in one call; see ``native_step.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons


@impl("rotary", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class RotaryNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.cos_sin = weights["cos_sin"].contiguous()
        self.half, self.gptj = self.cos_sin.shape[1] // 2, int(params.get("style", "neox") == "gptj")
        self.run = NativeKernel("native_step.c", spec.dtype, "rotary", "pp p p iiiiiiiii")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return library_reasons("native_step.c", spec.dtype)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> None:
        self.run(
            q.numel() + k.numel(),
            *(q, k, positions, self.cos_sin),
            *(q.shape[0], q.shape[1], k.shape[1], *q.stride()[:2], *k.stride()[:2], self.half, self.gptj),
        )

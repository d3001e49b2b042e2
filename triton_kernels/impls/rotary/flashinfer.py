"""``rotary`` by FlashInfer (package ``flashinfer``, 0.6): apply_rope_with_cos_sin_cache_inplace.

It reads 16 elements at once from each half of what is rotated, and knows no float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import NEVER_MET_ITS_LIBRARY, impl
from ...spec import Spec
from .._shared.flashinfer import unsupported_flashinfer


@impl("rotary", "flashinfer", priority=15, requires=("flashinfer",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class FlashInferRotary:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        import flashinfer

        self.cos_sin = weights["cos_sin"].float().contiguous()
        self.is_neox = params.get("style", "neox") == "neox"
        self.rotate = flashinfer.apply_rope_with_cos_sin_cache_inplace

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = unsupported_flashinfer(spec)
        rot_dim = spec.fact("rot_dim", 32)
        if rot_dim % 32:
            reasons.append(f"rotates a multiple of 32 elements, not {rot_dim}")
        return reasons

    def __call__(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> None:
        if q.shape[0]:
            self.rotate(positions, q, k, q.shape[-1], self.cos_sin, is_neox=self.is_neox)

"""``gemm_w8a16`` on a CPU in C, with weights packed once; see ``native_quantized.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_code import library_reasons
from .._shared.native_quantized import EXACT, SOURCE, NativeWeights


@impl("gemm_w8a16", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class W8A16Native(NativeWeights):
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        weight = weights["weight"].detach()
        signed = weight.dtype == torch.int8
        values = (weight.view(torch.uint8) ^ 128 if signed else weight).reshape(*weights["scales"].shape, -1)
        words = torch.nn.functional.pad(values, (0, -values.shape[2] % 4)).contiguous().view(torch.int32)
        super().__init__(spec, weights, words, values.shape[2], 8, 128 if signed else 0)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        kind, reasons = spec.fact("weight_dtype", torch.int8), library_reasons(SOURCE, spec.dtype, EXACT)
        if kind not in (torch.int8, torch.uint8):
            reasons.append(f"multiplies integers, not {kind}")
        if kind == torch.int8 and not spec.fact("symmetric", True):
            reasons.append("has zero points with uint8 weights only")
        return reasons

"""8-bit weights (int8, fp8, and quantized values of fewer bits in bytes) with float activations: the packed GEMM
(``packed_weights`` has its algorithm and the layout of words).

Words hold two quantized values 32 columns apart, in tiles of 64 rows x 64 columns (``unpack`` says how they become numbers). Signed
quantized values are stored with 128 added, which becomes their zero point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from ...tuning import NOT_TUNED, Tuned
from .._shared.gemm_options import OPTIONS, Config
from .._shared.packed_gemm import TUNE_SPACE, PackedGemm
from .._shared.packed_weights import group_reasons

_KINDS = {torch.int8: "uint8", torch.uint8: "uint8", torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


class _W8A16(PackedGemm):
    def __init__(
        self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], tuned: Tuned = NOT_TUNED, **options: int
    ) -> None:
        weight = weights["weight"]
        quantized, signed = weight.contiguous().view(torch.uint8), weight.dtype == torch.int8
        quantized, zero = (quantized ^ 128, 128) if signed else (quantized, 0)
        super().__init__(spec, weights, quantized, _KINDS[weight.dtype], zero, tuned, options, params.get("partial", False))

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        kind = spec.fact("weight_dtype", torch.uint8)
        if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return [f"multiplies float32, float16 and bfloat16, not {spec.dtype}"]
        if kind not in _KINDS:
            return [f"takes weights of {', '.join(map(str, _KINDS))}, not {kind}"]
        if kind != torch.uint8 and not spec.fact("symmetric", True):
            return [f"takes zero points with uint8 quantized values, not with {kind}"]
        return group_reasons(spec.fact("in_features", 64), spec.fact("group_size", 64), 64)


@impl("gemm_w8a16", "triton", priority=30, requires=("triton",), options=OPTIONS, tune_space=TUNE_SPACE)
class TritonW8A16(_W8A16):
    """Launched as its options, the tuned tables or its own configuration say for a number of tokens."""


@impl("gemm_w8a16", "triton_invariant", priority=5, requires=("triton",), flags=Flags(batch_invariant=True))
class InvariantW8A16(_W8A16):
    """The same kernel with one tile shape and one order of K for any number of tokens."""

    def launch(self, num_tokens: int) -> Config:
        return self.invariant_launch()

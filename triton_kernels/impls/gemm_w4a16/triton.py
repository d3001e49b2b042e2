"""4-bit weights with float activations: the packed GEMM (``packed_weights`` has its algorithm and the layout of words).

The canonical int32 words become tiles of 64 rows x 128 columns, whose 16-bit words hold four quantized values 32 columns apart; on
NVIDIA two quantized values are unpacked by one logical operation and one multiply-add. Activations of act-order weights are
permuted once per call, never gathered inside the GEMM.
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


class _W4A16(PackedGemm):
    def __init__(
        self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], tuned: Tuned = NOT_TUNED, **options: int
    ) -> None:
        packed = weights["qweight"].contiguous().view(torch.uint8)  # two quantized values per byte, the first in the low half
        quantized = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
        super().__init__(spec, weights, quantized, "int4", 8, tuned, options, params.get("partial", False))

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return [f"multiplies float32, float16 and bfloat16, not {spec.dtype}"]
        return group_reasons(spec.fact("in_features", 128), spec.fact("group_size", 128), 128)


@impl("gemm_w4a16", "triton", priority=30, requires=("triton",), options=OPTIONS, tune_space=TUNE_SPACE)
class TritonW4A16(_W4A16):
    """Launched as its options, the tuned tables or its own configuration say for a number of tokens."""


@impl("gemm_w4a16", "triton_invariant", priority=5, requires=("triton",), flags=Flags(batch_invariant=True))
class InvariantW4A16(_W4A16):
    """The same kernel with one tile shape and one order of K for any number of tokens."""

    def launch(self, num_tokens: int) -> Config:
        return self.invariant_launch()

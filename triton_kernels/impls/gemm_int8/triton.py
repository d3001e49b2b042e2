"""int8 activations times int8 weights: the scaled GEMM (``scaled_gemm`` has its algorithm).

Sums are exact integers whatever the tile and the number of splits, and scales are applied by the same operations in the same
order, so a token's result does not depend on the batch. Zero points of activations are taken off with the column sums of the
weights, which are added up once.
"""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.gemm_options import OPTIONS, TUNE_SPACE
from .._shared.scaled_gemm import ScaledGemm


@impl(
    "gemm_int8",
    "triton",
    priority=30,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options=OPTIONS,
    tune_space=TUNE_SPACE,
)
class TritonInt8(ScaledGemm):
    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        recipe = spec.fact("recipe", "channel")
        return ["scales channels, not blocks"] if recipe == "block" else []

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor, x_zero: torch.Tensor | None) -> torch.Tensor:
        return self.multiply(x, x_scale, x_zero, self.launch(x.shape[0]))

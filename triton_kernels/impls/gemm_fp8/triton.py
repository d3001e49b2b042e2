"""float8 activations times float8 weights: the scaled GEMM (``scaled_gemm`` has its algorithm), with scales per tensor,
per token x channel, or per block of 128. Needs float8 matrix instructions of the contract's formats (sm_89 and later).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from ...tuning import NOT_TUNED, Tuned
from .._shared.gemm_options import OPTIONS, TUNE_SPACE, GemmOptions, worth_trying
from .._shared.scaled_gemm import ScaledGemm

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class _FP8(ScaledGemm):
    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if spec.fact("weight_dtype", _FLOAT8[0]) not in _FLOAT8:
            reasons.append(f"takes weights of {' and '.join(map(str, _FLOAT8))}, not {spec.fact('weight_dtype')}")
        if spec.arch.startswith("gfx"):
            reasons.append(f"float8 formats of {spec.arch} are not those of the contract")
        elif spec.arch.startswith("sm_") and int(spec.arch.removeprefix("sm_")) < 89:
            reasons.append(f"needs float8 matrix instructions (sm_89 and later), not {spec.arch}")
        return reasons


@impl("gemm_fp8", "triton", priority=30, requires=("triton",), options=OPTIONS, tune_space=TUNE_SPACE)
class TritonFP8(_FP8):
    tuned_by_tokens = True
    tune_filter = staticmethod(worth_trying)

    def __init__(
        self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], tuned: Tuned = NOT_TUNED, **options: int
    ) -> None:
        super().__init__(spec, weights, params)
        self.options = GemmOptions(options, tuned)

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, x_scale, None, self.options.apply(self.config(x.shape[0]), x.shape[0]))


@impl("gemm_fp8", "triton_invariant", priority=5, requires=("triton",), flags=Flags(batch_invariant=True))
class InvariantFP8(_FP8):
    """The same kernel with one tile shape and one order of K for any number of tokens."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        super().__init__(spec, weights, params)
        self.only_config = self.config(64)._replace(split_k=1)

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, x_scale, None, self.only_config)

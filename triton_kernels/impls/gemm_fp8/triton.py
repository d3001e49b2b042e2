"""float8 activations times float8 weights: the scaled GEMM (``scaled_gemm`` has its algorithm), with scales per tensor,
per token x channel, or per block of 128. Needs float8 matrix instructions of the contract's formats (sm_89 and later).
"""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.gemm_options import OPTIONS, TUNE_SPACE, Config
from .._shared.scaled_gemm import ScaledGemm

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class _FP8(ScaledGemm):
    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, x_scale, None, self.launch(x.shape[0]))

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


# Below scaled_mm (cuBLASLt), which takes scales of tensors and channels, until measured against it.
@impl("gemm_fp8", "triton", priority=14, requires=("triton",), options=OPTIONS, tune_space=TUNE_SPACE)
class TritonFP8(_FP8):
    """Launched as its options, the tuned tables or its own configuration say for a number of tokens."""


@impl("gemm_fp8", "triton_invariant", priority=5, requires=("triton",), flags=Flags(batch_invariant=True))
class InvariantFP8(_FP8):
    """The same kernel with one tile shape and one order of K for any number of tokens."""

    def launch(self, num_tokens: int) -> Config:
        return self.invariant_launch()

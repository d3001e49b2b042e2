"""``gemm_fp8`` with block scales by DeepGEMM: its own package, or the copy that vLLM ships.

DeepGEMM compiles a persistent, warp-specialized kernel for each shape at first use (it needs the CUDA toolkit) and adds the blocks'
GEMMs in float32 outside of the tensor cores. It reads the activations' scales column by column, so that a call includes the
conversion of ours, which are row by row.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl
from triton_kernels.spec import Spec


@impl("gemm_fp8", "deep_gemm", unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class DeepGemm:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        self._gemm = _library().fp8_gemm_nt
        self._weight, self._scales = weights["weight"].contiguous(), weights["scales"].contiguous()
        self._bias = weights.get("bias")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if spec.arch != "sm_90":
            reasons.append(f"takes float32 scales on sm_90, not on {spec.arch}")
        if spec.fact("recipe", "block") != "block":
            reasons.append(f"scales blocks, not {spec.fact('recipe')}")
        if spec.fact("weight_dtype", torch.float8_e4m3fn) != torch.float8_e4m3fn:
            reasons.append(f"takes float8_e4m3fn, not {spec.fact('weight_dtype')}")
        if spec.fact("out_dtype", torch.bfloat16) != torch.bfloat16:
            reasons.append(f"gives bfloat16, not {spec.fact('out_dtype')}")
        for name, multiple in (("in_features", 128), ("out_features", 64)):
            if spec.fact(name, multiple) % multiple:
                reasons.append(f"needs a multiple of {multiple} {name.replace('_', ' ')}, not {spec.fact(name)}")
        return reasons or _import_error()

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape[0], self._weight.shape[0], dtype=torch.bfloat16, device=x.device)
        if x.shape[0]:
            self._gemm((x.contiguous(), x_scale), (self._weight, self._scales), out, disable_ue8m0_cast=True)
        return out if self._bias is None else out + self._bias


def _library() -> Any:
    installed = importlib.util.find_spec("deep_gemm") is not None
    return importlib.import_module("deep_gemm" if installed else "vllm.third_party.deep_gemm")


def _import_error() -> list[str]:
    try:
        library = _library()
    except Exception as error:  # a broken library raises what it likes
        return [f"DeepGEMM cannot be imported: {type(error).__name__}: {error}"]
    return [] if hasattr(library, "fp8_gemm_nt") else ["DeepGEMM has no fp8_gemm_nt: it needs the CUDA toolkit 12.1 or later"]

"""``gemm_w4a16`` by the 4-bit GEMM of torch (``_weight_int4pack_mm``), which keeps weights in a layout of its own.

Its weights are (q - 8) * scale + offset, with scale and offset in the activations' dtype, so that zero points other than
8 are rounded once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import impl
from ...spec import Spec

_INNER_K_TILES = 8


@impl("gemm_w4a16", "tinygemm", priority=15)
class TinyGemm:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        packed = weights["qweight"].contiguous().view(torch.uint8)
        scales, zeros = weights["scales"].to(spec.dtype), weights.get("zeros")
        self.out_features = packed.shape[0]
        self.group_size = 2 * packed.shape[1] // scales.shape[1]
        if spec.device == "cpu":
            quantized = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized.int(), 1)
            self.gemm = torch.ops.aten._weight_int4pack_mm_for_cpu
        else:
            swapped = packed << 4 | packed >> 4  # its first quantized value is in the high half
            self.packed = torch.ops.aten._convert_weight_to_int4pack(swapped, _INNER_K_TILES)
            self.gemm = torch.ops.aten._weight_int4pack_mm
        offsets = torch.zeros_like(scales) if zeros is None else (8 - zeros.to(spec.dtype)) * scales
        self.scales_and_offsets = torch.stack((scales.T, offsets.T), dim=-1).contiguous()
        self.bias = weights.get("bias")
        self.perm = weights["perm"].long() if weights.get("perm") is not None else None

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        on_cpu = spec.device == "cpu"
        if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu" if on_cpu else "_weight_int4pack_mm"):
            reasons.append(f"torch {torch.__version__} has no 4-bit GEMM")
        if not on_cpu and spec.arch.startswith("gfx"):
            reasons.append("was not built for AMD's wavefronts of 64")
        dtypes = (torch.float32, torch.float16, torch.bfloat16) if on_cpu else (torch.bfloat16,)
        if spec.dtype not in dtypes:
            reasons.append(f"takes {', '.join(map(str, dtypes))}, not {spec.dtype}")
        group, multiple = spec.fact("group_size", 128), 16 if on_cpu else 8
        if group not in (32, 64, 128, 256):
            reasons.append(f"has groups of 32, 64, 128 and 256, not of {group}")
        if spec.fact("out_features", multiple) % multiple:
            reasons.append(f"needs a multiple of {multiple} output features, not {spec.fact('out_features')}")
        if not on_cpu and spec.fact("in_features", 128) % (16 * _INNER_K_TILES):
            reasons.append(f"needs a multiple of {16 * _INNER_K_TILES} input features, not {spec.fact('in_features')}")
        return reasons

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, self.out_features)
        x = x.contiguous() if self.perm is None else x.index_select(1, self.perm)
        out: torch.Tensor = self.gemm(x, self.packed, self.group_size, self.scales_and_offsets)
        return out if self.bias is None else out.add_(self.bias)

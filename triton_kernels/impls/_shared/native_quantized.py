"""GEMMs with quantized weights on a CPU in C: packed weights and calls of ``native_quantized.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch

from ...spec import Spec
from .native_call import NativeKernel
from .native_code import library

SOURCE = "native_quantized.c"
EXACT = "-fno-associative-math"
"""How it is compiled: sums are scaled in one order, however many rows a tile has."""
_SCALE_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_SWAPS = {4: ((4, 0x00F000F0), (8, 0x0000FF00)), 8: ((8, 0x0000FF00),)}
"""By bits: what brings every second input of a word to its high half, a shift between the two that swap and a mask of the lower."""


class NativeWeights:
    """Float activations times integer weights."""

    def __init__(
        self, spec: Spec, weights: Mapping[str, torch.Tensor], words: torch.Tensor, group: int, bits: int, zero: int
    ) -> None:
        """words: int32 [N, K / group, steps], groups of unsigned values of which ``zeros``, or else ``zero``, are subtracted, the
        first in the lowest bits, the last word filled up with anything; the rest as ``gemm_w4a16`` has it."""
        scales, zeros = weights["scales"].detach(), weights.get("zeros")
        perm, bias = weights.get("perm"), weights.get("bias")
        self.num_outputs, self.num_groups, num_steps = words.shape
        self.group, self.padded = group, num_steps * 32 // bits
        for shift, mask in _SWAPS[bits]:
            change = (words ^ words >> shift) & mask
            words = words ^ change ^ change << shift
        scales = scales if scales.dtype in _SCALE_KINDS else scales.float()
        self.scale_kind, self.zero = _SCALE_KINDS[scales.dtype], zero if zeros is None else -1
        self.packed = pack(words, (scales,) if zeros is None else (scales, zeros), constant("panel", spec.dtype))
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.perm = None if perm is None else perm.int().contiguous()
        self.planes = constant("planes", spec.dtype)
        self.num_runs = self.num_groups * -(-self.padded // constant("run", spec.dtype))
        self.run = NativeKernel(SOURCE, spec.dtype, f"gemm_w{bits}a16", "pppppppp iiiiiiii", EXACT)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        source = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty(num_rows, self.num_outputs, dtype=x.dtype)
        integers = torch.empty(self.planes * self.num_groups * self.padded * num_rows, dtype=torch.int16)
        x_scale = torch.empty(self.planes * self.num_runs * num_rows, dtype=torch.float32)
        x_sum = torch.empty(self.planes * self.num_runs * num_rows, dtype=torch.int32)
        self.run(
            self.packed.numel() if num_rows else 0,
            *(source, self.perm, self.packed, self.bias, out, integers, x_scale, x_sum),
            *(num_rows, self.num_outputs, self.num_groups, self.group, self.padded, source.stride(0), self.scale_kind, self.zero),
        )
        return out


def pack(words: torch.Tensor, header: tuple[torch.Tensor, ...], panel: int) -> torch.Tensor:
    """Weights int32 [N, blocks, steps] and the header's [N, blocks] of any dtypes -> uint8 [panels, blocks, bytes of a block], with
    zeros for outputs that N lacks to whole panels."""
    missing = -words.shape[0] % panel
    parts = [torch.nn.functional.pad(part, (0, 0, 0, missing)).unflatten(0, (-1, panel)).transpose(1, 2) for part in header]
    padded = torch.nn.functional.pad(words, (0, 0, 0, 0, 0, missing))
    parts.append(padded.unflatten(0, (-1, panel)).permute(0, 2, 3, 1).flatten(2))
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=-1)


def constant(name: str, dtype: torch.dtype) -> int:
    """What the source is compiled with."""
    return ctypes.c_int64.in_dll(library(SOURCE, dtype, EXACT), f"quantized_{name}").value

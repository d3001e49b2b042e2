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
_ORDER = {8: [0, 2, 1, 3], 4: [0, 4, 1, 5, 2, 6, 3, 7]}
"""By bits: the inputs of a step in the order of its bytes; of 4 bits, first those in the low halves of the bytes."""


class NativeWeights:
    """Float activations times integer weights."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], quantized: torch.Tensor, bits: int, zero: int) -> None:
        """quantized: uint8 [N, K], of which ``zeros``, or else ``zero``, are subtracted; scales, zeros, perm and bias as
        ``gemm_w4a16`` has them."""
        scales, zeros = weights["scales"].detach(), weights.get("zeros")
        perm, bias = weights.get("perm"), weights.get("bias")
        self.num_outputs, num_inputs = quantized.shape
        self.num_groups, order = scales.shape[1], _ORDER[bits]
        self.group = num_inputs // self.num_groups
        self.padded = self.group + -self.group % len(order)
        groups = quantized.contiguous().view(-1, self.num_groups, self.group)
        steps = torch.nn.functional.pad(groups, (0, self.padded - self.group)).unflatten(2, (-1, len(order)))[..., order]
        if bits == 4:
            steps = steps[..., :4] | steps[..., 4:] << 4
        scales = scales if scales.dtype in _SCALE_KINDS else scales.float()
        self.scale_kind, self.zero = _SCALE_KINDS[scales.dtype], zero if zeros is None else -1
        self.packed = pack(steps, (scales,) if zeros is None else (scales, zeros), constant("panel", spec.dtype))
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


def pack(steps: torch.Tensor, header: tuple[torch.Tensor, ...], panel: int) -> torch.Tensor:
    """Weights [N, blocks, steps, 4] bytes, and [N, blocks] each of any dtype for the header -> uint8 [panels, blocks, bytes of a
    block], with zeros for outputs that N lacks to whole panels."""
    missing = -steps.shape[0] % panel
    words = torch.nn.functional.pad(steps.contiguous().view(torch.int32).squeeze(-1), (0, 0, 0, 0, 0, missing))
    parts = [torch.nn.functional.pad(part, (0, 0, 0, missing)).unflatten(0, (-1, panel)).transpose(1, 2) for part in header]
    parts.append(words.unflatten(0, (-1, panel)).permute(0, 2, 3, 1).flatten(2))
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=-1)


def constant(name: str, dtype: torch.dtype) -> int:
    """What the source is compiled with."""
    return ctypes.c_int64.in_dll(library(SOURCE, dtype, EXACT), f"quantized_{name}").value

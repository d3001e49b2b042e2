"""``quantize_activation`` on a CPU in C; see ``native_activation.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...ops.quantize import GROUP, largest_value
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons

_SOURCE = "native_activation.c"
_FRACTION_BITS = {torch.int8: 0, torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}


@impl("quantize_activation", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class QuantizeNative:
    takes = ("static_zero",)

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.out_dtype = params.get("out_dtype", torch.float8_e4m3fn)
        static, zero = weights.get("static_scale"), weights.get("static_zero")
        self.static_scale = None if static is None else static.float().contiguous()
        self.static_zero = None if zero is None else zero.int().contiguous()
        self.by_group = params.get("granularity", "token") == "group" and self.static_scale is None
        self.run = NativeKernel(_SOURCE, spec.dtype, "quantize", "ppppp iiiii f")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        asked = spec.fact("out_dtype", torch.int8)
        kind = [] if asked in _FRACTION_BITS else [f"makes quantized values of {', '.join(map(str, _FRACTION_BITS))}, not {asked}"]
        return kind + library_reasons(_SOURCE, spec.dtype)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        width = x.shape[-1]
        group = GROUP if self.by_group else max(width, 1)
        source = (x if x.stride(-1) == 1 else x.contiguous()).flatten(0, -2)
        out = torch.empty(x.shape, dtype=self.out_dtype)
        shape = (*x.shape[:-1], -(-width // group)) if self.static_scale is None else (1, 1)
        scales = torch.empty(shape, dtype=torch.float32)
        self.run(
            x.numel(),
            *(source, self.static_scale, self.static_zero, out, scales),
            *(source.shape[0], width, group, source.stride(0), _FRACTION_BITS[self.out_dtype], largest_value(self.out_dtype)),
        )
        return out, scales

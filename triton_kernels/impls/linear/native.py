"""``linear`` on a CPU in C, with weights packed once; see ``native_linear.c``.

The packed weight is the only copy that the bound layer keeps. At a few rows it is a stream through all threads at the speed of
memory, at many it keeps up with oneDNN.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library, library_reasons


@impl("linear", "native", priority=30, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class LinearNative:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        weight, bias = weights["weight"].detach(), weights.get("bias")
        self.num_outputs, self.num_inputs = weight.shape
        self.step = 2 if spec.dtype == torch.bfloat16 else 1
        self.packed = pack(weight, _constant(spec.dtype, "linear_panel"), self.step)
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.run = NativeKernel("native_linear.c", spec.dtype, "linear", "pppp iiii")

    @property
    def panels(self) -> torch.Tensor:
        """The weight as a table of ``embedding``, with rows of zeros at its end."""
        return self.packed.transpose(1, 2)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = library_reasons("native_linear.c", spec.dtype)
        if spec.fact("weight_dtype", spec.dtype) != spec.dtype:
            reasons.append(f"needs weights of the activations' dtype {spec.dtype}, not {spec.fact('weight_dtype')}")
        if reasons:
            return reasons
        depth = _constant(spec.dtype, "linear_depth")
        if spec.fact("in_features", depth) % depth:
            reasons.append(f"multiplies {depth} inputs at a time here, and {spec.fact('in_features')} are no multiple of it")
        if not _constant(spec.dtype, "linear_ready"):
            reasons.append("was compiled for this CPU's AMX tiles, and the operating system does not allow their use")
        return reasons

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        source = x if x.stride(1) == 1 and x.stride(0) % self.step == 0 else x.contiguous()
        out = torch.empty(x.shape[0], self.num_outputs, dtype=x.dtype)
        work = self.num_outputs * self.num_inputs if x.shape[0] else 0
        self.run(work, source, self.packed, self.bias, out, x.shape[0], self.num_outputs, self.num_inputs, source.stride(0))
        return out


def pack(weight: torch.Tensor, panel: int, step: int) -> torch.Tensor:
    """weight [N, K] -> [N / panel, K / step, panel, step], with zeros for outputs that N lacks to whole panels."""
    num_outputs, num_inputs = weight.shape
    panels = torch.nn.functional.pad(weight, (0, 0, 0, -num_outputs % panel))
    return panels.view(-1, panel, num_inputs // step, step).transpose(1, 2).contiguous()


def _constant(dtype: torch.dtype, name: str) -> int:
    return ctypes.c_int64.in_dll(library("native_linear.c", dtype), name).value

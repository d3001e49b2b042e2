"""``all_reduce`` by torch's own kernels over symmetric memory: one-shot for small messages, two-shot above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...group import ProcessGroup
from ...impl import NEVER_RAN_ACROSS_DEVICES, impl
from ...spec import Spec
from .._shared.rank_sums import backend_reasons, rounded, wide

_ALIGNED = 16
_SIGNAL_BYTES = 2048
"""At the start of a group's memory: Triton's kernels keep their signals there."""


@impl("all_reduce", "symm_mem", priority=20, devices=("cuda",), options={"one_shot_kib": 512}, unproven=NEVER_RAN_ACROSS_DEVICES)
class SymmMemAllReduce:
    """``one_shot_kib``: up to which size of the float32 sum one-shot runs."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], one_shot_kib: int) -> None:
        group = params["group"]
        assert isinstance(group, ProcessGroup) and group.handle is not None, group
        self.group, self.name = group, group.handle.group_name
        self.bias, self.out_dtype = weights.get("bias"), params.get("out_dtype")
        self.one_shot_bytes = one_shot_kib << 10

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return backend_reasons(spec, "nccl")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        total = wide(x)
        num_bytes = -(-total.numel() * total.itemsize // (_ALIGNED * self.group.size)) * _ALIGNED * self.group.size
        memory = self.group.symmetric(_SIGNAL_BYTES + num_bytes, x.device).own
        shared = memory[_SIGNAL_BYTES : _SIGNAL_BYTES + num_bytes].view(total.dtype)
        shared[: total.numel()].copy_(total.reshape(-1))
        if num_bytes <= self.one_shot_bytes:
            summed = torch.ops.symm_mem.one_shot_all_reduce(shared, "sum", self.name)
        else:
            summed = torch.ops.symm_mem.two_shot_all_reduce_(shared, "sum", self.name).clone()
        return rounded(summed[: total.numel()].view(x.shape), self.bias, self.out_dtype or x.dtype)

"""``moe_experts`` by torch's grouped GEMM (``torch.nn.functional.grouped_mm``: CUTLASS on sm_90 and sm_100), over the tokens
sorted by expert. The ends of the groups stay on the device; a CPU multiplies group by group. A baseline for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import impl
from ...spec import Spec
from .torch import combine, local_experts

_ALIGNMENT_BYTES = 16


@impl("moe_experts", "grouped_mm", priority=5)
class GroupedMM:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        self.w13, self.w2 = (weights[name].contiguous().transpose(1, 2) for name in ("w13", "w2"))
        self.expert_start = params.get("expert_start", 0)
        self.experts = torch.arange(self.w2.shape[0], device=self.w2.device)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if not hasattr(torch.nn.functional, "grouped_mm"):
            reasons.append(f"torch {torch.__version__} has no grouped_mm")
        if spec.fact("scheme", "float") != "float":
            reasons.append(f"multiplies weights of the activations' dtype, not {spec.fact('scheme')}")
        if given := spec.fact("given", ""):
            reasons.append(f"does not take {given}")
        for name in ("hidden_size", "intermediate_size"):
            if spec.fact(name, _ALIGNMENT_BYTES) * spec.dtype.itemsize % _ALIGNMENT_BYTES:
                reasons.append(f"needs rows of a multiple of {_ALIGNMENT_BYTES} bytes, {name} is {spec.fact(name)}")
        if spec.device == "cuda":
            if spec.dtype != torch.bfloat16:
                reasons.append(f"multiplies bfloat16 on this device, not {spec.dtype}")
            if spec.arch not in ("sm_90", "sm_100"):
                reasons.append(f"torch's grouped GEMM is made for sm_90 and sm_100, on {spec.arch} it is a loop")
        return reasons

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 0:
            return torch.empty_like(x)
        num_experts, top_k = len(self.experts), ids.shape[1]
        ordered, order = local_experts(ids, self.expert_start, num_experts).sort(stable=True)
        ends = torch.searchsorted(ordered, self.experts, right=True, out_int32=True)
        rows = x.index_select(0, order // top_k)
        gate, up = torch.nn.functional.grouped_mm(rows, self.w13, offs=ends).chunk(2, dim=-1)
        results = torch.nn.functional.grouped_mm(torch.nn.functional.silu(gate).mul_(up), self.w2, offs=ends).float()
        results.masked_fill_((ordered == num_experts)[:, None], 0)  # experts elsewhere: these rows were never written
        return combine(results, order, weights).to(x.dtype)

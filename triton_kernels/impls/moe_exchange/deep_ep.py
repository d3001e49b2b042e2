"""``moe_exchange`` by DeepEP (package ``deep_ep``, 1.2; github.com/deepseek-ai/DeepEP): a token goes only to the ranks that have
one of its experts, over NVLink and RDMA. Its "normal" kernels, whose receiver the host must tell how many rows came; what ranks
send back is rounded to bfloat16 before it is summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...group import Group
from ...impl import NEVER_MET_ITS_LIBRARY, Flags, impl
from ...ops.moe_exchange import Experts
from ...spec import Spec
from .._shared.rank_sums import backend_reasons


@impl(
    "moe_exchange",
    "deep_ep",
    priority=15,
    flags=Flags(cuda_graph=False),
    requires=("deep_ep",),
    devices=("cuda",),
    unproven=NEVER_MET_ITS_LIBRARY,
)
class DeepEPExchange:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        import deep_ep

        self.library, self.buffer = deep_ep, None
        self.group: Group = params["group"]
        self.experts: Experts = params["experts"]
        self.num_slots: int = params["num_slots"]
        self.out_dtype: torch.dtype | None = params.get("out_dtype")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = backend_reasons(spec, "nccl", "solo")
        if spec.dtype != torch.bfloat16:
            reasons.append(f"sends bfloat16, not {spec.dtype}")
        if not spec.arch.startswith("sm_") or int(spec.arch[3:]) < 80:
            reasons.append(f"has CUDA kernels for sm_80 or later, not for {spec.arch}")
        return reasons

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        buffer = self.buffer = self.buffer or self._make_buffer(x.shape[1] * x.itemsize)
        chosen = ids.long()
        per_rank, per_node, per_expert, is_sent, _ = buffer.get_dispatch_layout(chosen, self.num_slots)
        rows, own_ids, own_weights, _, handle, _ = buffer.dispatch(
            x.contiguous(),
            topk_idx=chosen,
            topk_weights=weights.contiguous(),
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=is_sent,
            num_tokens_per_expert=per_expert,
        )
        first = self.group.rank * (self.num_slots // self.group.size)
        slots = torch.where(own_ids < 0, -1, own_ids + first).int()  # it counts the slots of each rank from 0
        out = self.experts(rows, own_weights, slots)
        combined, _, _ = buffer.combine(out.to(x.dtype), handle)
        return combined.to(self.out_dtype or out.dtype)

    def _make_buffer(self, row_bytes: int) -> Any:
        """With room for what its own configurations of both directions want."""
        kind, size = self.library.Buffer, self.group.size
        configs = kind.get_dispatch_config(size), kind.get_combine_config(size)
        nvlink = max(config.get_nvl_buffer_size_hint(row_bytes, size) for config in configs)
        rdma = max(config.get_rdma_buffer_size_hint(row_bytes, size) for config in configs)
        return kind(getattr(self.group, "handle", None), nvlink, rdma)

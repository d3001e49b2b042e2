"""``all_reduce`` by FlashInfer (package ``flashinfer``, 0.6): TensorRT-LLM's one-shot and two-shot kernels, in float32, so that the
sum is rounded once. Its fused norm wants x in the dtype of the residual, which would round twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...group import Group
from ...impl import NEVER_MET_ITS_LIBRARY, impl
from ...spec import Spec
from .._shared.flashinfer import unsupported_arch
from .._shared.rank_sums import backend_reasons, rounded


@impl(
    "all_reduce",
    "flashinfer",
    priority=15,
    requires=("flashinfer",),
    devices=("cuda",),
    options={"max_tokens": 8192},
    unproven=NEVER_MET_ITS_LIBRARY,
)
class FlashInferAllReduce:
    """``max_tokens``: rows that the library's workspace is made for, by the first call."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], max_tokens: int) -> None:
        import flashinfer.comm

        self.library, self.max_tokens, self.workspace = flashinfer.comm, max_tokens, None
        self.group: Group = params["group"]
        self.bias, self.out_dtype = weights.get("bias"), params.get("out_dtype")

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        ranks = spec.fact("ranks", 2)
        few = [] if ranks in (2, 4, 8) else [f"adds 2, 4 or 8 ranks, not {ranks}"]
        return unsupported_arch(spec) + backend_reasons(spec, "nccl") + few

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        partial = x.float().contiguous()
        if x.numel() == 0:
            return rounded(partial, None, self.out_dtype or x.dtype)
        if self.workspace is None:
            self.workspace = self.library.create_allreduce_fusion_workspace(
                backend="trtllm",
                world_size=self.group.size,
                rank=self.group.rank,
                max_token_num=self.max_tokens,
                hidden_dim=x.shape[1],
                dtype=torch.float32,
            )
        total = torch.empty_like(partial)
        pattern = self.library.AllReduceFusionPattern.kAllReduce
        self.library.allreduce_fusion(input=partial, workspace=self.workspace, pattern=pattern, output=total, fp32_acc=True)
        return rounded(total, self.bias, self.out_dtype or x.dtype)

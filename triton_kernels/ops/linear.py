"""``linear``: the GEMM of every projection, the logits included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..cases.linear import CASES
from ..op import PARTIAL, Cost, Op, rounded_once


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, partial: bool = False) -> torch.Tensor:
    """x [T, K] @ weight [N, K]^T (+ bias [N]) -> [T, N] in x's dtype; ``partial``: as ``op.PARTIAL`` says."""
    return rounded_once(x.double() @ weight.double().T, bias, x.dtype, partial)


def fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, partial: bool = False) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32 if partial else x.dtype)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: in_features, out_features, weight_bytes, act_bytes."""
    tokens, k, n = sum(q_lens), dims["in_features"], dims["out_features"]
    return Cost(2 * tokens * k * n, n * k * dims.get("weight_bytes", 2) + tokens * (k + n) * dims.get("act_bytes", 2))


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    n, k = bound["weight"].shape
    return {"in_features": k, "out_features": n, "weight_dtype": bound["weight"].dtype}


linear = Op(
    "linear",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("weight", "bias", PARTIAL),
    optional=(PARTIAL,),
    row_args=("x",),
    facts=facts,
)

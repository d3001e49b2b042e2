"""``head_linear``: a linear layer of its own for each head, as latent attention has on both of its sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..cases.head_linear import CASES
from ..op import Cost, Op


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, H, K] (last dimension contiguous), weight [H, N, K] -> [T, H, N] in x's dtype: x[:, h] @ weight[h]^T.

    Source: DeepSeek-V2, arXiv 2405.04434: the up-projections of keys and values, absorbed into queries and outputs.
    """
    return torch.einsum("thk,hnk->thn", x.double(), weight.double()).to(x.dtype)


def fake(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], *weight.shape[:2])


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_heads, in_features, out_features (of a head), weight_bytes, act_bytes."""
    tokens, heads, k, n = sum(q_lens), dims["num_heads"], dims["in_features"], dims["out_features"]
    moved = heads * (n * k * dims.get("weight_bytes", 2) + tokens * (k + n) * dims.get("act_bytes", 2))
    return Cost(2 * tokens * heads * k * n, moved)


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    heads, n, k = bound["weight"].shape
    return {"num_heads": heads, "in_features": k, "out_features": n, "weight_dtype": bound["weight"].dtype}


head_linear = Op("head_linear", reference, fake, cost, cases=CASES, bind_args=("weight",), row_args=("x",), facts=facts)

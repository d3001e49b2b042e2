"""``embedding``: rows of a table, which may be one shard of the vocabulary, and may lie as a GEMM has packed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..cases.embedding import CASES
from ..op import Cost, Op, Tolerance


def reference(token_ids: torch.Tensor, weight: torch.Tensor, vocab_start: int = 0) -> torch.Tensor:
    """Rows token_ids [T] (int32 or int64, global ids) of weight [V_local, H] -> [T, H]. Ids outside
    [vocab_start, vocab_start + V_local) give zeros, so that shards can be summed.

    weight may be in panels: [V_local / P, P, H / S, S] with any strides, row r of it is weight[r // P, r % P], flat."""
    weight = weight.reshape(-1, _width(weight))
    local = token_ids.long() - vocab_start
    inside = (local >= 0) & (local < weight.shape[0])
    rows = weight[local.clamp(0, weight.shape[0] - 1)]
    return torch.where(inside[:, None], rows, torch.zeros((), dtype=weight.dtype, device=weight.device))


def fake(token_ids: torch.Tensor, weight: torch.Tensor, vocab_start: int = 0) -> torch.Tensor:
    return weight.new_empty(token_ids.shape[0], _width(weight))


def _width(weight: torch.Tensor) -> int:
    return weight.shape[2:].numel() if weight.dim() == 4 else weight.shape[1]


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"panels": bound["weight"].dim() == 4}


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: hidden_size, weight_bytes."""
    return Cost(0, sum(q_lens) * (2 * dims["hidden_size"] * dims.get("weight_bytes", 2) + 4))


embedding = Op(
    "embedding",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("weight", "vocab_start"),
    row_args=("token_ids",),
    tolerance=Tolerance(exact=True),
    facts=facts,
)

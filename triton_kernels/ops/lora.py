"""``lora_shrink`` and ``lora_expand``: the two thin GEMMs of low-rank adapters, each token with its own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..cases.lora import EXPAND_CASES, SHRINK_CASES
from ..op import Cost, Op


def lora_shrink_reference(x: torch.Tensor, lora_index: torch.Tensor, lora_a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [T, K], lora_index int32 [T] (-1 = none), the adapters' A [L, r, K] and scale f32 [L] -> f32 [T, r]: scale * A x; 0 where
    there is no adapter. Source: Hu et al., LoRA, arXiv 2106.09685; Chen et al., Punica, arXiv 2310.18547."""
    out = torch.zeros(x.shape[0], lora_a.shape[1], dtype=torch.float64, device=x.device)
    for adapter in lora_index.unique().tolist():
        if adapter >= 0:
            rows = lora_index == adapter
            out[rows] = x[rows].double() @ lora_a[adapter].double().T * scale[adapter].double()
    return out.float()


def lora_expand_reference(
    y: torch.Tensor, shrunk: torch.Tensor, lora_index: torch.Tensor, lora_b: torch.Tensor, start: int = 0
) -> None:
    """Adds B of each token's adapter times shrunk f32 [T, r] to y[:, start : start + N], in place; B [L, N, r].
    Rows without adapter (-1) keep their bits. Impls may round ``shrunk`` to the dtype of B."""
    for adapter in lora_index.unique().tolist():
        if adapter >= 0:
            rows = (lora_index == adapter).nonzero()[:, 0]
            columns = slice(start, start + lora_b.shape[1])
            delta = shrunk[rows].double() @ lora_b[adapter].double().T
            y[rows, columns] = (y[rows, columns].double() + delta).to(y.dtype)


def lora_shrink_fake(x, lora_index, lora_a, scale):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], lora_a.shape[1], dtype=torch.float32)


def lora_expand_fake(y, shrunk, lora_index, lora_b, start=0):  # type: ignore[no-untyped-def]
    return None


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: features (K of shrink, N of expand), rank, num_adapters (in the batch), act_bytes, weight_bytes."""
    tokens, width, rank = sum(q_lens), dims["features"], dims["rank"]
    moved = dims.get("num_adapters", 1) * width * rank * dims.get("weight_bytes", 2)
    return Cost(2 * tokens * width * rank, moved + tokens * (width * dims.get("act_bytes", 2) + rank * 4))


def lora_shrink_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"rank": bound["lora_a"].shape[1], "weight_dtype": bound["lora_a"].dtype}


def lora_expand_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"rank": bound["lora_b"].shape[2], "weight_dtype": bound["lora_b"].dtype}


lora_shrink = Op(
    "lora_shrink",
    lora_shrink_reference,
    lora_shrink_fake,
    cost,
    cases=SHRINK_CASES,
    facts=lora_shrink_facts,
    bind_args=("lora_a", "scale"),
    row_args=("x", "lora_index"),
)
lora_expand = Op(
    "lora_expand",
    lora_expand_reference,
    lora_expand_fake,
    cost,
    cases=EXPAND_CASES,
    facts=lora_expand_facts,
    bind_args=("lora_b", "start"),
    mutates=("y",),
    row_args=("y", "shrunk", "lora_index"),
)

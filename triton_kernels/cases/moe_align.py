"""Cases of ``moe_align``: popular experts, experts without a token, and experts that are held elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_experts: int,
    top_k: int,
    block_m: int = 16,
    expert_start: int = 0,
    everywhere: int = 0,
) -> dict[str, Any]:
    """Low ids are frequent. ``everywhere``: number of experts in all, of which num_experts are here."""
    del dtype  # integers only
    everywhere = everywhere or num_experts
    popularity = torch.rand(tokens, everywhere, generator=generator) + 3.0 / (1 + torch.arange(everywhere))
    ids = popularity.topk(top_k).indices.int() if tokens else torch.zeros(0, top_k, dtype=torch.int32)
    return {"ids": ids.to(device), "num_experts": num_experts, "expert_start": expert_start, "block_m": block_m}


def _case(name: str, tags: frozenset[str], tokens: int, num_experts: int, top_k: int, **more: Any) -> Case:
    make = partial(_make, tokens=tokens, num_experts=num_experts, top_k=top_k, **more)
    dims = {"num_experts": num_experts, "top_k": top_k, "block_m": more.get("block_m", 16)}
    return Case(name, make, tags, dims, (tokens,), (tokens,))


CASES = (
    _case("one_row", SMALL, 1, 4, 2),
    _case("tiled", TILED, 67, 5, 3),
    _case("many_experts", SMALL, 5, 24, 2),
    _case("shard", SMALL, 33, 4, 3, expert_start=5, everywhere=12),
    _case("none_here", SMALL, 9, 3, 2, expert_start=40, everywhere=12),
    _case("empty", SMALL, 0, 4, 2),
    *(_case(f"qwen3-30b-a3b_{tokens}", BENCH, tokens, 128, 8, block_m=64) for tokens in (64, 8192)),
)

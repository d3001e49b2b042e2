"""Cases of ``moe_route`` and ``moe_experts``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn


def _route(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_experts: int,
    top_k: int,
    bias: bool = False,
    ties: bool = False,
    strided: bool = False,
    **static: Any,
) -> dict[str, Any]:
    pad = 8 if strided else 0
    logits = randn(generator, dtype, device, tokens, num_experts + pad, scale=2.0)[:, pad:]
    return {
        "logits": logits.round() if ties else logits,
        "bias": randn(generator, torch.float32, device, num_experts, scale=0.1) if bias else None,
        "top_k": top_k,
        "renormalize": True,
        "scoring": "softmax",
        **static,
    }


def _route_case(name: str, tags: frozenset[str], tokens: int, num_experts: int, top_k: int, **more: Any) -> Case:
    make = partial(_route, tokens=tokens, num_experts=num_experts, top_k=top_k, **more)
    return Case(name, make, tags, {"num_experts": num_experts, "top_k": top_k}, (tokens,))


def _experts(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_experts: int,
    top_k: int,
    hidden_size: int,
    inner_size: int,
    expert_start: int = 0,
    skewed: bool = False,
    strided: bool = False,
) -> dict[str, Any]:
    """``expert_start`` > 0: these are the experts in the middle of three times as many; ``skewed``: low ids are frequent."""
    pad = 8 if strided else 0
    everywhere = num_experts * (3 if expert_start else 1)
    popularity = torch.rand(tokens, everywhere, generator=generator)
    if skewed:
        popularity += 3.0 / (1 + torch.arange(everywhere))
    ids = popularity.topk(top_k).indices.int() if tokens else torch.zeros(0, top_k, dtype=torch.int32)
    return {
        "x": randn(generator, dtype, device, tokens, hidden_size + pad)[:, pad:],
        "weights": torch.rand(tokens, top_k, generator=generator).to(device),
        "ids": ids.to(device),
        "w13": randn(generator, dtype, device, num_experts, 2 * inner_size, hidden_size, scale=hidden_size**-0.5),
        "w2": randn(generator, dtype, device, num_experts, hidden_size, inner_size, scale=inner_size**-0.5),
        "expert_start": expert_start,
    }


def _experts_case(
    name: str, tags: frozenset[str], tokens: int, num_experts: int, top_k: int, hidden: int, inner: int, **more: Any
) -> Case:
    make = partial(_experts, tokens=tokens, num_experts=num_experts, top_k=top_k, hidden_size=hidden, inner_size=inner, **more)
    dims = {"num_experts": num_experts, "top_k": top_k, "hidden_size": hidden, "intermediate_size": inner}
    return Case(name, make, tags, dims, (tokens,))


MOE_ROUTE_CASES = (
    _route_case("one_row", SMALL, 1, 8, 2),
    _route_case("tiled", TILED, 99, 60, 4, renormalize=False),
    _route_case("ties", SMALL, 23, 16, 5, ties=True),
    _route_case("sigmoid_bias", SMALL, 11, 32, 6, scoring="sigmoid", bias=True),
    _route_case("strided", SMALL, 7, 24, 3, strided=True),
    _route_case("all_experts", SMALL, 3, 5, 5),
    _route_case("empty", SMALL, 0, 8, 2),
    *(_route_case(f"qwen3-30b-a3b_{tokens}", BENCH, tokens, 128, 8) for tokens in (64, 8192)),
)

MOE_EXPERTS_CASES = (
    _experts_case("one_row", SMALL, 1, 4, 2, 32, 16),
    _experts_case("tiled", TILED, 67, 3, 2, 67, 53, skewed=True),
    _experts_case("empty_experts", SMALL, 5, 16, 2, 40, 24),
    _experts_case("shard", SMALL, 21, 4, 3, 32, 32, expert_start=4),
    _experts_case("strided", SMALL, 9, 5, 2, 48, 37, strided=True),
    _experts_case("empty", SMALL, 0, 4, 2, 16, 16),
    *(_experts_case(f"qwen3-30b-a3b_{tokens}", BENCH, tokens, 128, 8, 2048, 768) for tokens in (1, 64, 4096)),
    *(_experts_case(f"mixtral-8x7b_{tokens}", BENCH, tokens, 8, 2, 4096, 14336) for tokens in (1, 64)),
)

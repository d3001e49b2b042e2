"""Routing in one pass over the router's logits.

Algorithm: scores by softmax or sigmoid, then top_k rounds of maximum, lowest id first among equals; without a bias the logits
themselves are ranked, which has no rounding. Grid: blocks of BLOCK_T tokens. Registers hold the logits of the block for all
experts; shared memory serves the reductions alone. One launch and one read of the logits, whatever top_k. Made for
at most a few hundred experts, which fit in registers.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit(do_not_specialize=["num_tokens"])
def _route_kernel(
    logits,
    bias,
    weights,
    ids,
    num_tokens,
    stride_t,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.arange(0, BLOCK_E)
    real = (experts < NUM_EXPERTS)[None, :]
    mask = (tokens < num_tokens)[:, None] & real
    values = tl.load(logits + tokens[:, None] * stride_t + experts[None, :], mask=mask, other=0.0).to(tl.float32)
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-values))
    else:
        peak = tl.max(tl.where(real, values, float("-inf")), 1)
        scores = tl.where(real, tl.exp(values - peak[:, None]), 0.0)
        scores = scores / tl.sum(scores, 1)[:, None]
    rank = values
    if bias is not None:
        rank = scores + tl.load(bias + experts, mask=experts < NUM_EXPERTS, other=0.0).to(tl.float32)[None, :]

    ranks = tl.arange(0, BLOCK_K)[None, :]
    chosen = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    gains = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    free = mask
    for k in tl.static_range(TOP_K):
        best = tl.max(tl.where(free, rank, float("-inf")), 1)
        first = tl.min(tl.where(free & (rank == best[:, None]), experts[None, :], BLOCK_E), 1)
        first = tl.minimum(first, NUM_EXPERTS - 1)  # a row of NaN has no maximum; its ids must stay in range all the same
        hit = experts[None, :] == first[:, None]
        gain = tl.sum(tl.where(hit, scores, 0.0), 1)
        chosen = tl.where(ranks == k, first[:, None], chosen)
        gains = tl.where(ranks == k, gain[:, None], gains)
        free = free & (hit == 0)
    if RENORMALIZE:
        gains = gains / tl.sum(gains, 1)[:, None]
    targets = tokens[:, None] * TOP_K + ranks
    mask = (tokens < num_tokens)[:, None] & (ranks < TOP_K)
    tl.store(ids + targets, chosen, mask=mask)
    tl.store(weights + targets, gains, mask=mask)


_LAUNCH = Launch(_route_kernel, num_warps=4, enable_fp_fusion=True)


@impl("moe_route", "triton", priority=50, requires=("triton",), flags=Flags(batch_invariant=True), options={"block_t": 0})
def moe_route_triton(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    top_k: int = 2,
    renormalize: bool = True,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    *,
    block_t: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``block_t``: tokens of a program; 0 takes as many as make 1024 logits."""
    num_tokens, num_experts = logits.shape
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(num_tokens, top_k, dtype=torch.int32, device=logits.device)
    block_e = max(16, next_power_of_2(num_experts))
    block_t = block_t or max(1, 1024 // block_e)
    if num_tokens:
        _LAUNCH(
            (cdiv(num_tokens, block_t),),
            logits,
            bias,
            weights,
            ids,
            num_tokens,
            logits.stride(0),
            NUM_EXPERTS=num_experts,
            TOP_K=top_k,
            RENORMALIZE=renormalize,
            SIGMOID=scoring == "sigmoid",
            BLOCK_T=block_t,
            BLOCK_E=block_e,
            BLOCK_K=next_power_of_2(top_k),
        )
    return weights, ids

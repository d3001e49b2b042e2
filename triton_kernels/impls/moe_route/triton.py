"""Routing in one pass over the router's logits.

Algorithm: scores by softmax or sigmoid, the best groups where there are some, then top_k rounds of maximum, lowest id first among
equals; without a bias the logits themselves are ranked, which has no rounding. Grid: blocks of BLOCK_T tokens. Registers hold the
logits of the block for all experts; shared memory serves the reductions alone. One launch and one read of the logits, whatever
top_k. Made for at most a few hundred experts, which fit in registers.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...ops.moe import NO_WEIGHT
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit
def _best(rank, free, places, NOWHERE: tl.constexpr):
    """(largest, its place) in each row of ``rank`` where ``free``, the lowest place among equals; NOWHERE in rows of NaN."""
    best = tl.max(tl.where(free, rank, float("-inf")), 1)
    return best, tl.min(tl.where(free & (rank == best[:, None]), places[None, :], NOWHERE), 1)


@triton.jit
def _in_best_groups(worth, experts, SIZE: tl.constexpr, NUM_GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, BEST_TWO: tl.constexpr):
    """bool [T, E]: which experts lie in a token's TOP_GROUPS best groups of SIZE neighbours. Groups need not be powers of two."""
    BLOCK_G: tl.constexpr = triton.next_power_of_2(NUM_GROUPS)
    groups = tl.arange(0, BLOCK_G)
    values = tl.full((worth.shape[0], BLOCK_G), float("-inf"), tl.float32)
    for g in tl.static_range(NUM_GROUPS):
        inside = (experts // SIZE == g)[None, :]
        value, first = _best(worth, inside, experts, NUM_GROUPS * SIZE)
        if BEST_TWO:
            value += _best(worth, inside & (experts[None, :] != first[:, None]), experts, NUM_GROUPS * SIZE)[0]
        values = tl.where(groups[None, :] == g, value[:, None], values)
    free = (groups < NUM_GROUPS)[None, :] & (values == values)
    chosen = tl.zeros_like(worth) > 0
    for _ in tl.static_range(TOP_GROUPS):
        _, group = _best(values, free, groups, BLOCK_G)
        free = free & (groups[None, :] != group[:, None])
        chosen = chosen | (experts[None, :] // SIZE == group[:, None])
    return chosen


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
    NUM_GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    BEST_TWO: tl.constexpr,
    SCALING: tl.constexpr,
    NO_WEIGHT: tl.constexpr,
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
    if NUM_GROUPS > 1:
        worth = scores if BEST_TWO and bias is None else rank
        free = free & _in_best_groups(worth, experts, NUM_EXPERTS // NUM_GROUPS, NUM_GROUPS, TOP_GROUPS, BEST_TWO)
    for k in tl.static_range(TOP_K):
        _, first = _best(rank, free, experts, BLOCK_E)
        first = tl.minimum(first, NUM_EXPERTS - 1)  # a row of NaN has no maximum; its ids must stay in range all the same
        hit = experts[None, :] == first[:, None]
        gain = tl.sum(tl.where(hit, scores, 0.0), 1)
        chosen = tl.where(ranks == k, first[:, None], chosen)
        gains = tl.where(ranks == k, gain[:, None], gains)
        free = free & (hit == 0)
    if RENORMALIZE:
        gains = gains / (tl.sum(gains, 1) + NO_WEIGHT)[:, None]
    gains *= SCALING
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
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: Literal["max", "top2"] = "max",
    scaling: float = 1.0,
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
            NUM_GROUPS=num_groups,
            TOP_GROUPS=top_groups,
            BEST_TWO=group_score == "top2",
            SCALING=scaling,
            NO_WEIGHT=NO_WEIGHT,
            BLOCK_T=block_t,
            BLOCK_E=block_e,
            BLOCK_K=next_power_of_2(top_k),
        )
    return weights, ids

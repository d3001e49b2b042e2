"""``moe_route`` and ``moe_experts``: which experts a token goes to, and what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..cases.moe import MOE_EXPERTS_CASES, MOE_ROUTE_CASES
from ..op import Cost, Op, Tolerance
from .gemm import FP8_BLOCK, dequantize, spread, unpack_int4
from .quantize import Granularity
from .quantize import reference as quantize

NO_WEIGHT = 1e-20
"""Added to the sum of a token's weights, which it changes only where that is 0."""


def moe_route_reference(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    top_k: int = 2,
    renormalize: bool = True,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: Literal["max", "top2"] = "max",
    scaling: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Router logits [T, E] -> weights f32 [T, top_k], expert ids int32 [T, top_k], best first, ties to the lower id.

    The scores are softmax (or sigmoid) of the logits; ``bias`` [E] changes which experts are chosen, not their weights.
    num_groups    groups of E / num_groups neighbours; only experts of a token's top_groups best groups can be chosen
    group_score   what a group is worth, bias included: its best expert, or the sum of its best two (DeepSeek-V3)
    renormalize   weights are divided by their sum; scaling: and then multiplied. Where all scores are 0, so are they
    Source: DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, arXiv 2412.19437.
    """
    wide = logits.double()
    scores = torch.softmax(wide, dim=-1) if scoring == "softmax" else torch.sigmoid(wide)
    worth = scores if bias is None else scores + bias.double()
    if num_groups > 1:
        groups = worth.unflatten(1, (num_groups, -1))
        best = groups.amax(-1) if group_score == "max" else groups.topk(2).values.sum(-1)
        chosen = torch.sort(best, dim=-1, descending=True, stable=True).indices[:, :top_groups]
        hidden = torch.ones_like(best, dtype=torch.bool).scatter_(1, chosen, False)
        worth = groups.masked_fill(hidden[..., None], -torch.inf).flatten(1)
    ids = torch.sort(worth, dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + NO_WEIGHT)
    return (weights * scaling).float(), ids.int()


def moe_experts_reference(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    expert_start: int = 0,
    w13_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    w13_zeros: torch.Tensor | None = None,
    w2_zeros: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    limit: float | None = None,
    alpha: float = 1.702,
    weighs_input: bool = False,
) -> torch.Tensor:
    """Sum over a token's experts of weight * (w2 (silu(gate) * up) + w2_bias), where gate, up = w13 x + w13_bias.

    x [T, H]; weights f32 [T, k]; ids int32 [T, k], global; w13 [E, 2I, H] (gate rows first), w2 [E, H, I] hold the experts
    expert_start .. expert_start + E - 1, others contribute nothing. Returns [T, H].

    w13_bias, w2_bias   [E, 2I] and [E, H] in the dtype of x, or None
    limit, alpha   with a limit the hidden state is gate * sigmoid(alpha * gate) * (up + 1), of a gate of at most, and an up within
                   -limit and limit (gpt-oss)
    weighs_input   weights multiply x, before w13, and not the results (Llama 4)

    Rows and columns of the weights of one
    expert, R x K, may be quantized (both of them in the same way):

    w4a16  int32 [E, R, K/8], scales [E, R, K/G] in a float dtype, zeros uint8 [E, R, K/G] or None: for each expert the layout
           of ``gemm_w4a16``
    fp8    float8_e4m3fn [E, R, K], scales f32 [E, R, 1] (channels), or [E, ceil(R/128), ceil(K/128)] (blocks), where blocks of
           gate and of up are counted apart: w13_scale [E, 2 ceil(I/128), ceil(H/128)]. Then x and silu(gate) * up are
           quantized to float8_e4m3fn by the rule of ``quantize_activation``: per token, or with blocks per token and group
           of 128 columns.
    """
    granularity = fp8_granularity(w13, w13_scale)
    rows = x.double() if granularity is None else _rounded_to_quantized(x, granularity)
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    local = ids.long() - expert_start
    for expert in local.unique().tolist():
        if not 0 <= expert < w13.shape[0]:
            continue
        token, choice = (local == expert).nonzero(as_tuple=True)
        weight = weights[token, choice, None].double()
        taken = rows[token] * weight if weighs_input else rows[token]
        joined = taken @ _expert_weight(w13, w13_scale, w13_zeros, expert, parts=2).T
        hidden = gated(joined if w13_bias is None else joined + w13_bias[expert].double(), limit, alpha)
        if granularity is not None:
            hidden = _rounded_to_quantized(hidden, granularity)
        result = hidden @ _expert_weight(w2, w2_scale, w2_zeros, expert, parts=1).T
        if w2_bias is not None:
            result = result + w2_bias[expert].double()
        out.index_add_(0, token, result if weighs_input else result * weight)
    return out.to(x.dtype)


def gated(joined: torch.Tensor, limit: float | None, alpha: float) -> torch.Tensor:
    """[T, 2I], gate beside up, -> [T, I]: see :func:`moe_experts_reference`."""
    gate, up = joined.chunk(2, dim=-1)
    if limit is None:
        return torch.nn.functional.silu(gate) * up
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def fp8_granularity(w13: torch.Tensor, w13_scale: torch.Tensor | None) -> Granularity | None:
    """How fine activations are quantized; None where they are not."""
    if w13_scale is None or w13.dtype == torch.int32:
        return None
    return "token" if w13_scale.shape[1] == w13.shape[1] else "group"


def _rounded_to_quantized(x: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """float64 [M, K]: the numbers that the quantized values of x stand for."""
    return spread(*quantize(x, torch.float8_e4m3fn, granularity), 1)


def _expert_weight(
    quantized_values: torch.Tensor, scales: torch.Tensor | None, zeros: torch.Tensor | None, expert: int, parts: int
) -> torch.Tensor:
    """float64 [R, K]; ``parts``: of how many matrices the blocks of rows are counted apart."""
    if scales is None:
        return quantized_values[expert].double()
    if quantized_values.dtype == torch.int32:
        return dequantize(unpack_int4(quantized_values[expert]), scales[expert], 8 if zeros is None else zeros[expert])
    row_block = 1 if scales.shape[1] == quantized_values.shape[1] else FP8_BLOCK
    pairs = zip(quantized_values[expert].chunk(parts), scales[expert].chunk(parts))
    return torch.cat([spread(part, of_part, row_block) for part, of_part in pairs])


def moe_route_fake(logits, bias=None, top_k=2, **rule):  # type: ignore[no-untyped-def]
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def moe_experts_fake(x, weights, ids, w13, w2, expert_start=0, **quantized):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def moe_route_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_experts, top_k, act_bytes."""
    tokens = sum(q_lens)
    return Cost(4 * tokens * dims["num_experts"], tokens * (dims["num_experts"] * dims.get("act_bytes", 2) + 8 * dims["top_k"]))


def moe_experts_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_experts, top_k, hidden_size, intermediate_size, weight_bytes (or weight_bits), act_bytes; of quantized weights
    also scale_bytes (of a scale and its zero point), group_size (columns of a scale, 0 = all) and group_rows (its rows). Expects
    tokens to spread evenly."""
    tokens, experts, chosen = sum(q_lens), dims["num_experts"], dims["top_k"]
    hidden, inner = dims["hidden_size"], dims["intermediate_size"]
    active = experts * (1 - (1 - chosen / experts) ** tokens)
    group = dims.get("group_size", 0)
    groups = 2 * inner * (hidden / group if group else 1) + hidden * (inner / group if group else 1)
    expert_bytes = 3 * hidden * inner * dims.get("weight_bits", 8 * dims.get("weight_bytes", 2)) / 8
    expert_bytes += groups / dims.get("group_rows", 1) * dims.get("scale_bytes", 0)
    moved = active * expert_bytes + 2 * tokens * hidden * dims.get("act_bytes", 2)
    return Cost(6 * tokens * chosen * hidden * inner, moved)


def moe_experts_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    """scheme: "float", "w4a16", "fp8_channel" or "fp8_block". Of w4a16 also group_size and inner_group_size, the columns that
    share a scale in w13 and in w2, and symmetric."""
    w13, w2, scales = bound["w13"], bound["w2"], bound.get("w13_scale")
    hidden, inner = w2.shape[1], w13.shape[1] // 2
    facts = {"num_experts": w2.shape[0], "hidden_size": hidden, "intermediate_size": inner, "weight_dtype": w2.dtype}
    if scales is None:
        return facts | {"scheme": "float"}
    granularity = fp8_granularity(w13, scales)
    if granularity is not None:
        return facts | {"scheme": "fp8_channel" if granularity == "token" else "fp8_block"}
    groups = {"group_size": hidden // scales.shape[2], "inner_group_size": inner // bound["w2_scale"].shape[2]}
    return facts | groups | {"scheme": "w4a16", "symmetric": bound.get("w13_zeros") is None}


# What the first GEMM gives may be rounded to the dtype before the second.
_TWO_PRODUCTS = Tolerance({torch.float32: 1e-5, torch.float16: 1.5e-3, torch.bfloat16: 1e-2})
moe_route = Op(
    "moe_route",
    moe_route_reference,
    moe_route_fake,
    moe_route_cost,
    cases=MOE_ROUTE_CASES,
    bind_args=("bias", "top_k", "renormalize", "scoring", "num_groups", "top_groups", "group_score", "scaling"),
    optional=("num_groups", "top_groups", "group_score", "scaling"),
    row_args=("logits",),
)
_VARIANTS = ("w13_bias", "w2_bias", "limit", "alpha", "weighs_input")
moe_experts = Op(
    "moe_experts",
    moe_experts_reference,
    moe_experts_fake,
    moe_experts_cost,
    cases=MOE_EXPERTS_CASES,
    bind_args=("w13", "w2", "expert_start", "w13_scale", "w2_scale", "w13_zeros", "w2_zeros", *_VARIANTS),
    optional=_VARIANTS,
    row_args=("x", "weights", "ids"),
    facts=moe_experts_facts,
    tolerance=_TWO_PRODUCTS,
)

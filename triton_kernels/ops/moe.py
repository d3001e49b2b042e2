"""``moe_route`` and ``moe_experts``: which experts a token goes to, and what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..cases.moe import MOE_EXPERTS_CASES, MOE_ROUTE_CASES
from ..op import Cost, Op, Tolerance


def moe_route_reference(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    top_k: int = 2,
    renormalize: bool = True,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Router logits [T, E] -> weights f32 [T, top_k], expert ids int32 [T, top_k], best first, ties to the lower id.

    The scores are softmax (or sigmoid) of the logits; ``bias`` [E] changes which experts are chosen, not their weights.
    """
    wide = logits.double()
    scores = torch.softmax(wide, dim=-1) if scoring == "softmax" else torch.sigmoid(wide)
    ranked = torch.sort(scores if bias is None else scores + bias.double(), dim=-1, descending=True, stable=True).indices
    ids = ranked[:, :top_k]
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.float(), ids.int()


def moe_experts_reference(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    expert_start: int = 0,
) -> torch.Tensor:
    """Sum over a token's experts of weight * w2 (silu(gate) * up), where gate, up = w13 x.

    x [T, H]; weights f32 [T, k]; ids int32 [T, k], global; w13 [E, 2I, H] (gate rows first), w2 [E, H, I] hold the experts
    expert_start .. expert_start + E - 1, others contribute nothing. Returns [T, H].
    """
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    local = ids.long() - expert_start
    for expert in local.unique().tolist():
        if not 0 <= expert < w13.shape[0]:
            continue
        token, choice = (local == expert).nonzero(as_tuple=True)
        gate, up = (x[token].double() @ w13[expert].double().T).chunk(2, dim=-1)
        result = (torch.nn.functional.silu(gate) * up) @ w2[expert].double().T
        out.index_add_(0, token, result * weights[token, choice, None].double())
    return out.to(x.dtype)


def moe_route_fake(logits, bias=None, top_k=2, renormalize=True, scoring="softmax"):  # type: ignore[no-untyped-def]
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def moe_experts_fake(x, weights, ids, w13, w2, expert_start=0):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def moe_route_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_experts, top_k, act_bytes."""
    tokens = sum(q_lens)
    return Cost(4 * tokens * dims["num_experts"], tokens * (dims["num_experts"] * dims.get("act_bytes", 2) + 8 * dims["top_k"]))


def moe_experts_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_experts, top_k, hidden_size, intermediate_size, weight_bytes, act_bytes. Expects tokens to spread evenly."""
    tokens, experts, chosen = sum(q_lens), dims["num_experts"], dims["top_k"]
    hidden, inner = dims["hidden_size"], dims["intermediate_size"]
    active = experts * (1 - (1 - chosen / experts) ** tokens)
    moved = active * 3 * hidden * inner * dims.get("weight_bytes", 2) + 2 * tokens * hidden * dims.get("act_bytes", 2)
    return Cost(6 * tokens * chosen * hidden * inner, moved)


def moe_experts_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    experts, hidden, inner = bound["w2"].shape
    return {"num_experts": experts, "hidden_size": hidden, "intermediate_size": inner, "weight_dtype": bound["w2"].dtype}


# What the first product gives may be rounded to the dtype before the second.
_TWO_PRODUCTS = Tolerance({torch.float32: 1e-5, torch.float16: 1.5e-3, torch.bfloat16: 1e-2})
moe_route = Op("moe_route", moe_route_reference, moe_route_fake, moe_route_cost, cases=MOE_ROUTE_CASES,
               bind_args=("bias", "top_k", "renormalize", "scoring"), row_args=("logits",))  # fmt: skip
moe_experts = Op("moe_experts", moe_experts_reference, moe_experts_fake, moe_experts_cost, cases=MOE_EXPERTS_CASES,
                 bind_args=("w13", "w2", "expert_start"), row_args=("x", "weights", "ids"), facts=moe_experts_facts,
                 tolerance=_TWO_PRODUCTS)  # fmt: skip

"""``gated_rms_norm``: what stands between a recurrent mixer and its output projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.gated_norm import CASES
from ..op import Cost, Op


def reference(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, group_size: int | None = None, norm_first: bool = True
) -> torch.Tensor:
    """Root-mean-square norm of x, gated by silu(gate).

    x, gate [..., H] (last dimension contiguous), weight [H] -> [..., H] in x's dtype. Every ``group_size`` elements (None: all H of
    them) have a norm of their own. norm_first: norm(x) * weight * silu(gate) (Qwen3-Next, over each head), else
    norm(x * silu(gate)) * weight (Mamba 2, Granite 4).
    Source: Dao and Gu, arXiv 2405.21060, section 7; Yang et al., arXiv 2412.06464.
    """
    opened = torch.nn.functional.silu(gate.double())
    source = x.double() if norm_first else x.double() * opened
    groups = source.unflatten(-1, (-1, group_size or x.shape[-1]))
    out = (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight.double()
    return (out * opened if norm_first else out).to(x.dtype)


def fake(x, gate, weight, eps, group_size=None, norm_first=True):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: hidden_size (all heads together), act_bytes."""
    elements = sum(q_lens) * dims["hidden_size"]
    return Cost(10 * elements, 3 * elements * dims.get("act_bytes", 2))


gated_rms_norm = Op(
    "gated_rms_norm",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("weight", "eps", "group_size", "norm_first"),
    row_args=("x", "gate"),
)

"""``merge_attention``: joins attention over two disjoint sets of keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.merge import CASES
from ..op import Cost, Op


def reference(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """out_a, out_b [T, H, D]; lse_a, lse_b f32 [T, H] (natural log, -inf = no keys) -> out [T, H, D], lse f32 [T, H].
    Where both are -inf the result is 0 and -inf."""
    total = torch.logaddexp(lse_a.double(), lse_b.double())
    empty = total == -torch.inf
    base = total.masked_fill(empty, 0)
    weights = [torch.exp(lse.double() - base)[..., None] for lse in (lse_a, lse_b)]
    # An empty side may hold anything: its weight is 0, but 0 * NaN is not.
    parts = [torch.where(w > 0, out.double() * w, 0.0) for out, w in zip((out_a, out_b), weights)]
    return (parts[0] + parts[1]).to(out_a.dtype), total.float()


def fake(out_a, lse_a, out_b, lse_b):  # type: ignore[no-untyped-def]
    return out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_heads, head_dim, act_bytes."""
    rows = sum(q_lens) * dims["num_heads"]
    return Cost(4 * rows * dims["head_dim"], rows * (3 * dims["head_dim"] * dims.get("act_bytes", 2) + 12))


merge_attention = Op("merge_attention", reference, fake, cost, cases=CASES, row_args=("out_a", "lse_a", "out_b", "lse_b"))

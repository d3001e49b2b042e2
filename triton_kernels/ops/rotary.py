"""``rotary``: rotary position embedding of queries and keys, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..cases.rotary import CASES
from ..op import Cost, Op


def reference(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, style: Literal["neox", "gptj"] = "neox"
) -> None:
    """Rotates the first rot_dim elements of each head, in place.

    q [T, Hq, D], k [T, Hk, D] (last dimension contiguous); positions int64 [T]; cos_sin f32 [max_position, rot_dim]: the
    first half of a row is cos, the second sin. Style "neox" pairs element i with i + rot_dim/2, "gptj" 2i with 2i+1.
    Source: Su et al., RoFormer, arXiv 2104.09864.
    """
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin[positions].double()[:, None, :].split(half, dim=-1)
    for heads in (q, k):
        rotated = heads[..., : 2 * half]
        first, second = (rotated[..., :half], rotated[..., half:]) if style == "neox" else (rotated[..., ::2], rotated[..., 1::2])
        a, b = first.double(), second.double()
        turned = a * cos - b * sin, b * cos + a * sin  # both before either is written: float64 heads are not copied above
        first.copy_(turned[0])
        second.copy_(turned[1])


def fake(q, k, positions, cos_sin, style="neox"):  # type: ignore[no-untyped-def]
    return None


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_heads, num_kv_heads, head_dim, act_bytes."""
    elements = sum(q_lens) * (dims["num_heads"] + dims["num_kv_heads"]) * dims["head_dim"]
    return Cost(3 * elements, 2 * elements * dims.get("act_bytes", 2))


def facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"rot_dim": bound["cos_sin"].shape[1]}


rotary = Op(
    "rotary",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("cos_sin", "style"),
    mutates=("q", "k"),
    row_args=("q", "k", "positions"),
    facts=facts,
)

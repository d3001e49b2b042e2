"""Cases of ``rotary``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rot_dim: int,
    style: str = "neox",
    fused: bool = True,
) -> dict[str, Any]:
    """``fused``: queries, keys and values lie side by side, as a fused projection leaves them."""
    max_position = 97
    if fused:
        qkv = randn(generator, dtype, device, tokens, num_heads + 2 * num_kv_heads, head_dim)
        q, k = qkv[:, :num_heads], qkv[:, num_heads : num_heads + num_kv_heads]
    else:
        q = randn(generator, dtype, device, tokens, num_heads, head_dim)
        k = randn(generator, dtype, device, tokens, num_kv_heads, head_dim)
    angles = torch.arange(max_position)[:, None] * 100.0 ** -(torch.arange(0, rot_dim, 2) / rot_dim)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).to(device)
    positions = torch.randint(0, max_position, (tokens,), generator=generator).to(device)
    return {"q": q, "k": k, "positions": positions, "cos_sin": cos_sin, "style": style}


def _case(
    name: str, tags: frozenset[str], tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, rot_dim: int, **more: Any
) -> Case:
    make = partial(_make, tokens=tokens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, rot_dim=rot_dim, **more)
    dims = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    return Case(name, make, tags, dims, (tokens,))


CASES = (
    _case("one_row", SMALL, 1, 4, 2, 32, 32),
    _case("neox_tiled", TILED, 13, 5, 3, 80, 80),
    _case("neox_partial", SMALL, 7, 4, 1, 48, 20),
    _case("neox_separate", SMALL, 6, 4, 4, 64, 64, fused=False),
    _case("gptj", SMALL, 9, 3, 1, 32, 32, style="gptj"),
    _case("gptj_partial_tiled", TILED, 11, 4, 3, 96, 66, style="gptj", fused=False),
    _case("empty", SMALL, 0, 2, 1, 16, 16),
    *(_case(f"llama-8b_{tokens}", BENCH, tokens, 32, 8, 128, 128) for tokens in (64, 8192)),
)

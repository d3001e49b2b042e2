"""Cases of ``merge_attention``."""

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
    head_dim: int,
    strided: bool = False,
    empty: bool = False,
) -> dict[str, Any]:
    """``empty``: some rows have no keys in one part or in both; such a part holds NaN, which may be read nowhere."""
    args: dict[str, Any] = {}
    for part in "ab":
        out = randn(generator, dtype, device, tokens, num_heads + strided, head_dim + 8 * strided)[:, strided:, :head_dim]
        lse = randn(generator, torch.float32, device, tokens, num_heads + strided, scale=4.0)[:, strided:]
        if empty:
            gone = torch.rand(tokens, num_heads, generator=generator).to(device) < 0.4
            out, lse = out.masked_fill(gone[..., None], torch.nan), lse.masked_fill(gone, -torch.inf)
        args |= {f"out_{part}": out, f"lse_{part}": lse}
    return args


def _case(name: str, tags: frozenset[str], tokens: int, num_heads: int, head_dim: int, **more: Any) -> Case:
    make = partial(_make, tokens=tokens, num_heads=num_heads, head_dim=head_dim, **more)
    return Case(name, make, tags, {"num_heads": num_heads, "head_dim": head_dim}, (1,) * tokens, (1,) * tokens)


CASES = (
    _case("one_row", SMALL, 1, 1, 64),
    _case("tiled", TILED, 31, 5, 80),
    _case("strided", SMALL, 7, 3, 40, strided=True),
    _case("empty_parts", SMALL, 19, 4, 24, empty=True),
    _case("empty", SMALL, 0, 2, 16),
    *(_case(f"llama-8b_{tokens}", BENCH, tokens, 32, 128) for tokens in (64, 2048)),
)

"""Cases of ``lora_shrink`` and ``lora_expand``: mixed adapters, adapters without a token, tokens without an adapter, layers of
several slices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..lora_meta import LoraMeta
from ..op import Case
from . import BENCH, SMALL, TILED, randn, unrounded


def _meta(
    generator: torch.Generator, device: torch.device, tokens: int, num_adapters: int, none: float, runs: int, known: bool
) -> LoraMeta:
    """``none``: share of tokens without an adapter. ``runs`` > 1: so many neighbours, a prompt's tokens, have the same one.
    ``known``: the host knows which occur."""
    picked = torch.randint(0, num_adapters, (-(-tokens // runs),), generator=generator)
    picked[torch.rand(len(picked), generator=generator) < none] = -1
    index = picked.repeat_interleave(runs)[:tokens].int()
    slots = [slot for slot in index.unique().tolist() if slot >= 0] if known else None
    return LoraMeta(index.to(device), slots)


def _shrink(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    features: int,
    rank: int,
    num_adapters: int,
    none: float = 0.3,
    runs: int = 1,
    strided: bool = False,
    known: bool = False,
    slices: int = 1,
) -> dict[str, Any]:
    pad, ranks = 16 * strided, rank * slices
    return {
        "x": randn(generator, dtype, device, tokens, features + pad)[:, pad:],
        "lora_a": randn(generator, dtype, device, num_adapters, ranks, features, scale=features**-0.5),
        "meta": _meta(generator, device, tokens, num_adapters, none, runs, known),
        "scale": (0.5 + torch.rand(num_adapters, ranks, generator=generator)).to(device),
    }


def _expand(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    features: int,
    rank: int,
    num_adapters: int,
    none: float = 0.3,
    runs: int = 1,
    strided: bool = False,
    known: bool = False,
    slices: int = 1,
) -> dict[str, Any]:
    """The first of several slices is half of y, as q of q, k and v."""
    pad, rest = 16 * strided, slices - 1
    widths = [features // (2 * rest)] * rest if rest else []
    return {
        "y": randn(generator, dtype, device, tokens, features + pad)[:, pad:],
        "shrunk": randn(generator, torch.float32, device, tokens, rank * slices),
        "lora_b": randn(generator, dtype, device, num_adapters, rank, features, scale=rank**-0.5),
        "meta": _meta(generator, device, tokens, num_adapters, none, runs, known),
        "slices": (features - sum(widths), *widths),
    }


def _case(
    make: Callable[..., dict[str, Any]],
    name: str,
    tags: frozenset[str],
    tokens: int,
    features: int,
    rank: int,
    adapters: int,
    **more: Any,
) -> Case:
    filled = partial(make, tokens=tokens, features=features, rank=rank, num_adapters=adapters, **more)
    in_batch, slices = min(adapters, -(-tokens // more.get("runs", 1))), more.get("slices", 1)
    dims = {"features": features, "rank": rank * slices if make is _shrink else rank, "num_adapters": in_batch}
    if make is _expand:
        dims["num_slices"] = slices
    return Case(name, filled, tags, dims, (1,) * tokens, (1,) * tokens)


def _cases(make: Callable[..., dict[str, Any]]) -> tuple[Case, ...]:
    return (
        _case(make, "one_row", SMALL, 1, 64, 8, 2, none=0.0),
        _case(make, "tiled", TILED, 53, 147, 37, 3),
        _case(make, "many_adapters", SMALL, 7, 40, 16, 12, known=True),
        _case(make, "runs", SMALL, 40, 48, 16, 2, runs=13, known=True),
        _case(make, "strided", SMALL, 11, 36, 5, 3, strided=True),
        _case(make, "no_adapter", SMALL, 4, 32, 8, 1, none=1.0),
        _case(make, "empty", SMALL, 0, 32, 8, 2),
        _case(make, "slices", SMALL, 13, 56, 12, 3, slices=3),
        _case(make, "slices_aligned", SMALL, 9, 128, 16, 2, slices=3),
        _case(make, "llama-8b_64", BENCH, 64, 4096, 16, 8, none=0.0),
        _case(make, "llama-8b_64_rank_64", BENCH, 64, 4096, 64, 8, none=0.0),
        _case(make, "llama-8b_64_qkv", BENCH, 64, 4096 if make is _shrink else 6144, 16, 8, none=0.0, slices=3),
        _case(make, "llama-8b_2048", BENCH, 2048, 4096, 16, 8, none=0.0, runs=512),
    )


SHRINK_CASES = (*_cases(_shrink), unrounded(_case(_shrink, "shard", SMALL, 13, 56, 12, 3)))
EXPAND_CASES = _cases(_expand)

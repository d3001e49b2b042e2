"""Cases of ``lora_shrink`` and ``lora_expand``: mixed adapters, adapters without a token, tokens without an adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn


def _index(generator: torch.Generator, tokens: int, num_adapters: int, none: float, runs: int) -> torch.Tensor:
    """``none``: share of tokens without an adapter. ``runs`` > 1: so many neighbours, a prompt's tokens, have the same one."""
    picked = torch.randint(0, num_adapters, (-(-tokens // runs),), generator=generator)
    picked[torch.rand(len(picked), generator=generator) < none] = -1
    return picked.repeat_interleave(runs)[:tokens].int()


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
) -> dict[str, Any]:
    pad = 16 * strided
    return {
        "x": randn(generator, dtype, device, tokens, features + pad)[:, pad:],
        "lora_a": randn(generator, dtype, device, num_adapters, rank, features, scale=features**-0.5),
        "lora_index": _index(generator, tokens, num_adapters, none, runs).to(device),
        "scale": (0.5 + torch.rand(num_adapters, generator=generator)).to(device),
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
    start: int = 0,
    behind: int = 0,
) -> dict[str, Any]:
    """y has ``start`` columns before the slice that is added to, and ``behind`` after it."""
    pad = 16 * strided
    return {
        "y": randn(generator, dtype, device, tokens, start + features + behind + pad)[:, pad:],
        "shrunk": randn(generator, torch.float32, device, tokens, rank),
        "lora_b": randn(generator, dtype, device, num_adapters, features, rank, scale=rank**-0.5),
        "lora_index": _index(generator, tokens, num_adapters, none, runs).to(device),
        "start": start,
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
    in_batch = min(adapters, -(-tokens // more.get("runs", 1)))
    dims = {"features": features, "rank": rank, "num_adapters": in_batch}
    return Case(name, filled, tags, dims, (1,) * tokens, (1,) * tokens)


def _cases(make: Callable[..., dict[str, Any]]) -> tuple[Case, ...]:
    return (
        _case(make, "one_row", SMALL, 1, 64, 8, 2, none=0.0),
        _case(make, "tiled", TILED, 53, 147, 37, 3),
        _case(make, "many_adapters", SMALL, 7, 40, 16, 12),
        _case(make, "runs", SMALL, 40, 48, 16, 2, runs=13),
        _case(make, "strided", SMALL, 11, 36, 5, 3, strided=True),
        _case(make, "no_adapter", SMALL, 4, 32, 8, 1, none=1.0),
        _case(make, "empty", SMALL, 0, 32, 8, 2),
        _case(make, "llama-8b_64", BENCH, 64, 4096, 16, 8, none=0.0),
        _case(make, "llama-8b_64_rank_64", BENCH, 64, 4096, 64, 8, none=0.0),
        _case(make, "llama-8b_2048", BENCH, 2048, 4096, 16, 8, none=0.0, runs=512),
    )


SHRINK_CASES = _cases(_shrink)
EXPAND_CASES = (*_cases(_expand), _case(_expand, "slice", SMALL, 13, 56, 12, 3, start=24, behind=17))

"""Cases of ``moe_exchange``, with a group of one rank; with more a test has to run them all."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..group import SoloGroup
from ..op import Case
from . import BENCH, SMALL, TILED, randn


def experts(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """matrices [E, H]: an expert multiplies by its row. float32 [T, H]; a slot below 0 is none."""
    chosen = matrices.float()[ids.clamp_min(0).long()] * (weights * (ids >= 0))[..., None]
    return x.float() * chosen.sum(1)


def _make(
    generator: torch.Generator, dtype: torch.dtype, device: torch.device, tokens: int, width: int, num_slots: int, top_k: int
) -> dict[str, Any]:
    matrices = randn(generator, dtype, device, num_slots, width)
    ids = torch.rand(tokens, num_slots, generator=generator).argsort(1)[:, :top_k].int()
    ids[::5] = -1
    return {
        "x": randn(generator, dtype, device, tokens, width),
        "weights": torch.rand(tokens, top_k, generator=generator).to(device),
        "ids": ids.to(device),
        "experts": partial(experts, matrices=matrices),
        "group": SoloGroup(),
        "num_slots": num_slots,
        "out_dtype": dtype,
    }


def _case(name: str, tags: frozenset[str], tokens: int, width: int, num_slots: int = 6, top_k: int = 2) -> Case:
    make = partial(_make, tokens=tokens, width=width, num_slots=num_slots, top_k=top_k)
    return Case(name, make, tags, {"hidden_size": width, "ranks": 1, "top_k": top_k, "partial_bytes": 4}, (tokens,))


MOE_EXCHANGE_CASES = (
    _case("one_row", SMALL, 1, 64),
    _case("odd", SMALL, 5, 40, num_slots=9, top_k=4),
    _case("tiled", TILED, 71, 136),
    _case("empty", SMALL, 0, 32),
    _case("qwen3-30b_64", BENCH, 64, 2048, num_slots=128, top_k=8),
)

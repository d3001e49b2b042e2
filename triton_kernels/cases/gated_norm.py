"""Cases of ``gated_rms_norm``."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn


def _make(
    generator: torch.Generator, dtype: torch.dtype, device: torch.device, shape: tuple[int, ...], pad: int = 0, **static: Any
) -> dict[str, Any]:
    """``pad``: what lies before each row of both, as in the slice of a fused projection."""
    x, gate = (randn(generator, dtype, device, *shape[:-1], shape[-1] + pad, scale=2.0)[..., pad:] for _ in range(2))
    weight = randn(generator, dtype, device, shape[-1], scale=0.3) + 1
    return {"x": x, "gate": gate, "weight": weight, "eps": 1e-5, "group_size": None, "norm_first": True, **static}


def _case(name: str, tags: frozenset[str], *shape: int, **more: Any) -> Case:
    dims = {"hidden_size": math.prod(shape[1:])}
    return Case(name, partial(_make, shape=shape, **more), tags, dims, (shape[0],))


CASES = (
    _case("one_row", SMALL, 1, 64),
    _case("odd", SMALL, 5, 37, norm_first=False),
    _case("heads", SMALL, 5, 3, 32, pad=16),
    _case("many_heads", SMALL, 9, 7, 24, norm_first=False),
    _case("groups", SMALL, 6, 120, group_size=24, pad=8, norm_first=False),
    _case("groups_norm_first", SMALL, 7, 96, group_size=32),
    _case("groups_of_heads", SMALL, 3, 2, 40, group_size=20, pad=8, norm_first=False),
    _case("tiled", TILED, 70, 131, norm_first=False),
    _case("tiled_norm_first", TILED, 19, 131, pad=5),
    _case("tiled_groups", TILED, 11, 3 * 131, group_size=131, pad=16, norm_first=False),
    _case("wide", SMALL, 2, 9000, norm_first=False),
    _case("empty", SMALL, 0, 16),
    *(_case(f"qwen3-next_{tokens}", BENCH, tokens, 32, 128) for tokens in (64, 2048)),
    *(_case(f"granite-4-small_{tokens}", BENCH, tokens, 8192, norm_first=False) for tokens in (64, 2048)),
)

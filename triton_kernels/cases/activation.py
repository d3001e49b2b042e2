"""Cases of ``silu_and_mul`` and ``gelu_and_mul``."""

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
    size: int,
    strided: bool = False,
    **static: Any,
) -> dict[str, Any]:
    pad = 8 if strided else 0
    return {"x": randn(generator, dtype, device, tokens, 2 * size + pad, scale=2.0)[:, pad:], **static}


def _cases(**static: Any) -> tuple[Case, ...]:
    def case(name: str, tags: frozenset[str], tokens: int, size: int, strided: bool = False) -> Case:
        make = partial(_make, tokens=tokens, size=size, strided=strided, **static)
        return Case(name, make, tags, {"intermediate_size": size}, (tokens,))

    suffix = "".join(f"_{value}" for value in static.values())
    return (
        case(f"one_row{suffix}", SMALL, 1, 64),
        case(f"odd{suffix}", SMALL, 5, 37),
        case(f"tiled{suffix}", TILED, 37, 101),
        case(f"strided{suffix}", SMALL, 6, 40, strided=True),
        case(f"empty{suffix}", SMALL, 0, 16),
        *(case(f"llama-8b_{tokens}{suffix}", BENCH, tokens, 14336) for tokens in (64, 8192)),
    )


SILU_CASES = _cases()
GELU_CASES = (*_cases(approximate="tanh"), *_cases(approximate="none"))

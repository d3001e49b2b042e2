"""Cases of the collectives, with a group of one rank: unrounded and rounded summands, biases, rows of any length.

With more ranks a test has to run them all, as ``tests/triton_kernels/test_collectives.py`` does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..group import SoloGroup
from ..op import Case
from . import BENCH, SMALL, TILED, randn


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    width: int,
    strided: bool = False,
    rounded: bool = False,
    bias: bool | None = None,
    has_out_dtype: bool = False,
    norm: bool = False,
    dim: int | None = None,
) -> dict[str, Any]:
    """``rounded``: x comes in the activations' dtype and not in float32; ``bias``, ``dim``: None where the op has none."""
    pad = 16 if strided else 0
    x = randn(generator, dtype if rounded else torch.float32, device, tokens, width + pad)[:, pad:]
    args: dict[str, Any] = {"x": x, "group": SoloGroup()}
    if norm:
        args |= {"residual": randn(generator, dtype, device, tokens, width + pad, scale=2.0)[:, pad:], "eps": 1e-5, "offset": 0.0}
        args["weight"] = randn(generator, dtype, device, width, scale=0.3) + 1
    if bias is not None:
        args["bias"] = randn(generator, dtype, device, width) if bias else None
    if dim is not None:
        args["dim"] = dim
    return args | ({"out_dtype": None if rounded else dtype} if has_out_dtype else {})


def _case(name: str, tags: frozenset[str], tokens: int, width: int, **more: Any) -> Case:
    partials = {} if more.get("rounded") else {"partial_bytes": 4}
    make = partial(_make, tokens=tokens, width=width, **more)
    return Case(name, make, tags, {"hidden_size": width, "ranks": 1, **partials}, (tokens,))


def _cases(**more: Any) -> tuple[Case, ...]:
    """The sizes that every op has."""
    return (
        _case("one_row", SMALL, 1, 64, **more),
        _case("odd", SMALL, 5, 37, **more),
        _case("tiled", TILED, 71, 131, **more),
        _case("strided", SMALL, 6, 40, strided=True, **more),
        _case("empty", SMALL, 0, 32, **more),
        *(_case(f"llama-8b_{tokens}", BENCH, tokens, 4096, **more) for tokens in (1, 64, 2048)),
    )


ALL_REDUCE_CASES = (
    *_cases(has_out_dtype=True, bias=False),
    _case("bias", SMALL, 7, 53, has_out_dtype=True, bias=True),
    _case("rounded", SMALL, 7, 53, has_out_dtype=True, bias=True, rounded=True),
)
ALL_GATHER_CASES = (*_cases(rounded=True, dim=1), _case("rows", SMALL, 5, 37, rounded=True, dim=0))
REDUCE_SCATTER_CASES = (*_cases(has_out_dtype=True), _case("rounded", SMALL, 7, 53, has_out_dtype=True, rounded=True))
ALL_TO_ALL_CASES = _cases(rounded=True)
ALL_REDUCE_ADD_RMS_NORM_CASES = (
    *_cases(norm=True, bias=False),
    _case("bias", SMALL, 7, 53, norm=True, bias=True),
    _case("rounded", SMALL, 7, 53, norm=True, bias=False, rounded=True),
)


class AlikeRanks(SoloGroup):
    """Eight ranks of GPUs, each with what this one has: for shapes, and to compile."""

    size, backend = 8, "nccl"

"""Rows of a tensor for kernels that work along the last dimension."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """Rows of ``tensor`` [..., H]: row r starts at element (r // inner) * stride_outer + (r % inner) * stride_inner."""

    tensor: torch.Tensor
    num_rows: int
    inner: int
    stride_outer: int
    stride_inner: int


def rows(x: torch.Tensor, in_place: bool = False) -> Rows:
    """The rows of x [H], [T, H] or [T, heads, H] (any strides of the leading dimensions, as in a slice of a fused
    projection). Other layouts are copied, which a tensor written ``in_place`` must not need."""
    if x.dim() > 3 or x.stride(-1) != 1:
        assert not in_place or x.is_contiguous(), "a tensor written in place needs contiguous rows and at most 3 dimensions"
        x = x.reshape(-1, x.shape[-1]).contiguous()
    strides = (0,) * (3 - x.dim()) + x.stride()[:-1]
    sizes = (1,) * (3 - x.dim()) + tuple(x.shape[:-1])
    return Rows(x, sizes[0] * sizes[1], sizes[1], strides[0], strides[1])

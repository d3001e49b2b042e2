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
    shape, strides = x.shape, x.stride()
    if len(shape) > 3 or strides[-1] != 1:
        assert not in_place or x.is_contiguous(), "a tensor written in place needs contiguous rows and at most 3 dimensions"
        x = x.reshape(-1, shape[-1]).contiguous()
        shape, strides = x.shape, x.stride()
    outer, inner, _ = (1, 1, *shape)[-3:]
    stride_outer, stride_inner, _ = (0, 0, *strides)[-3:]
    return Rows(x, outer * inner, inner, stride_outer, stride_inner)

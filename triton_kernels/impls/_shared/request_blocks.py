"""Blocks of rows that never hold rows of two requests, so many that the grid is known without reading the lengths."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_request(cu_q, num_reqs, block, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """The request of a block of BLOCK rows, GROUP of them per token, where request r's blocks start at
    cu_q[r] * GROUP // BLOCK + r: that leaves room for every request's blocks whatever the lengths."""
    low = 0
    high = num_reqs
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(cu_q + middle) * GROUP // BLOCK + middle <= block:
            low = middle
        else:
            high = middle - 1
    return low

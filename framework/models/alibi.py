"""ALiBi (arXiv 2108.12409): by how much a head's scores fall with each token of distance."""

from __future__ import annotations


def alibi_slopes(num_heads: int) -> list[float]:
    """One per head. Of n heads, a power of two, they are 2^(-8 i / n) for i = 1 .. n; those of the heads beyond come from between,
    2^(-4 i / n) for i = 1, 3, 5, ..."""
    n = 1 << (num_heads.bit_length() - 1)
    return [2 ** (-8 * i / n) for i in range(1, n + 1)] + [2 ** (-4 * i / n) for i in range(1, 2 * (num_heads - n), 2)]

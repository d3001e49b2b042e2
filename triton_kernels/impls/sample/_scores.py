"""What both kernels of ``sample`` share: scores, and which token of a tile wins."""

from __future__ import annotations

import triton
import triton.language as tl

from .._shared.philox import gumbel

_LOG2_E = tl.constexpr(1.4426950408889634)
_SURE_U = tl.constexpr(0.019 * 2**31)
_UNSURE = tl.constexpr(0.105)
"""How far a bound of noise with u < 0.019 may lie above it, in powers of two: 0.0862 by the logarithm, 0.0138 by -log1p(-u) > u."""


@triton.jit
def load_logits(logits_ptr, tokens, mask):
    """f32 logits; NaN becomes +inf, so that the largest score of a row tells whether the row is usable."""
    logits = tl.load(logits_ptr + tokens, mask=mask, other=float("-inf")).to(tl.float32)
    return tl.where(logits < float("inf"), logits, float("inf"))


@triton.jit
def scores_of(logits, temperature):
    return tl.div_rn(logits, temperature)


@triton.jit
def noisy_winner(logits, temperature, words, BLOCK: tl.constexpr):
    """The index of the largest noisy score among logits [BLOCK] with Philox words [BLOCK]; the first, if several are equal.

    The noise -log(-log1p(-u)) is at most -log(u), and log2(u) at least what the bits of the float u say when they are read as an
    integer. When the bound of a single token comes near the largest bound, and its u is small, so that the bound is close, that
    token has won without a logarithm; else all are computed.
    """
    bits = words.to(tl.int32, bitcast=True)
    u = tl.maximum((bits ^ (bits >> 31)).to(tl.float32), 1.0)  # times 2^31
    log2_u = u.to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-23 - 158.0
    bounds = logits * (_LOG2_E / temperature) - log2_u
    top = tl.max(bounds, 0)
    near = bounds >= top - (_UNSURE + 1e-6 * tl.abs(top))
    found = tl.sum(tl.where(near, 65536 + tl.arange(0, BLOCK), 0), 0)
    largest_u = tl.max(tl.where(near, u, 0.0), 0)
    index = found - 65536
    if (found >= 2 * 65536) | (found == 0) | (largest_u > _SURE_U):
        index = tl.argmax(scores_of(logits, temperature) + gumbel(words), 0, tie_break_left=True)
    return index

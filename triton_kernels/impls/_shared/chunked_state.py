"""What linear attention with a decaying state does with a chunk of tokens: products between them, and with the state before them.

Per head and token: S = exp(g) * S + k n; out = q S, with g <= 0. With G, the sum of g from the chunk's start, the tokens of a chunk
and the state before it make
    out_i = exp(G_i) q_i S + sum over j <= i of exp(G_i - G_j) (q_i k_j) n_j,    S = exp(G) S + sum of exp(G - G_j) k_j n_j
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, DTYPE: tl.constexpr, INTERPRET: tl.constexpr):
    """a @ b of numbers rounded to DTYPE, summed in f32. The interpreter multiplies bf16 bit patterns: wider numbers there."""
    if INTERPRET:
        return tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64).to(tl.float32)
    else:
        return tl.dot(a.to(DTYPE), b.to(DTYPE), input_precision="ieee")


@triton.jit
def decay_between(total):
    """exp(G_i - G_j) for j <= i, else 0; f32 [n, n] of G [n]."""
    n: tl.constexpr = total.shape[0]
    before = tl.arange(0, n)[:, None] >= tl.arange(0, n)[None, :]
    return tl.where(before, tl.exp(tl.where(before, total[:, None] - total[None, :], 0.0)), 0.0)


@triton.jit
def chunk_step(state, scores, q, q_scale, k, k_scale, new, last, INTERPRET: tl.constexpr):
    """Output f32 [n, V] and the state f32 [K, V] after a chunk.

    scores [n, n]: factors of new [n, V] in the output; q, k [n, K], to be multiplied by q_scale and k_scale f32 [n], which hold
    the decay since the chunk's start, and until its end; last: G of its last token. Rows past the end: scores and new are 0.
    """
    DTYPE: tl.constexpr = q.dtype
    out = q_scale[:, None] * product(q, state, DTYPE, INTERPRET) + product(scores, new, DTYPE, INTERPRET)
    return out, tl.exp(last) * state + product(tl.trans(k), new.to(tl.float32) * k_scale[:, None], DTYPE, INTERPRET)
